package overlayd

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/control"
	"github.com/overlayd/overlayd/internal/forward"
	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/membership"
	"github.com/overlayd/overlayd/tunnel"
)

// TestFailingStart fails Start in each of its steps. Nothing is left, the error
// is one line, and once the obstacle is gone a new node starts.
func TestFailingStart(t *testing.T) {
	gossip := netip.AddrPortFrom(testAddr(1), testGossipPort)
	data := netip.AddrPortFrom(testAddr(1), testUDPPort)
	write := func(t *testing.T, dir, name, text string) (remove func()) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return func() { os.Remove(path) }
	}
	for _, tt := range []struct {
		name string
		// spoil changes cfg or the host, and returns how to undo the latter.
		spoil func(t *testing.T, cfg *Config) (undo func())
		is    error
		want  []string
	}{
		{"run directory in use", func(t *testing.T, cfg *Config) func() {
			l, err := control.Acquire(cfg.RunDir)
			if err != nil {
				t.Fatal(err)
			}
			return func() { l.Release() }
		}, control.ErrRunning, []string{"run directory"}},
		{"run directory is a file", func(t *testing.T, cfg *Config) func() {
			cfg.RunDir = filepath.Join(cfg.StateDir, "file")
			return write(t, cfg.StateDir, "file", "")
		}, nil, []string{"not a directory"}},
		{"no such interface", func(t *testing.T, cfg *Config) func() {
			cfg.Interface, cfg.Advertise = "nosuch0", nil
			return nil
		}, kernel.ErrNoInterface, []string{`"nosuch0"`, "there are: ", "lo"}},
		{"address of another host", func(t *testing.T, cfg *Config) func() {
			cfg.Advertise = []netip.Addr{netip.MustParseAddr("192.0.2.77")}
			return nil
		}, nil, []string{"192.0.2.77", "one of this host's"}},
		{"IPv6 address of another host", func(t *testing.T, cfg *Config) func() {
			cfg.Advertise = []netip.Addr{netip.MustParseAddr("2001:db8::77")}
			return nil
		}, nil, []string{"2001:db8::77"}},
		{"MTU too large", func(t *testing.T, cfg *Config) func() {
			cfg.MTU = 65480
			cfg.Advertise = append(cfg.Advertise, netip.IPv6Loopback())
			return nil
		}, nil, []string{"MTU 65480 does not fit", "lo has an MTU of 65536", "leaves 65466 inside"}},
		{"state directory in use", func(t *testing.T, cfg *Config) func() {
			n := startNode(t, func() Config { c := testConfig(t, 2); c.StateDir = cfg.StateDir; return c }())
			return func() { n.Stop() }
		}, membership.ErrStateBusy, []string{"--state-dir"}},
		{"corrupt identity", func(t *testing.T, cfg *Config) func() {
			return write(t, cfg.StateDir, "node.json", "{garbage")
		}, membership.ErrStateCorrupt, []string{"node.json", "restore it from a backup"}},
		{"state directory cannot be made", func(t *testing.T, cfg *Config) func() {
			undo := write(t, cfg.StateDir, "file", "")
			cfg.StateDir = filepath.Join(cfg.StateDir, "file", "state")
			return undo
		}, nil, []string{"state directory", "--state-dir"}},
		{"UDP port in use", func(t *testing.T, cfg *Config) func() { return occupy(t, "udp", data) },
			nil, []string{data.String(), "in use", "--udp-port"}},
		{"UDP port of one family in use", func(t *testing.T, cfg *Config) func() {
			cfg.Advertise = append(cfg.Advertise, netip.IPv6Loopback())
			return occupy(t, "udp", netip.AddrPortFrom(netip.IPv6Loopback(), testUDPPort))
		}, nil, []string{"[::1]:", "in use", "--udp-port"}},
		{"device too small", func(t *testing.T, cfg *Config) func() {
			cfg.Tunnel = tunnel.NewMemory(tunnel.MemoryConfig{Name: "small", Features: tunnel.Features{MaxPacket: 1399}})
			return nil
		}, nil, []string{"device small", "at most 1399 bytes", "the MTU is 1400"}},
		{"gossip port in use, UDP", func(t *testing.T, cfg *Config) func() { return occupy(t, "udp", gossip) },
			membership.ErrPortInUse, []string{gossip.String(), "--gossip-port"}},
		{"gossip port in use, TCP", func(t *testing.T, cfg *Config) func() { return occupy(t, "tcp", gossip) },
			membership.ErrPortInUse, []string{gossip.String(), "--gossip-port"}},
		{"subnet file is a directory", func(t *testing.T, cfg *Config) func() {
			cfg.SubnetFile = cfg.StateDir
			return nil
		}, nil, []string{"subnet file", "is a directory"}},
		{"something else in the place of the control socket", func(t *testing.T, cfg *Config) func() {
			return write(t, cfg.RunDir, control.SocketName, "")
		}, nil, []string{"control socket", "not a socket"}},
		{"HTTP address in use", func(t *testing.T, cfg *Config) func() {
			ln, err := net.Listen("tcp", netip.AddrPortFrom(testAddr(1), 0).String())
			if err != nil {
				t.Fatal(err)
			}
			cfg.HTTPListen = ln.Addr().String()
			return func() { ln.Close() }
		}, nil, []string{testAddr(1).String(), "taken by another program", "--http-listen"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			check := nothingLeft(t)
			good := testConfig(t, 1)
			good.RunDir = filepath.Join(t.TempDir(), "run")
			bad := good
			undo := tt.spoil(t, &bad)
			n, err := New(bad)
			if err != nil {
				t.Fatalf("New: %v", err)
			}
			err = n.Start(t.Context())
			oneLine(t, err, tt.want...)
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v is no %v", err, tt.is)
			}
			if errors.Is(err, ErrConfig) {
				t.Errorf("%v depends on the host and is called a bad configuration", err)
			}
			if werr := n.Wait(); werr != err {
				t.Errorf("Wait: %v", werr)
			}
			if err := n.Stop(); err != nil {
				t.Errorf("Stop: %v", err)
			}
			if undo != nil {
				undo()
			}
			check()
			good.Tunnel = newDevice()
			n = startNode(t, good)
			awaitReady(t, n)
			if err := n.Stop(); err != nil {
				t.Error(err)
			}
			check()
		})
	}
}

// TestEndsByItself: Wait tells why, once everything is down.
func TestEndsByItself(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(cfg *Config)
		is    error
		want  []string
		ready bool // may have been ready
	}{
		{"device closed", func(cfg *Config) { cfg.Tunnel.Close() }, forward.ErrDevice, []string{"device", "memory"}, true},
		{"subnet file cannot be written", func(cfg *Config) {
			cfg.SubnetFile = filepath.Join(cfg.StateDir, "node.json", "subnet.env")
		}, nil, []string{"subnet file"}, false},
		{"other settings", func(cfg *Config) { cfg.Networks = prefixes("100.80.0.0/16") },
			membership.ErrSettings, []string{"100.80.0.0/16", "100.96.0.0/16"}, false},
		{"name taken", func(cfg *Config) { cfg.Name = "node2" }, membership.ErrNameTaken, []string{`"node2"`, "--name"}, false},
		{"static subnet taken", func(cfg *Config) { cfg.Subnets = prefixes("100.96.7.128/25") },
			membership.ErrSubnetTaken, []string{"100.96.7.128/25", "100.96.7.0/24", "--subnet"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			check := nothingLeft(t)
			first := testConfig(t, 2)
			first.Subnets = prefixes("100.96.7.0/24")
			other := startNode(t, first)
			awaitReady(t, other)
			cfg := testConfig(t, 1)
			cfg.RunDir = t.TempDir()
			if tt.is != forward.ErrDevice && tt.want[0] != "subnet file" {
				cfg.Join = []string{testAddr(2).String()}
			}
			tt.spoil(&cfg)
			n := newNode(t, cfg)
			events := n.Events(t.Context())
			serr := n.Start(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- n.Wait() }()
			var err error
			select {
			case err = <-ended:
			case <-time.After(patience):
				t.Fatal("it goes on")
			}
			// Whatever the moment, it is the same reason.
			if serr != nil && serr != err {
				t.Errorf("Start: %v, Wait: %v", serr, err)
			}
			oneLine(t, err, tt.want...)
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v is no %v", err, tt.is)
			}
			if !tt.ready && isClosed(n.Ready()) {
				t.Error("it was ready")
			}
			for range events { // is closed
			}
			left, _ := os.ReadDir(cfg.RunDir)
			if len(left) > 0 {
				t.Errorf("left in the run directory: %v", left)
			}
			if err := n.Leave(t.Context()); !errors.Is(err, ErrNotStarted) {
				t.Errorf("Leave: %v", err)
			}
			for _, n := range []*Node{n, other} {
				if err := n.Stop(); err != nil {
					t.Errorf("Stop: %v", err)
				}
			}
			check()
		})
	}
}
