package overlayd

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"go.uber.org/goleak"

	"github.com/overlayd/overlayd/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long tests wait for what must happen.
const patience = 30 * time.Second

// The ports of test nodes. Each has an address of its own.
const (
	testGossipPort = 21946
	testUDPPort    = 21285
)

// testAddr is the underlay address of test node i. Processes get different ones.
func testAddr(i int) netip.Addr {
	pid := os.Getpid()
	return netip.AddrFrom4([4]byte{127, byte(pid >> 8), byte(pid), byte(i)})
}

// testConfig is node i on an in-memory device and the loopback interface.
func testConfig(t testing.TB, i int) Config {
	return Config{
		Networks:  prefixes("100.96.0.0/16", "fd96::/48"),
		Advertise: []netip.Addr{testAddr(i)},
		Name:      fmt.Sprintf("node%d", i),
		StateDir:  t.TempDir(), GossipPort: testGossipPort, UDPPort: testUDPPort,
		Tunnel: newDevice(), MTU: 1400,
		Logger: slog.New(slog.NewTextHandler(logWriter{t}, nil)).With("node", i),
	}
}

func newDevice() *tunnel.Memory { return tunnel.NewMemory(tunnel.MemoryConfig{}) }

type logWriter struct{ t testing.TB }

func (w logWriter) Write(b []byte) (int, error) { w.t.Logf("%s", b); return len(b), nil }

// newNode makes a node that is stopped when the test ends.
func newNode(t testing.TB, cfg Config) *Node {
	t.Helper()
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Stop() })
	return n
}

func startNode(t testing.TB, cfg Config) *Node {
	t.Helper()
	n := newNode(t, cfg)
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

func awaitReady(t testing.TB, n *Node) {
	t.Helper()
	select {
	case <-n.Ready():
	case <-n.ended:
		t.Fatalf("%s ended: %v", n.cfg.Name, n.Wait())
	case <-time.After(patience):
		t.Fatalf("%s is not ready: %+v", n.cfg.Name, n.Status())
	}
}

// within calls f and fails if it takes longer than d.
func within(t testing.TB, d time.Duration, what string, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if took := time.Since(start); took > d {
		t.Errorf("%s took %v, more than %v", what, took.Round(time.Millisecond), d)
	}
}

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !cond(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", patience, what)
		}
	}
}

// nothingLeft remembers the goroutines and file descriptors of the process and
// returns a check that there are no others. memberlist ends some of its
// goroutines a little after its own end.
func nothingLeft(t testing.TB) (check func()) {
	before := goleak.IgnoreCurrent()
	fds := openFiles(t)
	return func() {
		t.Helper()
		deadline := time.Now().Add(patience)
		for {
			err := goleak.Find(before)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		waitFor(t, "file descriptors to be closed", func() bool {
			if now := openFiles(t); len(now) > len(fds) {
				if time.Now().After(deadline) {
					t.Fatalf("left open: %q, at first there were %q", now, fds)
				}
				return false
			}
			return true
		})
	}
}

// openFiles describes the open descriptors of the process.
func openFiles(t testing.TB) (out []string) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		// The descriptor by which the directory was read is closed by now.
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			out = append(out, e.Name()+" "+target)
		}
	}
	slices.Sort(out)
	return out
}

// oneLine fails unless err is a single line that contains all of want.
func oneLine(t testing.TB, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", want)
		return
	}
	text := err.Error()
	if strings.TrimSpace(text) == "" || strings.ContainsAny(text, "\n\r") {
		t.Errorf("not one line: %q", text)
	}
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%q does not contain %q", text, w)
		}
	}
}

// udpPacket is an inner UDP packet between two overlay addresses.
func udpPacket(t testing.TB, src, dst netip.Addr, payload string) []byte {
	t.Helper()
	udp := &layers.UDP{SrcPort: 4000, DstPort: 5000}
	var ip gopacket.SerializableLayer
	if src.Is4() {
		v4 := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		udp.SetNetworkLayerForChecksum(v4)
		ip = v4
	} else {
		v6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		udp.SetNetworkLayerForChecksum(v6)
		ip = v6
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, opts, ip, udp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return slices.Clone(buf.Bytes())
}

// receive returns the next packet that the overlay delivers to a device.
func receive(t testing.TB, dev *tunnel.Memory) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	buf := make([]byte, 65535)
	n, err := dev.Receive(ctx, buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// occupy takes a port until the test ends or release is called.
func occupy(t testing.TB, network string, at netip.AddrPort) (release func()) {
	t.Helper()
	var c interface{ Close() error }
	var err error
	if network == "tcp" {
		c, err = net.Listen(network, at.String())
	} else {
		c, err = net.ListenPacket(network, at.String())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return func() { c.Close() }
}
