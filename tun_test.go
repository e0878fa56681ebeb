package overlayd

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/kernel/kerneltest"
	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/tunnel"
)

// inNamespace moves the test into a network namespace whose loopback interface
// is up, so that nodes with a TUN can be had.
func inNamespace(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("needs /dev/net/tun")
	}
	kerneltest.Namespace(t)
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatalf("lo up: %v", err)
	}
}

// hostState is what is configured in the test's namespace.
func hostState(t *testing.T) []string {
	t.Helper()
	s, err := lab.HostState()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sameState fails unless the namespace is as it was.
func sameState(t *testing.T, before []string) {
	t.Helper()
	if now := hostState(t); !slices.Equal(now, before) {
		t.Errorf("the host is now\n%q\nand was\n%q", now, before)
	}
}

func tunConfig(t *testing.T) Config {
	cfg := testConfig(t, 1)
	cfg.Tunnel, cfg.RunDir = nil, filepath.Join(t.TempDir(), "run")
	return cfg
}

func TestTUNCycles(t *testing.T) {
	inNamespace(t)
	before, check := hostState(t), nothingLeft(t)
	cfg := tunConfig(t)
	cfg.Logger = nil
	for i := range 20 {
		n := startNode(t, cfg)
		awaitReady(t, n)
		if i == 0 {
			if now := hostState(t); len(now) < len(before)+7 { // link, addresses, routes
				t.Errorf("a running node has changed only this: %q, before %q", now, before)
			}
		}
		within(t, stopTime, "Stop", func() {
			if err := n.Stop(); err != nil {
				t.Errorf("cycle %d: %v", i, err)
			}
		})
		sameState(t, before)
		if t.Failed() {
			t.Fatalf("in cycle %d", i)
		}
	}
	check()
}

// TestQueueDrops: what the kernel dropped in front of the device is not forgotten when it
// cannot be read for once, as of a device that somebody has renamed.
func TestQueueDrops(t *testing.T) {
	inNamespace(t)
	n := startNode(t, tunConfig(t))
	awaitReady(t, n)
	const many = 1 << 40
	n.queueDrops.Store(many) // the kernel has told so
	for what, drops := range map[string]func() map[string]uint64{
		"metrics": func() map[string]uint64 { return n.metrics().Drops }, "status": func() map[string]uint64 { return n.Status().Drops },
	} {
		if got := drops()["tx_device_queue_full"]; got != many {
			t.Errorf("%s: %d, want %d", what, got, uint64(many))
		}
	}
}

func TestTUNInterruptedStart(t *testing.T) {
	inNamespace(t)
	before, check := hostState(t), nothingLeft(t)
	cfg := tunConfig(t)
	interruptEachStep(t, func() Config { return cfg }, stopAside, ErrStopped, func() {
		t.Helper()
		check()
		sameState(t, before)
	})
}

func TestTUNFailingStart(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, cfg *Config) (undo func())
		is    error
		want  []string
	}{
		{"device name taken", func(t *testing.T, cfg *Config) func() {
			d, err := tunnel.OpenWater(cfg.Device, 1500)
			if err != nil {
				t.Fatal(err)
			}
			return func() { d.Close() }
		}, tunnel.ErrNameInUse, []string{"tst0"}},
		{"device is another kind of interface", func(t *testing.T, cfg *Config) func() {
			cfg.Device = "lo"
			return nil
		}, tunnel.ErrNameInUse, []string{"lo"}},
		{"no such interface", func(t *testing.T, cfg *Config) func() {
			cfg.Interface, cfg.Advertise = "nosuch0", nil
			return nil
		}, kernel.ErrNoInterface, []string{"nosuch0", "there are: ", "lo"}},
		{"interface without a usable address", func(t *testing.T, cfg *Config) func() {
			cfg.Interface, cfg.Advertise = "lo", nil
			return nil
		}, kernel.ErrNoAddress, []string{"interface lo"}},
		{"address of another host", func(t *testing.T, cfg *Config) func() {
			cfg.Advertise = addrs("192.0.2.77")
			return nil
		}, kernel.ErrNoAddress, []string{"192.0.2.77"}},
		{"another node has the overlay", func(t *testing.T, cfg *Config) func() {
			other := tunConfig(t)
			other.Advertise, other.Name, other.Device = []netip.Addr{testAddr(2)}, "other", "tst1"
			n := startNode(t, other)
			awaitReady(t, n)
			return func() { n.Stop() }
		}, nil, []string{"tst1"}},
		{"gossip port in use, once the device stands", func(t *testing.T, cfg *Config) func() {
			return occupy(t, "udp", netip.AddrPortFrom(testAddr(1), testGossipPort))
		}, nil, []string{"--gossip-port"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inNamespace(t)
			before, check := hostState(t), nothingLeft(t)
			good := tunConfig(t)
			good.Device = "tst0"
			bad := good
			undo := tt.spoil(t, &bad)
			spoiled := hostState(t)
			n := newNode(t, bad)
			err := n.Start(t.Context())
			oneLine(t, err, tt.want...)
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v is no %v", err, tt.is)
			}
			if err := n.Stop(); err != nil {
				t.Errorf("Stop: %v", err)
			}
			sameState(t, spoiled) // what others have stays
			if undo != nil {
				undo()
			}
			check()
			sameState(t, before)
			n = startNode(t, good)
			awaitReady(t, n)
			n.Stop()
			check()
			sameState(t, before)
		})
	}
}

// TestTUNDeleted: somebody deletes the device of a running node.
func TestTUNDeleted(t *testing.T) {
	inNamespace(t)
	before, check := hostState(t), nothingLeft(t)
	n := startNode(t, tunConfig(t))
	awaitReady(t, n)
	kerneltest.DeleteLink(t, DefaultDevice)
	ended := make(chan error, 1)
	go func() { ended <- n.Wait() }()
	select {
	case err := <-ended:
		if !errors.Is(err, tunnel.ErrGone) {
			t.Errorf("Wait: %v", err)
		}
		oneLine(t, err, DefaultDevice)
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
	if err := n.Stop(); err != nil {
		t.Errorf("Stop: %v", err)
	}
	check()
	sameState(t, before)
}

// TestTUNRepaired: a device that was down has lost its routes and its IPv6
// address; the node puts them back.
func TestTUNRepaired(t *testing.T) {
	inNamespace(t)
	n := startNode(t, tunConfig(t))
	awaitReady(t, n)
	defer n.Stop()
	want := hostState(t)
	kerneltest.SetLink(t, DefaultDevice, false)
	kerneltest.SetLink(t, DefaultDevice, true)
	if slices.Equal(want, hostState(t)) {
		t.Fatal("nothing was lost: the test proves nothing")
	}
	c := &conductor{n: n, held: n.mesh.Load().held}
	c.repair()
	// The kernel adds the local route of an IPv6 address a moment later.
	waitFor(t, fmt.Sprintf("the host to be %q again", want), func() bool { return slices.Equal(hostState(t), want) })
	n.notes.mu.Lock()
	defer n.notes.mu.Unlock()
	if n.notes.repair != "" {
		t.Error(n.notes.repair)
	}
}
