package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// PrintComparison writes the rows of Compare, and returns how many are worse. Figures that
// are 0 in both reports, as the kernel's paths have them, are left out.
func PrintComparison(w io.Writer, rows []Row) (worse int, err error) {
	var b strings.Builder
	fmt.Fprintf(&b, "%-25s %-30s %9s %9s %8s %7s  %s\n", "path", "figure", "old", "new", "change", "p", "verdict")
	tested, zero, absolute, last := 0, 0, false, ""
	for _, row := range rows {
		if row.Figure != "" && row.Old == 0 && row.New == 0 {
			zero++
			continue
		}
		name := row.Path
		if name == last {
			name = ""
		}
		last = row.Path
		if row.Figure == "" {
			fmt.Fprintf(&b, "%-25s %s (%s)\n", name, row.Verdict, oneLine(row.Note))
			continue
		}
		f, p := row.Figure, "-"
		if row.Ratio {
			f += " /base"
		}
		if row.P >= 0 {
			p = fmt.Sprintf("%.3f", row.P)
			tested++
		}
		absolute = absolute || !row.Ratio && row.Verdict != Machine && isSpeed(row.Figure)
		if row.Verdict == Worse {
			worse++
		}
		fmt.Fprintf(&b, "%-25s %-30s %9s %9s %8s %7s  %s\n", name, f, number(row.Old), number(row.New), row.change(), p, row.Verdict)
	}
	b.WriteString("\n")
	for _, note := range []struct {
		show bool
		text string
	}{
		{true, fmt.Sprintf("/base: medians of the ratios to the sample of %s of the same round, in the same run; its own rows, "+
			"\"machine\", show how the machine has changed.", Base)},
		{absolute, "Speeds without /base could not be divided: the drift of the machine is in them."},
		{tested > 0, fmt.Sprintf("p: Mann-Whitney, two-sided. A difference counts from %g and %g %% on. Of %d tests without any "+
			"real change, up to %.0f come out at that level by chance.", level, 100*minEffect, tested, level*float64(tested))},
		{zero > 0, fmt.Sprintf("%d rows are 0 in both.", zero)},
		{true, fmt.Sprintf("worse: %d", worse)},
	} {
		if note.show {
			b.WriteString(wrap(note.text, 118) + "\n")
		}
	}
	_, err = io.WriteString(w, b.String())
	return worse, err
}

// isSpeed tells whether a figure drifts with the machine.
func isSpeed(key string) bool {
	return slices.ContainsFunc(figures, func(f figure) bool { return f.key == key && f.kind == speed })
}

// change is by how much a figure changed, in percent.
func (r *Row) change() string {
	if r.Old == 0 {
		return "-"
	}
	return fmt.Sprintf("%+.1f %%", 100*(r.New-r.Old)/r.Old)
}
