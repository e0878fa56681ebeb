package report

import (
	"math"
	"slices"
)

// Verdict is what a comparison says of a figure, or of a path.
type Verdict string

// The verdicts. Machine is said of Base itself where others are divided by it: it shows
// how much the machine has changed, and is neither better nor worse.
const (
	Better  Verdict = "better"
	Worse   Verdict = "worse"
	Same    Verdict = "same" // not to be told from noise
	TooFew  Verdict = "too few rounds"
	Machine Verdict = "machine"
	OnlyOld Verdict = "ran only in the old"
	OnlyNew Verdict = "ran only in the new"
)

// What it takes to call a difference one. Speeds need both a test and a size, since with
// many rounds a test finds differences that matter to nobody.
const (
	level      = 0.05 // of the test
	enough     = 4    // samples on each side: with fewer, no outcome of the test reaches level
	minEffect  = 0.03
	fewEffect  = 0.10 // with fewer samples
	countShare = 0.05 // of counts, that have no samples
	countLeast = 0.02
	memShare   = 0.10 // of memory without samples: the garbage collector's moods
	memLeast   = 1    // MiB
)

// Row is one line of a comparison: a figure of a path that both reports have, or, with
// Figure "", a path that ran in one of them only.
type Row struct {
	Path   string
	Figure string // its name in JSON
	// Old and New are medians; with Ratio, of the ratios to Base's sample of each round.
	Old, New float64
	Ratio    bool
	// P is the two-sided p-value of the test, -1 where there was none.
	P       float64
	Verdict Verdict
	// Note is the reason why a path did not run.
	Note string
}

// Compare compares two reports, figure by figure. What is measured in rounds is divided by
// Base's sample of the same round, where both reports have those, since a machine drifts by
// a factor of two from hour to hour and the ratio does not. A difference counts if the
// Mann-Whitney test finds it at 5 % and it is at least 3 %. With fewer than 4 samples it
// must be over 10 % and more than the two ranges together. Counts differ by over 5 % and
// more than 0.02.
func Compare(old, new *Report) []Row {
	var rows []Row
	for _, name := range bothNames(old, new) {
		o, n := old.Path(name), new.Path(name)
		oldRan, newRan := o != nil && o.Ran, n != nil && n.Ran
		switch {
		case oldRan && newRan:
			for _, f := range figures {
				if row, ok := compareFigure(f, old, new, o, n); ok {
					rows = append(rows, row)
				}
			}
		case oldRan:
			rows = append(rows, Row{Path: name, P: -1, Verdict: OnlyOld, Note: whyNot(n)})
		case newRan:
			rows = append(rows, Row{Path: name, P: -1, Verdict: OnlyNew, Note: whyNot(o)})
		}
	}
	return rows
}

// bothNames are the paths of either report, in the order of Names.
func bothNames(old, new *Report) []string {
	names := slices.Clone(Names)
	for _, r := range []*Report{old, new} {
		for _, p := range r.Paths {
			if !slices.Contains(names, p.Name) {
				names = append(names, p.Name)
			}
		}
	}
	return names
}

func whyNot(p *Path) string {
	switch {
	case p == nil:
		return "not in the other report"
	case p.Reason == "":
		return "not run"
	}
	return "not run: " + p.Reason
}

// compareFigure compares one figure of a path that ran in both; false if one of the
// reports does not have it.
func compareFigure(f figure, old, new *Report, o, n *Path) (Row, bool) {
	row := Row{Path: o.Name, Figure: f.key, Old: f.get(o), New: f.get(n), P: -1}
	before, after := o.Samples[f.key], n.Samples[f.key]
	if f.kind == speed {
		// A count of 0 is what the kernel's paths have, but nothing takes no time.
		if row.Old == 0 && len(before) == 0 || row.New == 0 && len(after) == 0 {
			return row, false
		}
		ro, okOld := toBase(f.key, before, old)
		rn, okNew := toBase(f.key, after, new)
		if okOld && okNew {
			if o.Name == Base {
				row.Verdict = Machine
				return row, true
			}
			row.Ratio, before, after = true, ro, rn
			row.Old, row.New = Median(ro), Median(rn)
		}
	}
	row.Verdict, row.P = judge(f, row.Old, row.New, before, after)
	return row, true
}

// toBase divides the samples of each round by Base's; false if they do not go together.
func toBase(key string, samples []float64, r *Report) ([]float64, bool) {
	base := r.Path(Base)
	if base == nil || !base.Ran || len(samples) == 0 || len(base.Samples[key]) != len(samples) {
		return nil, false
	}
	ratios := make([]float64, len(samples))
	for i, b := range base.Samples[key] {
		if b == 0 {
			return nil, false
		}
		ratios[i] = samples[i] / b
	}
	return ratios, true
}

// judge tells better from worse, and both from noise. The p-value is -1 if no test was
// made.
func judge(f figure, old, new float64, before, after []float64) (Verdict, float64) {
	way := Worse
	if (new > old) == f.higher {
		way = Better
	}
	switch few := min(len(before), len(after)); {
	case few >= enough:
		p := mannWhitney(before, after)
		if p <= level && differ(old, new, minEffect) {
			return way, p
		}
		return Same, p
	case f.kind == count:
		if differ(old, new, countShare) && math.Abs(new-old) > countLeast {
			return way, -1
		}
	case f.kind == memory && few == 0:
		if differ(old, new, memShare) && math.Abs(new-old) > memLeast {
			return way, -1
		}
	// One sample has no range, so it says nothing of the noise.
	case few >= 2 && differ(old, new, fewEffect) && math.Abs(new-old) > rangeOf(before)+rangeOf(after):
		return way, -1
	case differ(old, new, minEffect):
		return TooFew, -1
	}
	return Same, -1
}

// differ tells whether a change is of more than that share of the old value.
func differ(old, new, share float64) bool { return math.Abs(new-old) > share*math.Abs(old) }

func rangeOf(v []float64) float64 {
	s := SpreadOf(v)
	return s.Max - s.Min
}
