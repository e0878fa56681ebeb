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

// vxlanLoss is how much of the udp encap's speed the vxlan encap may lose.
const vxlanLoss = 0.1

// print writes the medians of all rounds, and for each system the ratio to the one
// before it: that of the udp encap to the kernel's VXLAN with its goal, and that of
// the vxlan encap to the udp encap, which should be within vxlanLoss.
func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "%-26s", fmt.Sprintf("medians of %d", len(t.values[0][t.rows[0].name])))
	for _, s := range t.systems {
		fmt.Fprintf(w, "%18s", s.name)
	}
	for _, s := range t.systems[1:] {
		fmt.Fprintf(w, "  %-28s", s.name+" to the left")
	}
	fmt.Fprintln(w)
	for _, m := range t.rows {
		fmt.Fprintf(w, "%-26s", m.title)
		for i := range t.systems {
			fmt.Fprintf(w, "%18s", fmt.Sprintf("%.4g %s", median(t.values[i][m.name]), m.unit))
		}
		for i := range t.systems[1:] {
			ratio, goal := median(t.values[i+1][m.name])/median(t.values[i][m.name]), m.goal
			if t.systems[i+1].name == "overlaydvxlan" {
				if goal = 1 - vxlanLoss; m.less {
					goal = 1 + vxlanLoss
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
			fmt.Fprintf(w, "  %-28s", fmt.Sprintf("%.2f, %s%.2f %s", ratio, sign, goal, word))
		}
		fmt.Fprintln(w)
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
