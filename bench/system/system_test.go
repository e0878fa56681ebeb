package system

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// The contenders are installed from the network, or are large programs of other people, so
// they are tested when somebody asks for it:
//
//	go test ./bench/system -contenders -tools DIR -flanneld PROGRAM -v
var (
	contenders = flag.Bool("contenders", false, "also open wireguard-go, nebula and flannel")
	tools      = flag.String("tools", "", "directory for the contenders that are installed by Go; empty: a temporary one")
	flanneld   = flag.String("flanneld", "", "flanneld's program")
	etcd       = flag.String("etcd", "", "etcd's program; empty: the one in PATH")
	megabytes  = flag.Int64("megabytes", 8, "how much is sent each way")
)

func TestOpen(t *testing.T) {
	type row struct {
		name     string
		mtu      int
		encrypts bool
		daemon   string // on both hosts
	}
	systems := []row{
		{"underlay", 1500, false, ""},
		{"kernel-vxlan-by-hand", 1450, false, ""},
	}
	cfg := Config{Tools: *tools, Install: true, Flanneld: *flanneld, Etcd: *etcd, Log: t.Logf}
	if *contenders {
		systems = append(systems,
			row{"wireguard-go", 1420, true, "wireguard"},
			row{"nebula", 1300, true, "nebula"},
			row{"flannel-udp", 1472, false, "flanneld"},
			row{"flannel-vxlan", 1450, false, "flanneld"},
		)
		if cfg.Tools == "" {
			cfg.Tools = t.TempDir()
		}
	}
	for _, want := range systems {
		t.Run(want.name, func(t *testing.T) {
			if err := lab.Supported(); err != nil {
				t.Skip(err)
			}
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			sockets := wireguardSockets(t)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // to be installed
			defer cancel()
			s, err := Open(ctx, want.name, cfg)
			if errors.Is(err, ErrMissing) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %s", s.Version, s.Detail)
			if s.Name != want.name || s.MTU != want.mtu || s.Encrypts != want.encrypts || s.Detail == "" {
				t.Errorf("opened %+v, want %+v with a detail", s, want)
			}
			for i, daemons := range s.Daemons {
				if want.daemon == "" && len(daemons) == 0 {
					continue
				}
				if len(daemons) != 1 || daemons[0].Name() != want.daemon || daemons[0].Namespace() != s.Hosts[i].Namespace {
					t.Errorf("daemons of %s are %v, want one %q on it", s.Hosts[i], daemons, want.daemon)
				}
				if s.Version == "" {
					t.Error("no version")
				}
			}
			for _, way := range [][2]End{{s.A, s.B}, {s.B, s.A}} {
				res, err := lab.Transfer(ctx, lab.TransferConfig{From: way[0].Namespace, To: way[1].Namespace, Dst: way[1].Addr, Bytes: *megabytes << 20})
				if err != nil {
					t.Error(err)
				}
				t.Logf("%s to %s: %.2f Gbit/s", way[0], way[1], res.BitsPerSecond()/1e9)
			}
			procs := s.lab.Processes()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			for _, p := range procs {
				if p.Running() {
					t.Errorf("%s runs on", p.Name())
				}
			}
			for _, left := range leftovers(t, s.lab) {
				t.Errorf("left behind: %s", left)
			}
			if now := wireguardSockets(t); !slices.Equal(now, sockets) {
				t.Errorf("sockets of wireguard are %q, were %q", now, sockets)
			}
		})
	}
}

// leftovers are the namespaces, files and processes of a lab that has been closed.
func leftovers(t *testing.T, l *lab.Lab) (left []string) {
	for _, pattern := range []string{"/run/netns/" + l.Prefix() + "-*", l.Dir()} {
		left = append(left, glob(t, pattern)...)
	}
	for _, file := range glob(t, "/proc/[0-9]*/environ") {
		env, err := os.ReadFile(file)
		if err != nil { // it has ended meanwhile
			continue
		}
		for _, e := range strings.Split(string(env), "\x00") {
			if strings.HasSuffix(e, "="+l.Prefix()) {
				left = append(left, fmt.Sprintf("%s with %s", file, e))
			}
		}
	}
	return left
}

func wireguardSockets(t *testing.T) []string { return glob(t, "/var/run/wireguard/*") }

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A system that takes what is not there says so in a line, and leaves nothing.
func TestOpenMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for name, want := range map[string]struct {
		cfg    Config
		reason string
	}{
		"wireguard-go":  {Config{Tools: t.TempDir(), Install: true}, "wireguard-go cannot be installed: there is no go program"},
		"nebula":        {Config{}, "nebula needs a directory to be installed in"},
		"flannel-udp":   {Config{}, "FLANNELD=path was not given"},
		"flannel-vxlan": {Config{Flanneld: "/bin/true"}, "etcd is not installed"},
	} {
		s, err := Open(t.Context(), name, want.cfg)
		if s != nil || !errors.Is(err, ErrMissing) || err.Error() != name+": not here: "+want.reason {
			t.Errorf("%s: %v, want %q", name, err, want.reason)
		}
	}
	if _, err := Open(t.Context(), "pigeon", Config{}); err == nil || errors.Is(err, ErrMissing) {
		t.Errorf("a path that nobody knows: %v", err)
	}
}
