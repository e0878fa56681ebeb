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

// print writes the medians of all rounds, and the last system's ratio to the first.
func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "%-26s", fmt.Sprintf("medians of %d", len(t.values[0][t.rows[0].name])))
	for _, s := range t.systems {
		fmt.Fprintf(w, "%18s", s.name)
	}
	fmt.Fprintf(w, "%10s%8s\n", "ratio", "goal")
	for _, m := range t.rows {
		fmt.Fprintf(w, "%-26s", m.title)
		for i := range t.systems {
			fmt.Fprintf(w, "%18s", fmt.Sprintf("%.4g %s", median(t.values[i][m.name]), m.unit))
		}
		if len(t.systems) > 1 {
			ratio := median(t.values[len(t.systems)-1][m.name]) / median(t.values[0][m.name])
			sign, reached := ">=", ratio >= m.goal
			if m.less {
				sign, reached = "<=", ratio <= m.goal
			}
			word := "reached"
			if !reached {
				word = "missed"
			}
			fmt.Fprintf(w, "%10.2f%8s  %s", ratio, fmt.Sprintf("%s%.2f", sign, m.goal), word)
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
