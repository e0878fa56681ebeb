package report

import (
	"fmt"
	"slices"
	"strings"
)

// way is a packet's way through user and kernel, in steps from the sending program to the
// receiving one. It is what both drawings of a path are made of.
type way struct {
	path  *Path
	steps []step
	users []span
}

// step is one part of the kernel, with the crossing that leads to or from it, if any.
type step struct {
	host     string // "send", "recv", or "" between them
	kernel   []string
	crossing *Crossing
	// linked tells that the packet goes on to the next step within the kernel.
	linked bool
}

// span is a program in the user lane, above the steps from..to.
type span struct {
	from, to int
	name     string
	host     string
	daemon   bool
}

// wayOf lays out the crossings of a path; its steps are empty if there are none.
func wayOf(p *Path) *way {
	w := &way{path: p}
	if len(p.Crossings) == 0 {
		return w
	}
	counted := slices.ContainsFunc(p.Crossings, func(c Crossing) bool { return c.Place != "app" })
	add := func(s step) { w.steps = append(w.steps, s) }
	device := func(host string) {
		if c := carrier(p.Name); !counted && c != "" {
			add(step{host: host, kernel: []string{c}})
		}
	}
	underlay := func() {
		device("send")
		add(step{kernel: []string{"underlay"}})
		device("recv")
	}
	sent := false
	for i := range p.Crossings {
		c := &p.Crossings[i]
		if c.Host == "recv" && !sent {
			underlay()
			sent = true
		}
		add(step{host: c.Host, kernel: kernelPart(p.Name, c), crossing: c})
	}
	for i := 0; i+1 < len(w.steps); i++ {
		after, before := w.steps[i].crossing, w.steps[i+1].crossing
		w.steps[i].linked = (after == nil || !after.ToUser) && (before == nil || before.ToUser)
	}
	w.span()
	return w
}

// kernelPart is what a crossing leads to or from.
func kernelPart(path string, c *Crossing) []string {
	switch c.Place {
	case "app":
		parts := ends(path)
		if c.ToUser {
			slices.Reverse(parts) // in the order of the packet's way
		}
		return parts
	case "tun":
		return []string{"TUN"}
	case "udp":
		return []string{"UDP socket"}
	}
	return []string{c.Place}
}

// span puts the programs above the steps: one that has several crossings in a row once.
func (w *way) span() {
	for i, s := range w.steps {
		if s.crossing == nil {
			continue
		}
		u := span{i, i, "sending program", s.host, s.crossing.Place != "app"}
		switch {
		case u.daemon:
			u.name = daemon(w.path.Name)
		case s.crossing.ToUser:
			u.name = "receiving program"
		}
		if n := len(w.users); n > 0 {
			if last := &w.users[n-1]; last.to == i-1 && last.daemon && u.daemon && last.host == u.host {
				last.to = i
				continue
			}
		}
		w.users = append(w.users, u)
	}
}

// labels are what stands beside a crossing's arrow: how often, by what, how large, and the
// call.
func labels(c *Crossing) [4]string {
	if !c.Counted {
		return [4]string{"once", "by definition", "for each byte", short(c.Calls)}
	}
	return [4]string{number(c.PerPacket), "per packet", size(c.Bytes) + " each", short(c.Calls)}
}

// short cuts what would run into the next arrow.
func short(s string) string {
	const room = 15
	if r := []rune(s); len(r) > room {
		return string(r[:room-1]) + "…"
	}
	return s
}

// spoken says the whole way in words, for who does not see the drawing.
func (w *way) spoken() string {
	var said []string
	for _, s := range w.steps {
		c := s.crossing
		if c == nil {
			said = append(said, strings.Join(s.kernel, ", "))
			continue
		}
		host, where := "sending host", "from user into the kernel"
		if c.Host == "recv" {
			host = "receiving host"
		}
		if c.ToUser {
			where = "from the kernel to user"
		}
		how := "by definition once for each byte"
		if c.Counted {
			how = fmt.Sprintf("%s copies per packet of %s each, by %s", number(c.PerPacket), size(c.Bytes), c.Calls)
		}
		said = append(said, fmt.Sprintf("%s, %s: %s, %s", host, strings.Join(s.kernel, " and "), where, how))
	}
	return strings.Join(said, "; then ") + "."
}
