package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strings"
)

//go:embed page.html.tmpl
var pageText string

// page is what the template is filled with. All text is formed here, the template has the
// words that never change.
type page struct {
	Report   *Report
	Machine  string
	Load     string
	Check    string
	Keys     []key
	Families []family
	Speeds   []chart
	Costs    []chart
	Ways     []drawn
	Heads    []string // of several lines
	Rows     []cells
	Halves   []cells // figures of the sender and the receiver apart
	Missing  []*Path
	Devices  []group
	Drops    []group
	Encrypts bool
	Base     string
}

// key is a number that answers the page's question.
type key struct{ Title, Value, Text string }

// drawn is a path's two drawings with what is said below them.
type drawn struct {
	Path   *Path
	Family family
	About  string
	Wide   []drawing // none if it would be too crowded
	Tall   drawing
	Sum    string
	Calls  string
}

// cells is a row of a table, and group are the rows of one path.
type cells struct {
	Path   *Path
	Family family
	Cells  []string
}

type group struct {
	Name string
	Rows [][]string
}

// HTML writes the report as one page that needs nothing else: no script, no font, no
// image. Text of the report is escaped.
func (r *Report) HTML(w io.Writer) error {
	t, err := template.New("page").Parse(pageText)
	if err != nil {
		return err
	}
	// The page is made whole before any of it is written.
	var b strings.Builder
	if err := t.Execute(&b, r.page()); err != nil {
		return err
	}
	_, err = io.WriteString(w, b.String())
	return err
}

func (r *Report) page() *page {
	p := &page{
		Report: r, Machine: r.machine(), Load: r.load(), Check: fmt.Sprintf("%.2g", r.Host.SelfCheck), Families: families, Base: Base,
		Encrypts: slices.ContainsFunc(r.Paths, func(p Path) bool { return p.Ran && p.Encrypts }), Keys: r.keys(),
	}
	const more, less = "more is better", "less is better"
	for _, f := range []figure{figTCP, figTCP4, figUDP64, figUDP1400} {
		p.Speeds = append(p.Speeds, r.chartOf(f, more, [2]string{}, nil))
	}
	for _, f := range []figure{figP50, figP99} {
		p.Speeds = append(p.Speeds, r.chartOf(f, less, [2]string{}, nil))
	}
	p.Speeds = append(p.Speeds, r.chartOf(figCPU, less, [2]string{}, nil), r.chartOf(figMemory, less, [2]string{}, nil))
	sender := [2]string{"on the sending host", "on the receiving host"}
	p.Costs = []chart{
		r.chartOf(figCalls, less, sender, func(p *Path) float64 { return p.SyscallsSend }),
		r.chartOf(figBytes, less, sender, func(p *Path) float64 { return p.BytesCopiedSend }),
	}
	for _, c := range columns {
		p.Heads = append(p.Heads, c.lines())
	}
	for i := range r.Paths {
		path := &r.Paths[i]
		if !path.Ran {
			p.Missing = append(p.Missing, path)
			continue
		}
		row := cells{Path: path, Family: familyOf(path.Name)}
		for _, c := range columns {
			row.Cells = append(row.Cells, c.cell(r, path))
		}
		p.Rows = append(p.Rows, row)
		if path.CopiesToUser+path.CopiesFromUser+path.Syscalls > 0 {
			p.Halves = append(p.Halves, halves(path))
		}
		if way := wayOf(path); len(way.steps) > 0 {
			id := fmt.Sprintf("way%d", i)
			d := drawn{Path: path, Family: familyOf(path.Name), About: about(path), Tall: way.tall(id + "t"), Sum: sum(path),
				Calls: calls(path.Calls)}
			if len(path.Crossings) <= most {
				d.Wide = append(d.Wide, way.wide(id+"w"))
			}
			p.Ways = append(p.Ways, d)
		}
		p.add(path)
	}
	return p
}

// add adds the rows of a path's devices and drops.
func (p *page) add(path *Path) {
	devices, drops := group{Name: path.Name}, group{Name: path.Name}
	for _, d := range path.Devices {
		devices.Rows = append(devices.Rows, []string{d.Name, grouped(d.Packets), number(d.Segments), grouped(d.Largest)})
	}
	for _, why := range slices.Sorted(maps.Keys(path.Drops)) {
		drops.Rows = append(drops.Rows, []string{why, grouped(path.Drops[why])})
	}
	if devices.Rows != nil {
		p.Devices = append(p.Devices, devices)
	}
	if drops.Rows != nil {
		p.Drops = append(p.Drops, drops)
	}
}

// keys are the answer in a few numbers, from overlayd's own path with offload, without, and
// the kernel's, as far as they ran.
func (r *Report) keys() []key {
	p := r.Path("userspace-udp")
	if p == nil || !p.Ran {
		return nil
	}
	plain := r.Path("userspace-udp-no-offload")
	with := func(text string, get func(*Path) float64) string {
		if plain == nil || !plain.Ran {
			return text
		}
		return text + "; without offload " + number(get(plain))
	}
	keys := []key{
		{"Each byte crosses", number(p.BytesCopied) + " times", with("between user and kernel, on both hosts together", figBytes.get)},
		{"In pieces of", number(perCopy(p)) + " packets", "a copy between user and kernel takes so many at once, on average"},
		{"That takes", number(p.Syscalls) + " calls", with("system calls per packet", figCalls.get)},
	}
	if base := r.Path(Base); base != nil && base.Ran && base.TCPGbps > 0 {
		keys = append(keys, key{"What comes out", ratio(p.TCPGbps/base.TCPGbps) + " ×",
			with(number(p.TCPGbps)+" Gb/s of TCP in one stream, to "+number(base.TCPGbps)+" of a kernel VXLAN", figTCP.get)})
	}
	return keys
}

// perCopy is how many packets cross in one copy: an overlay in userspace has four kinds of
// copies, two on each host.
func perCopy(p *Path) float64 {
	copies, places := 0.0, 0.0
	for _, c := range p.Crossings {
		if c.Counted && c.PerPacket > 0 {
			copies += c.PerPacket
			places++
		}
	}
	if copies == 0 {
		return 0
	}
	return places / copies
}

func halves(p *Path) cells {
	row := cells{Path: p, Family: familyOf(p.Name)}
	for _, v := range []float64{p.CopiesToUserSend, p.CopiesToUserRecv, p.CopiesFromUserSend, p.CopiesFromUserRecv,
		p.BytesCopiedSend, p.BytesCopiedRecv, p.SyscallsSend, p.SyscallsRecv, p.ContextSwitchesSend, p.ContextSwitchesRecv,
		p.CPUSecsPerGBDaemon} {
		row.Cells = append(row.Cells, number(v))
	}
	return row
}

// about is what was configured, and the version, which some programs give without a name.
func about(p *Path) string {
	version := p.Version
	if version != "" && !strings.Contains(version, " ") {
		version = "version " + version
	}
	if p.Detail != "" && version != "" {
		return p.Detail + "; " + version
	}
	return p.Detail + version
}

// sum says what the arrows of a path come to.
func sum(p *Path) string {
	if p.CopiesToUser+p.CopiesFromUser == 0 {
		return "No process of an overlay touches a packet."
	}
	return fmt.Sprintf("Both hosts together, per packet: %s copies to user, %s from user, %s system calls, %s context switches. "+
		"Each byte of payload crosses %s times.", number(p.CopiesToUser), number(p.CopiesFromUser), number(p.Syscalls),
		number(p.ContextSwitches), number(p.BytesCopied))
}

// calls lists the system calls, the most frequent first.
func calls(m map[string]float64) string {
	names := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		switch {
		case m[a] > m[b]:
			return -1
		case m[a] < m[b]:
			return 1
		}
		return strings.Compare(a, b)
	})
	for i, name := range names {
		names[i] = name + " " + number(m[name])
	}
	return strings.Join(names, ", ")
}

// grouped writes a count with blanks between thousands, which do not break lines.
func grouped(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}
