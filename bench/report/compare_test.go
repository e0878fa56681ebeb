package report

import (
	"math"
	"strings"
	"testing"
)

// row is the row of a path's figure.
func row(t *testing.T, rows []Row, path, figure string) Row {
	t.Helper()
	for _, r := range rows {
		if r.Path == path && r.Figure == figure {
			return r
		}
	}
	t.Fatalf("no row of %s, %q", path, figure)
	return Row{}
}

// times multiplies the samples of a path's speeds.
func times(f float64) func(*Path) {
	return func(p *Path) {
		for _, v := range p.Samples {
			for i := range v {
				v[i] *= f
			}
		}
	}
}

// faster is the machine at another hour: every path's speeds and times.
func faster(f float64, r *Report) *Report {
	for i := range r.Paths {
		times(f)(&r.Paths[i])
	}
	return r
}

func TestCompareSame(t *testing.T) {
	for _, r := range Compare(sample(), sample()) {
		want := Same
		if r.Path == Base && isSpeed(r.Figure) {
			want = Machine
		}
		if r.Verdict != want {
			t.Errorf("%+v, want %s", r, want)
		}
	}
}

// A machine that is twice as fast changes no verdict.
func TestCompareMachine(t *testing.T) {
	rows := Compare(sample(), faster(2, sample()))
	for _, r := range rows {
		if r.Verdict != Same && r.Verdict != Machine {
			t.Errorf("%+v", r)
		}
		if isSpeed(r.Figure) && r.Path != Base && !r.Ratio {
			t.Errorf("no ratio: %+v", r)
		}
	}
	if r := row(t, rows, "nebula", "tcp_gbps"); math.Abs(r.Old-0.914/15.2) > 0.005 {
		t.Errorf("%+v", r)
	}
}

// A path that changes is found, although the machine is slower by half at the same time.
func TestCompareChange(t *testing.T) {
	rows := Compare(sample(), faster(0.5, changed(t, "userspace-udp", times(1.1))))
	for figure, want := range map[string]Verdict{
		"tcp_gbps": Better, "udp64_kpps": Better, "rtt_us_p50": Worse, "cpu_s_per_gb": Worse, "syscalls_per_packet": Same,
	} {
		if r := row(t, rows, "userspace-udp", figure); r.Verdict != want {
			t.Errorf("%+v, want %s", r, want)
		}
	}
	if r := row(t, rows, "nebula", "tcp_gbps"); r.Verdict != Same {
		t.Errorf("%+v", r)
	}
}

// Without Base in one of the two, what is compared is absolute, and says so.
func TestCompareWithoutBase(t *testing.T) {
	for name, spoil := range map[string]func(*Path){
		"not run":       func(p *Path) { *p = Path{Name: Base, Reason: "x"} },
		"fewer samples": func(p *Path) { p.Samples["tcp_gbps"] = p.Samples["tcp_gbps"][1:] },
		"a zero":        func(p *Path) { p.Samples["tcp_gbps"][2] = 0 },
	} {
		r := row(t, Compare(sample(), changed(t, Base, spoil)), "nebula", "tcp_gbps")
		if r.Ratio || r.Old != 0.914 || r.Verdict != Same {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestCompareMissing(t *testing.T) {
	old := changed(t, "nebula", func(p *Path) { *p = Path{Name: "nebula", Reason: "no network"} })
	old.Paths = old.Paths[:len(old.Paths)-1] // without flannel-vxlan
	for _, test := range []struct {
		rows []Row
		want Verdict
	}{{Compare(old, sample()), OnlyNew}, {Compare(sample(), old), OnlyOld}} {
		r := row(t, test.rows, "nebula", "")
		if r.Verdict != test.want || r.Note != "not run: no network" {
			t.Errorf("%+v, want %s", r, test.want)
		}
		for _, r := range test.rows {
			if strings.HasPrefix(r.Path, "flannel") || r.Path == "nebula" && r.Figure != "" {
				t.Errorf("%+v", r)
			}
		}
	}
	// A speed that was not measured is no speed of 0.
	rows := Compare(sample(), changed(t, "nebula", func(p *Path) { p.TCPGbps = 0; delete(p.Samples, "tcp_gbps") }))
	for _, r := range rows {
		if r.Path == "nebula" && r.Figure == "tcp_gbps" {
			t.Errorf("%+v", r)
		}
	}
}

func TestJudge(t *testing.T) {
	five := []float64{98, 99, 100, 101, 102}
	up := func(v []float64, f float64) []float64 {
		w := make([]float64, len(v))
		for i := range v {
			w[i] = v[i] * f
		}
		return w
	}
	three := []float64{99, 100, 101}
	for _, test := range []struct {
		name          string
		f             figure
		before, after []float64
		want          Verdict
	}{
		{"noise", figTCP, five, []float64{97, 103, 101, 102, 100}, Same},
		{"clear", figTCP, five, up(five, 1.1), Better},
		{"clear, less is better", figP50, five, up(five, 1.1), Worse},
		{"slower", figTCP, five, up(five, 0.9), Worse},
		{"faster", figP99, five, up(five, 0.9), Better},
		{"found by the test, but small", figTCP, []float64{100, 100.1, 100.2, 100.3}, []float64{101, 101.1, 101.2, 101.3}, Same},
		{"large, but not found by the test", figTCP, []float64{80, 100, 120, 140}, []float64{90, 125, 150, 160}, Same},
		{"ties all over", figTCP, []float64{100, 100, 100, 100}, []float64{100, 100, 100, 100}, Same},
		{"constants", figTCP, []float64{100, 100, 100, 100}, []float64{110, 110, 110, 110}, Better},
		{"three, clear", figTCP, three, up(three, 1.3), Better},
		{"three, ranges meet", figTCP, three, []float64{100.5, 115, 130}, TooFew},
		{"three, less than both ranges", figTCP, []float64{90, 100, 110}, []float64{115, 125, 135}, TooFew},
		{"three, small", figTCP, three, up(three, 1.05), TooFew},
		{"three, the same", figTCP, three, up(three, 1.01), Same},
		{"one says nothing of noise", figTCP, []float64{100}, []float64{200}, TooFew},
		{"five and three", figTCP, five, up(three, 1.3), Better},
	} {
		got, _ := judge(test.f, Median(test.before), Median(test.after), test.before, test.after)
		if got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
	for _, test := range []struct {
		name     string
		f        figure
		old, new float64
		want     Verdict
	}{
		{"a call more", figCalls, 2, 3, Worse},
		{"a call less", figCalls, 3, 2, Better},
		{"by 4 %", figBytes, 4, 4.16, Same},
		{"by half of little", figCalls, 0.03, 0.045, Same},
		{"from 0", figCalls, 0, 0.1, Worse},
		{"0", figCalls, 0, 0, Same},
		{"memory's mood", figMemory, 18, 19, Same},
		{"memory", figMemory, 18, 30, Worse},
		{"a speed without samples", figTCP, 1, 2, TooFew},
	} {
		if got, p := judge(test.f, test.old, test.new, nil, nil); got != test.want || p != -1 {
			t.Errorf("%s: %s (p %g), want %s", test.name, got, p, test.want)
		}
	}
}

func TestPrintComparison(t *testing.T) {
	new := changed(t, "userspace-udp", func(p *Path) { times(0.9)(p); p.Syscalls *= 2 })
	*new.Path("nebula") = Path{Name: "nebula", Reason: "no\nnetwork"}
	var b strings.Builder
	worse, err := PrintComparison(&b, Compare(sample(), new))
	if err != nil {
		t.Fatal(err)
	}
	// Four speeds are less, the times and the processor's time too, which is better.
	if worse != 5 {
		t.Errorf("%d are worse, want 5:\n%s", worse, b.String())
	}
	text := strings.Join(strings.Fields(b.String()), " ")
	for _, want := range []string{"-10.0 % 0.008 worse", "+100.0 % - worse", "machine", "nebula ran only in the old (not run: no network)", "worse: 5",
		"rows are 0 in both"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q:\n%s", want, b.String())
		}
	}
	if strings.Contains(text, "could not be divided") {
		t.Errorf("all could be divided:\n%s", b.String())
	}
	b.Reset()
	if _, err := PrintComparison(&b, Compare(sample(), changed(t, Base, func(p *Path) { p.Samples = nil }))); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "could not be divided") {
		t.Errorf("it does not say that the machine's drift is in it:\n%s", b.String())
	}
}
