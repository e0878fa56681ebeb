package report

import (
	"fmt"
	"math"
	"strings"
)

// drawing is an SVG: boxes, strokes and text, with positions in its own units, which are
// about pixels. It is drawn in two shapes, since text that is scaled down to a phone cannot
// be read.
type drawing struct {
	ID, Shape     string // the shape is "wide" or "tall", or "tall only": its class
	Title, Desc   string
	Width, Height int
	Boxes         []box
	Strokes       []stroke
	Words         []word
}

type box struct {
	X, Y, W, H float64
	Class      string
}

// stroke is a line with an arrow's head at its end; D and Head are SVG paths.
type stroke struct {
	D, Head, Class string
	Weight         float64
}

type word struct {
	X, Y  float64
	Class string
	Text  string
}

func (d *drawing) box(x, y, w, h float64, class string, lines ...string) {
	d.Boxes = append(d.Boxes, box{x, y, w, h, class})
	for i, l := range lines {
		// 4 puts the middle of a letter on the line, 15 is the distance of lines.
		d.Words = append(d.Words, word{x + w/2, y + h/2 + 4 + 15*(float64(i)-float64(len(lines)-1)/2), "mid", l})
	}
}

// arrow draws from one point to another, across or up and down.
func (d *drawing) arrow(x1, y1, x2, y2, weight float64, class string) {
	long := math.Hypot(x2-x1, y2-y1)
	ux, uy := (x2-x1)/long, (y2-y1)/long
	head := 5 + weight
	bx, by := x2-ux*head, y2-uy*head // where the head begins
	half := head * 0.55
	d.Strokes = append(d.Strokes, stroke{
		fmt.Sprintf("M%.1f %.1fL%.1f %.1f", x1, y1, bx, by),
		fmt.Sprintf("M%.1f %.1fL%.1f %.1fL%.1f %.1fZ", x2, y2, bx-uy*half, by+ux*half, bx+uy*half, by-ux*half),
		class, weight,
	})
}

// weight is how thick a crossing's arrow is: the more copies per packet, the thicker, from
// one for a hundred packets to one for each.
func weight(c *Crossing) (w float64, class string) {
	if !c.Counted {
		return 1, "defined"
	}
	if c.PerPacket <= 0 {
		return 1.5, "counted"
	}
	return min(max(1.5+1.5*math.Log10(c.PerPacket/0.01), 1.5), 5), "counted"
}

// hosts calls f for the steps from..to of each host.
func (w *way) hosts(f func(from, to int, name string)) {
	for i := 0; i < len(w.steps); i++ {
		from := i
		for i+1 < len(w.steps) && w.steps[i+1].host == w.steps[from].host {
			i++
		}
		switch w.steps[from].host {
		case "send":
			f(from, i, "sending host")
		case "recv":
			f(from, i, "receiving host")
		}
	}
}

// most is how many crossings have room beside each other.
const most = 6

// wide draws from left to right, the user lane above the kernel's.
func (w *way) wide(id string) drawing {
	const (
		margin, whole = 58, 1040
		pad           = 8.0
		userTop       = 24.0
		userBottom    = 92.0
		kernTop       = 188.0
		kernBottom    = 252.0
	)
	// What has no label is narrower, and no step is wider than it needs to be.
	const narrow, widest = 0.66, 200.0
	shares := make([]float64, len(w.steps)+1) // of all before a step
	for i, s := range w.steps {
		shares[i+1] = shares[i] + 1
		if s.crossing == nil {
			shares[i+1] = shares[i] + narrow
		}
	}
	col := min((whole-margin)/shares[len(w.steps)], widest)
	left := func(i int) float64 { return margin + shares[i]*col }
	d := drawing{ID: id, Shape: "wide", Title: w.title(), Desc: w.spoken(), Width: whole, Height: 260}
	d.Words = append(d.Words, word{0, (userTop+userBottom)/2 + 4, "lane", "user"},
		word{0, (kernTop+kernBottom)/2 + 4, "lane", "kernel"})
	w.hosts(func(from, to int, name string) {
		x, wide := left(from)+2, left(to+1)-left(from)-4
		d.box(x, userTop, wide, userBottom-userTop, "lane-user")
		d.box(x, kernTop, wide, kernBottom-kernTop, "lane-kernel")
		d.box(x, userTop, wide, kernBottom-userTop, "host")
		d.Words = append(d.Words, word{x + 2, userTop - 8, "dim", name})
	})
	for _, u := range w.users {
		d.box(left(u.from)+pad, userTop+10, left(u.to+1)-left(u.from)-2*pad, userBottom-userTop-20, programClass(u), u.name)
	}
	for i, s := range w.steps {
		d.box(left(i)+pad, kernTop+10, left(i+1)-left(i)-2*pad, kernBottom-kernTop-20, kernelClass(s), s.kernel...)
		if s.linked {
			d.arrow(left(i+1)-pad, (kernTop+kernBottom)/2, left(i+1)+pad, (kernTop+kernBottom)/2, 1, "inside")
		}
		if s.crossing == nil {
			continue
		}
		x, up, down := left(i)+20, userBottom-10, kernTop+10
		if !s.crossing.ToUser {
			up, down = down, up
		}
		thick, class := weight(s.crossing)
		d.arrow(x, down, x, up, thick, class)
		for j, l := range labels(s.crossing) {
			class := [4]string{"strong", "plain", "plain", "call"}[j]
			d.Words = append(d.Words, word{x + 12, userBottom + 26 + 16*float64(j), class, l})
		}
	}
	return d
}

// tall draws from top to bottom, the user lane left of the kernel's, for a phone.
func (w *way) tall(id string) drawing {
	const (
		whole, lane = 340.0, 104.0
		pad         = 6.0
		crossed     = 78.0 // the height of a step with a crossing
		plain       = 46.0
		headed      = 24.0 // of a host's name
	)
	shape := "tall"
	if len(w.path.Crossings) > most {
		shape = "tall only"
	}
	d := drawing{ID: id, Shape: shape, Title: w.title(), Desc: w.spoken(), Width: whole}
	tops, high := make([]float64, len(w.steps)), make([]float64, len(w.steps))
	y := 20.0
	w.hosts(func(from, _ int, _ string) { tops[from] = headed })
	for i, s := range w.steps {
		y += tops[i]
		tops[i], high[i] = y, plain
		if s.crossing != nil {
			high[i] = crossed
		}
		y += high[i]
	}
	d.Height = int(y) + 4
	d.Words = append(d.Words, word{lane / 2, 12, "mid lane", "user"}, word{whole - lane/2, 12, "mid lane", "kernel"})
	w.hosts(func(from, to int, name string) {
		tall := tops[to] + high[to] - tops[from]
		d.box(1, tops[from], lane, tall, "lane-user")
		d.box(whole-lane-1, tops[from], lane, tall, "lane-kernel")
		d.box(1, tops[from], whole-2, tall, "host")
		d.Words = append(d.Words, word{3, tops[from] - 7, "dim", name})
	})
	for _, u := range w.users {
		lines := []string{u.name}
		if !u.daemon {
			lines = strings.Fields(u.name)
		}
		d.box(1+pad, tops[u.from]+pad, lane-2*pad, tops[u.to]+high[u.to]-tops[u.from]-2*pad, programClass(u), lines...)
	}
	for i, s := range w.steps {
		d.box(whole-lane-1+pad, tops[i]+pad, lane-2*pad, high[i]-2*pad, kernelClass(s), s.kernel...)
		if s.linked {
			d.arrow(whole-lane/2, tops[i]+high[i]-pad, whole-lane/2, tops[i+1]+pad, 1, "inside")
		}
		if s.crossing == nil {
			continue
		}
		at, l, r := tops[i]+32, 1+lane-pad, whole-lane-1+pad
		if s.crossing.ToUser {
			l, r = r, l
		}
		thick, class := weight(s.crossing)
		d.arrow(l, at, r, at, thick, class)
		label := labels(s.crossing)
		d.Words = append(d.Words, word{whole / 2, at - 9, "mid strong", label[0] + " " + label[1]},
			word{whole / 2, at + 18, "mid plain", label[2]}, word{whole / 2, at + 33, "mid call", label[3]})
	}
	return d
}

func (w *way) title() string { return "The way of a packet: " + w.path.Name }

func programClass(u span) string {
	if u.daemon {
		return "program daemon"
	}
	return "program"
}

func kernelClass(s step) string {
	if s.host == "" {
		return "part wire"
	}
	return "part"
}
