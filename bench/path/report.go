package main

import (
	"fmt"
	"io"
	"slices"
)

// table collects what was measured: values[system][measurement] has one value per
// round.
type table struct {
	systems []*system
	rows    []measurement
	values  []map[string][]float64
}

func newTable(systems []*system, rows []measurement) *table {
	t := &table{systems: systems, rows: rows}
	for range systems {
		t.values = append(t.values, map[string][]float64{})
	}
	return t
}

func (t *table) add(system int, m measurement, v float64) {
	t.values[system][m.name] = append(t.values[system][m.name], v)
}

// vxlanLoss is how much of the udp encap's speed the vxlan encap may lose, and
// handoffLoss how much of the kernel VXLAN's that is made by hand one by hand-off may.
const (
	vxlanLoss   = 0.1
	handoffLoss = 0.05
)

// print writes the medians of all rounds, and of each system with a base the ratio to
// that: of the udp encap to the kernel's VXLAN with its goal, of the vxlan encap to the
// udp encap, and of a hand-off to the kernel's VXLAN.
func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "%-26s", fmt.Sprintf("medians of %d", len(t.values[0][t.rows[0].name])))
	for _, s := range t.systems {
		fmt.Fprintf(w, "%18s", s.name)
	}
	for _, s := range t.systems {
		if t.base(s) >= 0 {
			fmt.Fprintf(w, "  %-30s", s.name+" to "+s.base)
		}
	}
	fmt.Fprintln(w)
	for _, m := range t.rows {
		fmt.Fprintf(w, "%-26s", m.title)
		for i := range t.systems {
			fmt.Fprintf(w, "%18s", fmt.Sprintf("%.4g %s", median(t.values[i][m.name]), m.unit))
		}
		for i, s := range t.systems {
			base := t.base(s)
			if base < 0 {
				continue
			}
			ratio, goal := median(t.values[i][m.name])/median(t.values[base][m.name]), m.goal
			for name, loss := range map[string]float64{"overlaydvxlan": vxlanLoss, "handoff": handoffLoss} {
				if s.name != name {
					continue
				}
				if goal = 1 - loss; m.less {
					goal = 1 + loss
				}
			}
			sign, reached := ">=", ratio >= goal
			if m.less {
				sign, reached = "<=", ratio <= goal
			}
			word := "reached"
			if !reached {
				word = "missed"
			}
			fmt.Fprintf(w, "  %-30s", fmt.Sprintf("%.2f, %s%.2f %s", ratio, sign, goal, word))
		}
		fmt.Fprintln(w)
	}
}

// base is the system that s is compared with, -1 if it is not there.
func (t *table) base(s *system) int {
	return slices.IndexFunc(t.systems, func(o *system) bool { return o.name == s.base })
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
