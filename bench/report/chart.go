package report

import "math"

// chart is a figure of all paths as bars.
type chart struct {
	Title, Unit string
	Note        string // which way is better
	Parts       [2]string
	// Step is the distance of the grid's lines, in percent of the width, and Ticks their
	// values.
	Step  float64
	Ticks []tick
	Bars  []bar
}

type tick struct {
	At    float64 // percent
	Label string
}

// bar is one path. Positions are in percent of the chart's width.
type bar struct {
	Name     string
	Family   family
	Base     bool
	Encrypts bool
	Value    string
	Ratio    string  // to Base
	Width    float64 // of the whole bar
	Part     float64 // of its first part, 0 if it has none
	HasRange bool
	Q1, Q3   float64
	Spoken   string // of the spread, or the parts
}

// chartOf draws a figure of the paths that ran. With part, the first of two parts of the
// bar has another shade: what it is is in Parts.
func (r *Report) chartOf(f figure, note string, parts [2]string, part func(*Path) float64) chart {
	c := chart{Title: f.title, Unit: f.unit, Note: note, Parts: parts}
	top, based := 0.0, 0.0
	for i := range r.Paths {
		if p := &r.Paths[i]; p.Ran {
			if v := max(f.get(p), p.Spread[f.key].Q3); v > top && !math.IsInf(v, 0) {
				top = v
			}
			if p.Name == Base {
				based = f.get(p)
			}
		}
	}
	step := gridStep(top)
	whole := max(top, step) * 1.03 // so that the end of the longest is seen
	at := func(v float64) float64 { return min(max(0, 100*v/whole), 100) }
	c.Step = at(step)
	for v := 0.0; v <= whole; v += step {
		c.Ticks = append(c.Ticks, tick{at(v), tickLabel(v, step)})
	}
	for i := range r.Paths {
		p := &r.Paths[i]
		if !p.Ran {
			continue
		}
		v := f.get(p)
		b := bar{Name: p.Name, Family: familyOf(p.Name), Base: p.Name == Base, Encrypts: p.Encrypts, Value: number(v), Width: at(v)}
		if part != nil && v > 0 {
			b.Part = 100 * part(p) / v
			b.Spoken = number(part(p)) + " " + parts[0]
		}
		if s, ok := p.Spread[f.key]; ok {
			b.HasRange, b.Q1, b.Q3 = true, at(s.Q1), at(s.Q3)
			b.Spoken = "quartiles " + number(s.Q1) + " to " + number(s.Q3)
		}
		switch {
		case based == 0 || f.kind != speed:
		case b.Base:
			b.Ratio = "base"
		default:
			b.Ratio = ratio(v/based) + " ×"
		}
		c.Bars = append(c.Bars, b)
	}
	return c
}

// gridStep is the distance of three to five lines up to v, a round number.
func gridStep(v float64) float64 {
	if v <= 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return 1
	}
	raw := v / 4
	e := math.Pow(10, math.Floor(math.Log10(raw)))
	for _, m := range []float64{1, 2, 5} {
		if raw <= m*e {
			return m * e
		}
	}
	return 10 * e
}

// tickLabel writes a value of the grid with no more digits than the step has.
func tickLabel(v, step float64) string {
	digits := max(0, int(-math.Floor(math.Log10(step))))
	return fixed(v, digits)
}
