package report

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// column is one figure of the table, with a heading of three lines: three keep it narrow.
type column struct {
	head [3]string
	cell func(r *Report, p *Path) string
}

// title is the heading in one line.
func (c *column) title() string { return oneLine(strings.Join(c.head[:], " ")) }

// lines is the heading for the page: in two lines if that does not make it wide.
func (c *column) lines() string {
	between := "\n"
	if len(c.head[0])+len(c.head[1]) <= len("RTTp50") {
		between = " "
	}
	unbroken := strings.ReplaceAll(c.head[1], " ", "\u00a0")
	return strings.TrimSpace(c.head[0] + between + unbroken + "\n" + c.head[2])
}

func columnOf(one, two, unit string, f figure) column {
	return column{[3]string{one, two, unit}, func(_ *Report, p *Path) string { return number(f.get(p)) }}
}

var columns = []column{
	{[3]string{"", "", "MTU"}, func(_ *Report, p *Path) string { return fmt.Sprint(p.MTU) }},
	columnOf("TCP", "1", "Gb/s", figTCP),
	{[3]string{"", "to", "base"}, func(r *Report, p *Path) string { return r.toBase(p) }},
	columnOf("TCP", "4", "Gb/s", figTCP4),
	columnOf("UDP", "64 B", "kpps", figUDP64),
	columnOf("UDP", "1400 B", "Gb/s", figUDP1400),
	columnOf("RTT", "p50", "µs", figP50),
	columnOf("RTT", "p99", "µs", figP99),
	columnOf("", "CPU", "s/GB", figCPU),
	columnOf("copies", "to", "/pkt", figTo),
	columnOf("copies", "from", "/pkt", figFrom),
	columnOf("bytes", "copied", "/byte", figBytes),
	columnOf("sys", "calls", "/pkt", figCalls),
	columnOf("ctx", "switch", "/pkt", figSwitch),
	columnOf("", "mem", "MiB", figMemory),
}

// toBase is the ratio of one TCP stream to that of Base in this run.
func (r *Report) toBase(p *Path) string {
	base := r.Path(Base)
	if base == nil || base.TCPGbps == 0 {
		return "-"
	}
	return ratio(p.TCPGbps / base.TCPGbps)
}

// shown is a path's name with the mark of those that encrypt.
func shown(p *Path) string {
	if p.Encrypts {
		return p.Name + " *"
	}
	return p.Name
}

// Table writes all paths as a table for a terminal of 130 columns, one line a path, and
// below it what was measured and how.
func (r *Report) Table(w io.Writer) error {
	first, width := 0, make([]int, len(columns))
	for i := range r.Paths {
		first = max(first, utf8.RuneCountInString(shown(&r.Paths[i])))
	}
	for i, c := range columns {
		for _, h := range c.head {
			width[i] = max(width[i], utf8.RuneCountInString(h))
		}
		for j := range r.Paths {
			if p := &r.Paths[j]; p.Ran {
				width[i] = max(width[i], utf8.RuneCountInString(c.cell(r, p)))
			}
		}
	}
	var b strings.Builder
	line := func(name string, cell func(column) string) {
		row := fmt.Sprintf("%-*s", first, name)
		for i, c := range columns {
			row += fmt.Sprintf("  %*s", width[i], cell(c))
		}
		b.WriteString(strings.TrimRight(row, " ") + "\n")
	}
	for i, name := range []string{"", "", "path"} {
		line(name, func(c column) string { return c.head[i] })
	}
	for i := range r.Paths {
		p := &r.Paths[i]
		if !p.Ran {
			fmt.Fprintf(&b, "%-*s  not run: %s\n", first, p.Name, oneLine(p.Reason))
			continue
		}
		line(shown(p), func(c column) string { return c.cell(r, p) })
	}
	b.WriteString("\n")
	for _, note := range append([]string{r.machine(), r.load()}, r.notes()...) {
		b.WriteString(wrap(note, 118) + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Markdown writes the same table for a README, with the machine and the date under it.
func (r *Report) Markdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString("| path |")
	for _, c := range columns {
		b.WriteString(" " + c.title() + " |")
	}
	b.WriteString("\n| --- |" + strings.Repeat(" ---: |", len(columns)) + "\n")
	for i := range r.Paths {
		p := &r.Paths[i]
		if !p.Ran {
			fmt.Fprintf(&b, "| %s | not run: %s |%s\n", markdown(p.Name), markdown(p.Reason), strings.Repeat(" |", len(columns)-1))
			continue
		}
		b.WriteString("| " + markdown(shown(p)) + " |")
		for _, c := range columns {
			b.WriteString(" " + markdown(c.cell(r, p)) + " |")
		}
		b.WriteString("\n")
	}
	for _, note := range append([]string{r.machine() + ". " + r.load()}, r.notes()...) {
		b.WriteString("\n" + markdown(note) + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// oneLine keeps a reason that has several lines from tearing the table.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// markdown writes text so that none of it is taken for Markdown or HTML.
func markdown(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "|", `\|`, "*", `\*`, "_", `\_`, "`", "\\`",
		"[", `\[`, "]", `\]`, `\`, `\\`).Replace(oneLine(s))
}

// wrap breaks text at blanks into lines of at most width, and indents all but the first.
func wrap(text string, width int) string {
	var b strings.Builder
	at := 0
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case at+1+n > width:
			b.WriteString("\n  ")
			at = 2
		default:
			b.WriteString(" ")
			at++
		}
		b.WriteString(word)
		at += n
	}
	return b.String()
}
