package house

import (
	"strings"
	"testing"
)

// rule looks at a file and says what is wrong with it.
type rule struct {
	name  string
	check func(*source) []string
}

var rules = []rule{
	{"rooms", rooms},
	{"dependencies", dependencies},
	{"pure", pure},
	{"quiet", quiet},
	{"sleepless", sleepless},
	{"finished", finished},
	{"short", short},
	{"documented", documented},
}

func TestHouse(t *testing.T) {
	all := sources(t)
	// A walk that finds nothing finds nothing wrong.
	for _, path := range []string{"node.go", "encap/frame.go", "tunnel/water_other.go", "cmd/overlayd/main.go", "internal/house/house_test.go"} {
		found := false
		for _, s := range all {
			found = found || s.path == path
		}
		if !found {
			t.Errorf("%s was not read", path)
		}
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			for _, s := range all {
				for _, complaint := range r.check(s) {
					t.Errorf("%s: %s", s.path, complaint)
				}
			}
		})
	}
}

// Each rule finds what it is there to find, and nothing in what is allowed.
func TestRules(t *testing.T) {
	const m = module
	imports := func(pkg string, paths ...string) string {
		return "package " + pkg + "\nimport (\n\"" + strings.Join(paths, "\"\n\"") + "\"\n)\n"
	}
	for _, test := range []struct {
		rule string
		path string
		src  string
		want string // part of the only complaint; empty: none
	}{
		{"rooms", "encap/a.go", imports("encap", m+"/tunnel"), "encap knows nothing of ours"},
		{"rooms", "membership/a_test.go", imports("membership", m+"/internal/forward"), "membership knows nothing of ours"},
		{"rooms", "tunnel/a.go", imports("tunnel", m), "tunnel knows nothing of ours"},
		{"rooms", "tunnel/tunneltest/a.go", imports("tunneltest", m+"/tunnel"), ""},
		{"rooms", "tunnel/a_test.go", imports("tunnel_test", m+"/tunnel", m+"/tunnel/tunneltest"), ""},
		{"rooms", "tunnel/a.go", imports("tunnel", m+"/tunnel/tunneltest"), "for tests only"},
		{"rooms", "internal/forward/a.go", imports("forward", m), "internal rooms import"},
		{"rooms", "internal/forward/a_test.go", imports("forward", m), "internal rooms import"},
		{"rooms", "internal/e2e/a_test.go", imports("e2e", m), ""},
		{"rooms", "internal/e2e/a.go", imports("e2e", m), "internal rooms import"},
		{"rooms", "internal/forward/a.go", imports("forward", m+"/cmd/overlayd"), "internal rooms import"},
		{"rooms", "internal/forward/a.go", imports("forward", m+"/internal/probe", m+"/tunnel", m+"/encap", m+"/membership"), ""},
		{"rooms", "internal/probe/a.go", imports("probe", m+"/internal/kernel/lab"), "the lab is for tests"},
		{"rooms", "internal/probe/a_test.go", imports("probe", m+"/internal/kernel/lab"), ""},
		{"rooms", "a.go", imports("overlayd", m+"/cmd/overlayd"), "the root package imports"},
		{"rooms", "a.go", imports("overlayd", m+"/examples/embed"), "the root package imports"},
		{"rooms", "a.go", imports("overlayd", m+"/internal/kernel/lab"), "the lab is for tests"},
		{"rooms", "a_test.go", imports("overlayd_test", m, m+"/internal/kernel/lab/labtest"), ""},
		{"rooms", "a.go", imports("overlayd", m+"/internal/forward", m+"/tunnel"), ""},
		{"rooms", "cmd/overlayd/a.go", imports("main", m+"/internal/forward"), "use the root package"},
		{"rooms", "cmd/overlayd/a_test.go", imports("main", m+"/internal/control"), "use the root package"},
		{"rooms", "cmd/overlayd/a.go", imports("main", m+"/internal/kernel/lab/labtest"), "for tests only"},
		{"rooms", "cmd/overlayd/a.go", imports("main", m, m+"/internal/kernel/lab"), ""},
		{"rooms", "bench/a.go", imports("main", m+"/internal/kernel"), "use the root package"},
		{"rooms", "bench/a.go", imports("main", m, m+"/tunnel", m+"/internal/kernel/lab"), ""},
		{"rooms", "bench/report/a_test.go", imports("report", m+"/internal/browsertest"), ""},
		{"rooms", "bench/report/a.go", imports("report", m+"/internal/browsertest"), "for tests only"},
		{"rooms", "cmd/overlayd/a_test.go", imports("main", m+"/internal/browsertest"), "use the root package"},
		{"rooms", "examples/embed/a.go", imports("main", m+"/internal/kernel/lab"), "what its readers can use"},
		{"rooms", "examples/a_test.go", imports("examples", m+"/internal/forward"), "what its readers can use"},
		{"rooms", "examples/embed/a.go", imports("main", m, m+"/tunnel"), ""},
		{"rooms", "attic/a.go", imports("attic", m), "no rule for attic"},

		{"dependencies", "a.go", imports("overlayd", "github.com/vishvananda/netlink"), "one room reaches the kernel"},
		{"dependencies", "internal/forward/a_test.go", imports("forward", "github.com/vishvananda/netns"), "one room reaches the kernel"},
		{"dependencies", "internal/probe/a.go", imports("probe", "github.com/google/nftables/expr"), "one room reaches the kernel"},
		{"dependencies", "internal/probe/a.go", imports("probe", "github.com/mdlayher/netlink"), "one room reaches the kernel"},
		{"dependencies", "internal/kernel/a.go", imports("kernel", "github.com/vishvananda/netlink", "github.com/google/nftables"), ""},
		{"dependencies", "internal/kernel/lab/a.go", imports("lab", "github.com/vishvananda/netlink"), ""},
		{"dependencies", "internal/kernels/a.go", imports("kernels", "github.com/vishvananda/netlink"), "one room reaches the kernel"},
		{"dependencies", "internal/forward/rx.go", imports("forward", "github.com/google/gopacket/layers"), "read and written by hand"},
		{"dependencies", "internal/kernel/lab/a.go", imports("lab", "github.com/google/gopacket"), "read and written by hand"},
		{"dependencies", "internal/forward/rx_test.go", imports("forward", "github.com/google/gopacket"), ""},
		{"dependencies", "internal/forward/a.go", imports("forward", "github.com/songgao/water"), "behind tunnel.Device"},
		{"dependencies", "tunnel/a.go", imports("tunnel", "github.com/songgao/water"), ""},
		{"dependencies", "a.go", imports("overlayd", "github.com/hashicorp/memberlist"), "behind membership.Member"},
		{"dependencies", "membership/a.go", imports("membership", "github.com/hashicorp/memberlist"), ""},
		{"dependencies", "a.go", imports("overlayd", "sigs.k8s.io/yaml"), "libraries take a Config"},
		{"dependencies", "a.go", imports("overlayd", "testing"), "it is for tests"},
		{"dependencies", "internal/kernel/kerneltest/a.go", imports("kerneltest", "testing"), ""},
		{"dependencies", "membership/a.go", imports("membership", "pgregory.net/rapid"), "it is for tests"},

		{"pure", "encap/a.go", imports("encap", "net"), "encap does no I/O"},
		{"pure", "encap/a.go", imports("encap", "net/netip"), ""},
		{"pure", "tunnel/a.go", imports("tunnel", "net"), ""},

		{"quiet", "tunnel/a.go", "package tunnel\nimport \"os\"\nfunc f() { os.Exit(1) }", "does not end the process"},
		{"quiet", "tunnel/a.go", "package tunnel\nimport l \"log\"\nfunc f() { l.Fatalf(\"x\") }", "line 3: calls Fatalf"},
		{"quiet", "tunnel/a.go", "package tunnel\nimport \"log\"\nfunc f() { log.Println() }", "that it was given"},
		{"quiet", "tunnel/a.go", "package tunnel\nimport \"fmt\"\nfunc f() { fmt.Printf(\"x\") }", "does not print"},
		{"quiet", "tunnel/a.go", "package tunnel\nfunc f() { println() }", "does not print"},
		{"quiet", "tunnel/a.go", "package tunnel\nfunc f() { panic(1) }", "returns errors"},
		{"quiet", "tunnel/a.go", "package tunnel\nfunc init() {}", "nothing before it is called"},
		{"quiet", "tunnel/a.go", "package tunnel\nimport \"fmt\"\nfunc f() { fmt.Sprint(1); x.init(); log.Fatal() }", ""},
		{"quiet", "tunnel/a_test.go", "package tunnel\nfunc f() { panic(1) }", ""},
		{"quiet", "cmd/overlayd/a.go", "package main\nimport \"os\"\nfunc f() { os.Exit(1) }", ""},

		{"sleepless", "a_test.go", "package overlayd\nimport \"time\"\nfunc f() { time.Sleep(1) }", "line 3: time.Sleep"},
		{"sleepless", "internal/kernel/lab/labtest/a.go", "package labtest\nimport t \"time\"\nfunc f() { t.Sleep(1) }", "line 3: time.Sleep"},
		{"sleepless", "a_test.go", "package overlayd\nimport (\n\"time\"\n\"testing/synctest\"\n)\nfunc f() { time.Sleep(1) }", ""},

		{"finished", "a.go", "package overlayd\n\n// " + reminders[0] + ": more\n", "line 3"},
		{"finished", "a.go", "package overlayd\n\n/*\n" + reminders[1] + " */\n", "do it"},
		{"finished", "a.go", "package overlayd\n\nvar s = \"" + reminders[0] + "\"\n", ""},

		{"short", "a.go", "package overlayd" + strings.Repeat("\n", maxLines+1), "601 lines"},
		{"short", "a.go", "package overlayd" + strings.Repeat("\n", maxLines), ""},

		{"documented", "a.go", "package overlayd\nfunc F() {}", "line 2: F has no comment"},
		{"documented", "a.go", "package overlayd\ntype T[P any] struct{}\nfunc (t *T[P]) m() {}", "T has no comment"},
		{"documented", "a.go", "package overlayd\n// T is.\ntype T[P any] struct{}\nfunc (t *T[P]) M() {}", "M has no comment"},
		{"documented", "a.go", "package overlayd\nconst (\n// A is.\nA = 1\nB = 2\n)", "B has no comment"},
		{"documented", "a.go", "package overlayd\n// These are.\nconst (\nA = 1\nB = 2 // b\n)\ntype t int\nfunc (t) M() {}", ""},
		{"documented", "cmd/overlayd/a.go", "package main\nfunc F() {}", ""},
	} {
		var check func(*source) []string
		for _, r := range rules {
			if r.name == test.rule {
				check = r.check
			}
		}
		got := check(parse(t, test.path, test.src))
		switch {
		case test.want == "" && len(got) > 0:
			t.Errorf("%s: %s is refused: %q\n%s", test.rule, test.path, got, test.src)
		case test.want != "" && (len(got) != 1 || !strings.Contains(got[0], test.want)):
			t.Errorf("%s: %s: got %q, want one with %q\n%s", test.rule, test.path, got, test.want, test.src)
		}
	}
}
