package house

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// allowed are the modules that our files may import, each with what it is for.
// An addition needs a reason in the commit that makes it.
var allowed = map[string]string{
	"github.com/songgao/water":            "the portable TUN device",
	"golang.org/x/net":                    "ipv4 and ipv6: batches of datagrams",
	"golang.org/x/sys":                    "unix: what package syscall does not have",
	"github.com/google/gopacket":          "packets in slow paths and tests",
	"github.com/hashicorp/memberlist":     "gossip",
	"github.com/vishvananda/netlink":      "routes, addresses, links",
	"github.com/vishvananda/netns":        "network namespaces",
	"github.com/google/nftables":          "reading the firewall; the lab's faults and counters",
	"github.com/gaissmai/bart":            "longest-prefix match",
	"github.com/spf13/cobra":              "the command line",
	"github.com/spf13/pflag":              "cobra's flags, whose types have to be named",
	"sigs.k8s.io/yaml":                    "the config file, strictly",
	"github.com/prometheus/client_golang": "metrics",
	"github.com/cilium/ebpf":              "counting copies, in bench only",
	"pgregory.net/rapid":                  "property tests",
	"github.com/google/go-cmp":            "tests",
	"go.uber.org/goleak":                  "tests",

	"github.com/hashicorp/go-multierror": "the type of memberlist's join errors",
}

// requirement is one line of go.mod.
type requirement struct {
	Path     string
	Indirect bool
}

// direct holds that every file imports only modules that are allowed and
// required. It returns what is wrong and which requirements are used.
func direct(all []*source, required []requirement) (bad []string, used map[string]bool) {
	used = map[string]bool{}
	for _, s := range all {
		for _, i := range s.imports {
			first, _, _ := strings.Cut(i.path, "/")
			if _, own := ours(i.path); own || !strings.Contains(first, ".") {
				continue // ours, or the standard library's
			}
			mod := ""
			for _, r := range required {
				if (i.path == r.Path || strings.HasPrefix(i.path, r.Path+"/")) && len(r.Path) > len(mod) {
					mod = r.Path
				}
			}
			switch {
			case mod == "":
				bad = append(bad, fmt.Sprintf("%s:%d: %s is in no module of go.mod", s.path, i.line, i.path))
			case allowed[mod] == "":
				bad = append(bad, fmt.Sprintf("%s:%d: %s is no module that was agreed on", s.path, i.line, mod))
			}
			used[mod] = true
		}
	}
	return bad, used
}

// marks holds that go.mod lists as direct what is allowed to be.
func marks(required []requirement) (bad []string) {
	for _, r := range required {
		if !r.Indirect && allowed[r.Path] == "" {
			bad = append(bad, "go.mod: "+r.Path+" is no module that was agreed on")
		}
	}
	return bad
}

func TestDependencies(t *testing.T) {
	cmd := exec.Command("go", "mod", "edit", "-json")
	cmd.Dir = moduleRoot(t)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct{ Require []requirement }
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	bad, used := direct(sources(t), mod.Require)
	for _, b := range append(bad, marks(mod.Require)...) {
		t.Error(b)
	}
	if len(used) < 5 {
		t.Errorf("only these modules seem to be used: %v", used)
	}
}

// What TestDependencies is there to find is found.
func TestDependenciesFound(t *testing.T) {
	src := func(imports string) []*source {
		return []*source{parse(t, "a.go", "package overlayd\nimport \""+imports+"\"\n")}
	}
	required := []requirement{{Path: "golang.org/x/net"}, {Path: "example.org/new", Indirect: true}, {Path: "example.org/marked"}}
	for imports, want := range map[string][]string{
		"net/netip":             nil,
		"golang.org/x/net/ipv4": nil,
		module + "/encap":       nil,
		"example.org/new/x":     {"a.go:2: example.org/new is no module that was agreed on"},
		"golang.org/x/network":  {"a.go:2: golang.org/x/network is in no module of go.mod"},
	} {
		if got, _ := direct(src(imports), required); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", imports, got, want)
		}
	}
	if got, want := marks(required), []string{"go.mod: example.org/marked is no module that was agreed on"}; !slices.Equal(got, want) {
		t.Errorf("marks: %q, want %q", got, want)
	}
}
