package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	const good = `{"Action":"output","Package":"p","Test":"TestA","Output":"chatter\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
`
	const skip = `{"Action":"output","Package":"p","Test":"TestB","Output":"needs root\n"}
{"Action":"skip","Package":"p","Test":"TestB"}
`
	const fail = `{"Action":"output","Package":"q","Test":"TestC/sub","Output":"got 1, want 2\n"}
{"Action":"output","Package":"q","Test":"TestD","Output":"of another\n"}
{"Action":"fail","Package":"q","Test":"TestC/sub"}
{"Action":"fail","Package":"q","Test":"TestC"}
{"Action":"fail","Package":"q"}
`
	const hang = `{"Action":"output","Package":"q","Test":"TestC/sub","Output":"waiting\n"}
{"Action":"output","Package":"q","Test":"TestC","Output":"panic: test timed out\n"}
{"Action":"fail","Package":"q","Test":"TestC"}
`
	const build = `{"ImportPath":"q","Action":"build-output","Output":"q.go:1: oops\n"}
{"ImportPath":"q","Action":"build-fail"}
{"Action":"fail","Package":"q"}
`
	for _, test := range []struct {
		name, in     string
		ok           bool
		want, unlike string
	}{
		{"Good", good, true, "ok  \tp\t0.1s\n1 tests and subtests in 1 packages passed", "chatter"},
		{"Skipped", good + skip, false, "skipped (allowed: false): p\nneeds root", ""},
		{"MaySkip", good + strings.ReplaceAll(skip, "TestB", "TestMay"), true, "skipped (allowed: true)", ""},
		{"PackageWithoutTests", good + `{"Action":"skip","Package":"none"}` + "\n", true, "1 packages", "skipped"},
		{"Failed", good + fail, false, "got 1, want 2", "of another"},
		{"Hanging", good + hang, false, "panic: test timed out\nwaiting", ""},
		{"NotBuilt", good + build, false, "q.go:1: oops", ""},
		{"NotJSON", "+ go test\n" + good, true, "+ go test\n", ""},
		{"Nothing", "", false, "no package was tested", ""},
		{"Unfinished", good + `{"Action":"out`, true, `{"Action":"out`, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			ok, err := report(strings.NewReader(test.in), &out, []string{"TestMay"})
			if err != nil {
				t.Fatal(err)
			}
			if ok != test.ok {
				t.Errorf("ok is %t", ok)
			}
			if got := out.String(); !strings.Contains(got, test.want) || test.unlike != "" && strings.Contains(got, test.unlike) {
				t.Errorf("want %q, and not %q, got:\n%s", test.want, test.unlike, got)
			}
		})
	}
}

func TestTail(t *testing.T) {
	if got := tail("a\nb\n"); got != "a\nb\n" {
		t.Errorf("a short text became %q", got)
	}
	long := strings.Repeat("0123456789\n", maxOutput)
	if got := tail(long); len(got) > maxOutput+10 || !strings.HasPrefix(got, "[...]\n0") || !strings.HasSuffix(got, "9\n") {
		t.Errorf("a long text became %q and so on, %d bytes", got[:20], len(got))
	}
}
