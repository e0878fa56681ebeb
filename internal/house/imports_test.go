package house

import (
	"fmt"
	"slices"
	"strings"
)

// The places that the rules about imports speak of.
const (
	placeRoot    = "."
	placeLab     = "internal/kernel/lab"
	placeBrowser = "internal/browsertest"
)

// libraries are the public rooms. They know nothing of ours but themselves.
var libraries = []string{"encap", "tunnel", "membership"}

// under tells whether dir is the place or below it.
func under(dir, place string) bool {
	return dir == place || strings.HasPrefix(dir, place+"/")
}

func underAny(dir string, places []string) bool {
	return slices.ContainsFunc(places, func(p string) bool { return under(dir, p) })
}

// ours is the place of a package of this module.
func ours(pkg string) (place string, ok bool) {
	if pkg == module {
		return placeRoot, true
	}
	return strings.CutPrefix(pkg, module+"/")
}

// rooms holds who may import whom among our own packages:
//
//	cmd, examples, bench -> root -> internal -> tunnel, encap, membership
//
// Nobody imports a program, and only tests import what exists for tests.
func rooms(s *source) (bad []string) {
	for _, i := range s.imports {
		to, ok := ours(i.path)
		if !ok || to == s.dir { // an external test imports what it tests
			continue
		}
		say := func(why string) { bad = append(bad, fmt.Sprintf("line %d: imports %s: %s", i.line, i.path, why)) }
		if strings.HasSuffix(to, "test") && !s.forTests() {
			say("it exists for tests only")
			continue
		}
		switch {
		case underAny(s.dir, libraries):
			room, _, _ := strings.Cut(s.dir, "/")
			if !under(to, room) {
				say(room + " knows nothing of ours")
			}
		case under(s.dir, "internal"):
			switch {
			case under(to, "internal"):
				if under(to, placeLab) && !under(s.dir, placeLab) && !s.forTests() {
					say("the lab is for tests and the demo")
				}
			case underAny(to, libraries):
			case s.test && to == placeRoot && under(s.dir, "internal/e2e"): // tests of the whole
			default:
				say("internal rooms import internal rooms, tunnel, encap and membership")
			}
		case s.dir == placeRoot:
			switch {
			case under(to, placeLab) && !s.test:
				say("the lab is for tests and the demo")
			case under(to, "internal") || underAny(to, libraries):
			default:
				say("the root package imports internal rooms, tunnel, encap and membership")
			}
		case under(s.dir, "cmd"), under(s.dir, "bench"):
			// The demo and the benchmarks need hosts to run on, and a report is a page.
			if to == placeBrowser && s.test && under(s.dir, "bench") {
				continue
			}
			if to != placeRoot && !under(to, placeLab) && !under(to, s.dir) && !(under(s.dir, "bench") && (under(to, "bench") || underAny(to, libraries))) {
				say("use the root package, as any other program does")
			}
		case under(s.dir, "examples"):
			if to != placeRoot && !underAny(to, libraries) && !(s.test && under(to, placeLab)) {
				say("an example uses what its readers can use")
			}
		default:
			say("no rule for " + s.dir + ": write one")
		}
	}
	return bad
}

// home is where a dependency may be imported.
type home struct {
	prefix string   // of import paths
	code   []string // files or directories
	tests  bool     // in tests anywhere, too
	why    string
}

var homes = []home{
	{"github.com/vishvananda/", []string{"internal/kernel"}, false, "one room reaches the kernel"},
	{"github.com/google/nftables", []string{"internal/kernel"}, false, "one room reaches the kernel"},
	{"github.com/mdlayher/", []string{"internal/kernel"}, false, "one room reaches the kernel"},
	{"github.com/songgao/water", []string{"tunnel"}, false, "it stays behind tunnel.Device"},
	{"github.com/hashicorp/", []string{"membership"}, false, "it stays behind membership.Member"},
	{"github.com/containernetworking/cni", []string{"cmd/overlayd-cni"}, false, "one program speaks CNI"},
	{"github.com/spf13/", []string{"cmd"}, false, "libraries have no command line"},
	{"sigs.k8s.io/yaml", []string{"cmd", "examples"}, false, "libraries take a Config"},
	{"github.com/prometheus/", []string{"internal/metrics"}, false, "it stays behind metrics.Handler"},
	{"net/http/pprof", nil, false, "importing it publishes profiles; see internal/web/profiles.go"},
	{"github.com/cilium/ebpf", []string{"bench"}, false, "it is for measuring"},
	{"github.com/google/gopacket", nil, true, "packets are read and written by hand; it is what tests compare with"},
	{"github.com/google/go-cmp", nil, true, "it is for tests"},
	{"pgregory.net/rapid", nil, true, "it is for tests"},
	{"go.uber.org/goleak", nil, true, "it is for tests"},
	{"testing", nil, true, "it is for tests"},
}

// dependencies holds that each dependency stays in its room.
func dependencies(s *source) (bad []string) {
	for _, i := range s.imports {
		for _, h := range homes {
			if i.path != h.prefix && !strings.HasPrefix(i.path, strings.TrimSuffix(h.prefix, "/")+"/") {
				continue
			}
			if h.tests && s.forTests() || underAny(s.dir, h.code) || slices.Contains(h.code, s.path) {
				continue
			}
			bad = append(bad, fmt.Sprintf("line %d: imports %s: %s", i.line, i.path, h.why))
		}
	}
	return bad
}

// pure holds that the codecs have bytes in and bytes out.
func pure(s *source) (bad []string) {
	if !under(s.dir, "encap") || s.test {
		return nil
	}
	for _, i := range s.imports {
		if slices.Contains([]string{"net", "os", "syscall", "time", "log", "log/slog", "golang.org/x/sys/unix"}, i.path) {
			bad = append(bad, fmt.Sprintf("line %d: imports %s: encap does no I/O", i.line, i.path))
		}
	}
	return bad
}
