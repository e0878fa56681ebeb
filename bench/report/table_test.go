package report

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 1: "1.00", 9.994: "9.99", 9.996: "10.0", 99.96: "100", 123.4: "123", 12345: "12345", 0.0312: "0.0312",
		0.00123: "0.0012", 0.00001: "<0.0001", -2.5: "-2.50", 0.9996: "1.00",
	} {
		if got := number(v); got != want {
			t.Errorf("%g: %s, want %s", v, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for v, want := range map[float64]string{0: "0 B", 1438.4: "1438 B", 44_800: "44.8 KB"} {
		if got := size(v); got != want {
			t.Errorf("%g: %s, want %s", v, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	r := sample()
	r.Path("flannel-udp").Reason = "line one\nline two"
	var b strings.Builder
	if err := r.Table(&b); err != nil {
		t.Fatal(err)
	}
	table, notes, ok := strings.Cut(b.String(), "\n\n")
	if !ok {
		t.Fatalf("no notes:\n%s", b.String())
	}
	lines := strings.Split(table, "\n")
	if len(lines) != 3+len(Names) {
		t.Fatalf("%d lines:\n%s", len(lines), table)
	}
	width := utf8.RuneCountInString(lines[2])
	if width < 110 || width > 130 {
		t.Errorf("%d columns:\n%s", width, table)
	}
	for i, name := range Names {
		line := lines[3+i]
		switch {
		case !strings.HasPrefix(line, name+" "):
			t.Errorf("line of %s: %s", name, line)
		case strings.HasPrefix(name, "flannel"):
			if !strings.Contains(line, "  not run: ") {
				t.Errorf("%s", line)
			}
		case utf8.RuneCountInString(line) != width:
			t.Errorf("%s is not %d wide: %s", name, width, line)
		}
	}
	for _, want := range []struct{ name, text string }{
		{"userspace-udp ", "1450   6.42  0.42   5.90   171    1.96   128   390   2.21  0.0657  0.0691    3.99  0.164  0.0279  18.6"},
		{"kernel-vxlan-by-hand", "1450   15.2  1.00   14.1   310    3.42  49.0   118  0.980       0       0       0      0       0     0"},
		{"wireguard-go *", " 0.21 "},
		{"flannel-udp", "not run: line one line two"},
	} {
		found := false
		for _, line := range lines {
			found = found || strings.HasPrefix(line, want.name) && strings.Contains(line, want.text)
		}
		if !found {
			t.Errorf("no line of %s has %q:\n%s", want.name, want.text, table)
		}
	}
	for _, want := range []string{"2026-03-14 09:26 UTC", "Linux 6.12.8", "iperf3 3.12", "medians of 5 interleaved rounds", "Counting runs are separate",
		"0.12 %", "* encrypts"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes do not say %q:\n%s", want, notes)
		}
	}
}

// Without Base there is no ratio, and no path is held against another one.
func TestTableWithoutBase(t *testing.T) {
	r := &Report{Host: sample().Host, Paths: []Path{*sample().Path("nebula")}}
	var b strings.Builder
	if err := r.Table(&b); err != nil {
		t.Fatal(err)
	}
	if line := strings.Split(b.String(), "\n")[3]; !strings.Contains(line, "0.914     -  0.870") {
		t.Errorf("%s", line)
	}
}

func TestMarkdown(t *testing.T) {
	r := sample()
	r.Path("flannel-udp").Reason = "a|b <script> `x`\n# y"
	var b strings.Builder
	if err := r.Markdown(&b); err != nil {
		t.Fatal(err)
	}
	table, under, _ := strings.Cut(b.String(), "\n\n")
	lines := strings.Split(table, "\n")
	if len(lines) != 2+len(Names) {
		t.Fatalf("%d lines:\n%s", len(lines), table)
	}
	for _, line := range lines {
		if got := strings.Count(strings.ReplaceAll(line, `\|`, ""), "|"); got != len(columns)+2 {
			t.Errorf("%d bars, want %d: %s", got, len(columns)+2, line)
		}
	}
	if want := "| flannel-udp | not run: a\\|b &lt;script&gt; \\`x\\` # y |"; !strings.Contains(table, want) {
		t.Errorf("no %q:\n%s", want, table)
	}
	for _, want := range []string{"2026-03-14", "Example CPU", "iperf3"} {
		if !strings.Contains(under, want) {
			t.Errorf("no %q under the table:\n%s", want, under)
		}
	}
}

// full is a writer without room.
type full struct{}

var errFull = errors.New("full")

func (full) Write([]byte) (int, error) { return 0, errFull }

func TestWriteFails(t *testing.T) {
	r := sample()
	_, compared := PrintComparison(full{}, Compare(r, r))
	for name, err := range map[string]error{
		"table": r.Table(full{}), "markdown": r.Markdown(full{}), "html": r.HTML(full{}), "comparison": compared, "json": r.Write(full{}),
	} {
		if !errors.Is(err, errFull) {
			t.Errorf("%s: %v, want %v", name, err, errFull)
		}
	}
}
