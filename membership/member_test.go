package membership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func testSettings(nets ...string) Settings {
	s := Settings{LeaseTime: 24 * time.Hour}
	for _, n := range nets {
		p := netip.MustParsePrefix(n)
		s.Networks = append(s.Networks, p)
		if p.Addr().Is4() {
			s.SubnetLens = append(s.SubnetLens, 24)
		} else {
			s.SubnetLens = append(s.SubnetLens, 64)
		}
	}
	return s
}

// node is a Member on a loopback address of its own.
type node struct {
	*Member
	cfg Config
	t   *testing.T

	mu     sync.Mutex
	events []Event
}

// testNets numbers the tests that use loopback addresses, so that they can run
// side by side.
var testNets = struct {
	sync.Mutex
	of map[string]byte
}{of: map[string]byte{}}

// loopback returns the address of node i of a test and its subtests: a network
// for each test, and another port for each process.
func loopback(t *testing.T, i int) netip.AddrPort {
	test, _, _ := strings.Cut(t.Name(), "/")
	testNets.Lock()
	defer testNets.Unlock()
	if _, ok := testNets.of[test]; !ok {
		testNets.of[test] = byte(len(testNets.of))
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 77, testNets.of[test], byte(i)}), uint16(20000+os.Getpid()%20000))
}

func newNode(t *testing.T, i int, change func(*Config)) *node {
	t.Helper()
	n := &node{t: t}
	n.cfg = Config{
		StateDir: t.TempDir(), Name: fmt.Sprintf("node%d", i),
		Settings: testSettings("100.96.0.0/16", "fd96::/48"),
		Gossip:   loopback(t, i), Addrs: []netip.Addr{loopback(t, i).Addr()},
		Ports: Ports{UDP: 8285, VXLAN: 8472, KernelVXLAN: 4789}, MTU: 1450,
		Spread: 300 * time.Millisecond, Elect: 700 * time.Millisecond,
		OnEvent: func(e Event) { n.mu.Lock(); n.events = append(n.events, e); n.mu.Unlock() },
		Logger:  slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo})).With("node", i),
	}
	if change != nil {
		change(&n.cfg)
	}
	return n
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) { w.t.Logf("%s", b); return len(b), nil }

func (n *node) start() *node {
	n.t.Helper()
	var err error
	if n.Member, err = New(n.cfg); err != nil {
		n.t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		n.Stop(n.t.Context())
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { n.Stop(context.Background()) })
	return n
}

// waitEnd waits until the Member has ended by itself.
func (n *node) waitEnd() {
	n.t.Helper()
	select {
	case <-n.Done():
	case <-time.After(20 * time.Second):
		n.t.Fatal("it goes on")
	}
}

// kill ends the Member the way kill -9 does: without a word.
func (n *node) kill() {
	n.stopped.Do(func() {
		n.cancel()
		n.list.Shutdown()
		req := stopRequest{reply: make(chan struct{})}
		n.stop <- req
		<-req.reply
		n.wg.Wait()
		n.disk.close()
	})
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s for: %s", what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func (n *node) held() int { return len(n.View().Held) }

func (n *node) peer(id NodeID) *Peer {
	for _, p := range n.View().Peers {
		if p.ID == id {
			return p
		}
	}
	return nil
}

// distinct checks that all nodes hold a subnet per network and no two overlap.
func distinct(t *testing.T, nodes []*node) {
	t.Helper()
	seen := map[netip.Prefix]int{}
	for i, n := range nodes {
		for _, p := range n.View().Held {
			if j, ok := seen[p]; ok {
				t.Errorf("nodes %d and %d both hold %v", i, j, p)
			}
			seen[p] = i
		}
		if n.held() != len(n.cfg.Settings.Networks) {
			t.Errorf("node %d holds %v", i, n.View().Held)
		}
	}
}

// agree reports whether every node sees every other alive with its subnets.
func agree(nodes []*node) bool {
	for _, a := range nodes {
		for _, b := range nodes {
			if a == b {
				continue
			}
			p := a.peer(b.ID())
			if p == nil || p.State != StateAlive || fmt.Sprint(p.Subnets) != fmt.Sprint(b.View().Held) {
				return false
			}
		}
	}
	return true
}

func allHeld(nodes []*node) bool {
	for _, n := range nodes {
		if n.held() != 2 {
			return false
		}
	}
	return true
}

func TestFirstNodeHoldsAtOnce(t *testing.T) {
	n := newNode(t, 1, nil).start()
	began := time.Now()
	waitFor(t, "a lease", func() bool { return n.held() == 2 })
	if d := time.Since(began); d > n.cfg.Spread {
		t.Errorf("a lone first node waited %v, as if there were somebody to hear it", d)
	}
	for _, c := range n.View().Claims() {
		if !c.Solo || !c.Accepted || c.State != Held || c.Stamp == 0 || c.Gen != 1 {
			t.Errorf("claim %+v", c)
		}
	}
}

func TestSixHostsAtOnceWithOneSeedList(t *testing.T) {
	t.Parallel()
	for name, list := range map[string][]int{"all": {1, 2, 3, 4, 5, 6}, "one": {13}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var seeds []string
			for _, i := range list {
				seeds = append(seeds, loopback(t, i).String())
			}
			var nodes []*node
			first := list[0]/10*10 + 1
			for i := first; i < first+6; i++ {
				nodes = append(nodes, newNode(t, i, func(c *Config) { c.Seeds = seeds }))
			}
			for _, n := range nodes {
				n.start()
			}
			waitFor(t, "six leases", func() bool { return allHeld(nodes) })
			waitFor(t, "agreement", func() bool { return agree(nodes) })
			distinct(t, nodes)
		})
	}
}

func TestRestartKeepsTheSubnet(t *testing.T) {
	t.Parallel()
	a := newNode(t, 1, nil).start()
	waitFor(t, "first lease", func() bool { return a.held() == 2 })
	seed := func(c *Config) { c.Seeds = []string{loopback(t, 1).String()} }
	b, c := newNode(t, 2, seed).start(), newNode(t, 3, seed).start()
	nodes := []*node{a, b, c}
	waitFor(t, "leases", func() bool { return allHeld(nodes) && agree(nodes) })
	before := fmt.Sprint(a.View().Held, b.View().Held, c.View().Held)

	t.Run("one, killed", func(t *testing.T) {
		id, boot := b.ID(), b.Boot()
		b.kill()
		b.t = t
		b.start()
		if b.ID() != id || b.Boot() <= boot {
			t.Errorf("id %v boot %d, before %v and %d", b.ID(), b.Boot(), id, boot)
		}
		if b.held() != 2 {
			t.Error("the lease was not used at once")
		}
		waitFor(t, "agreement", func() bool { return agree(nodes) })
		if after := fmt.Sprint(a.View().Held, b.View().Held, c.View().Held); after != before {
			t.Errorf("subnets moved: %v, now %v", before, after)
		}
		t.Cleanup(func() { b.kill() })
	})
	t.Run("all, killed, one without its seed", func(t *testing.T) {
		for _, n := range nodes {
			n.kill()
		}
		b.cfg.Seeds = nil // it has to remember its peers
		for _, n := range nodes {
			n.t = t
			n.start()
		}
		waitFor(t, "agreement", func() bool { return agree(nodes) })
		if after := fmt.Sprint(a.View().Held, b.View().Held, c.View().Held); after != before {
			t.Errorf("subnets moved: %v, now %v", before, after)
		}
	})
}

func TestLeaveReleases(t *testing.T) {
	t.Parallel()
	a := newNode(t, 1, nil).start()
	b := newNode(t, 2, func(c *Config) { c.Seeds = []string{loopback(t, 1).String()} }).start()
	waitFor(t, "leases", func() bool { return allHeld([]*node{a, b}) && agree([]*node{a, b}) })
	if err := b.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the peer to be gone", func() bool { return a.peer(b.ID()) == nil })
	for _, c := range a.View().Claims() {
		if c.Owner == b.ID() && (c.State != Released || c.Accepted) {
			t.Errorf("claim %+v after leaving", c)
		}
	}
	if _, err := os.Stat(filepath.Join(b.cfg.StateDir, leaseFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("lease file after leaving: %v", err)
	}
}

func TestStopKeepsTheClaimAndSaysSo(t *testing.T) {
	a := newNode(t, 1, nil).start()
	b := newNode(t, 2, func(c *Config) { c.Seeds = []string{loopback(t, 1).String()} }).start()
	waitFor(t, "leases", func() bool { return allHeld([]*node{a, b}) && agree([]*node{a, b}) })
	began := time.Now()
	if err := b.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Errorf("Stop took %v", d)
	}
	waitFor(t, "state left", func() bool { p := a.peer(b.ID()); return p != nil && p.State == StateLeft })
	if p := a.peer(b.ID()); len(p.Subnets) != 2 {
		t.Errorf("subnets after a stop: %v", p.Subnets)
	}
	b.start()
	waitFor(t, "state alive", func() bool { return agree([]*node{a, b}) })
}

func TestDeadPeerKeepsItsClaim(t *testing.T) {
	t.Parallel()
	a := newNode(t, 1, nil).start()
	b := newNode(t, 2, func(c *Config) { c.Seeds = []string{loopback(t, 1).String()} }).start()
	waitFor(t, "leases", func() bool { return allHeld([]*node{a, b}) && agree([]*node{a, b}) })
	b.kill()
	waitFor(t, "state dead", func() bool { p := a.peer(b.ID()); return p != nil && p.State == StateDead })
	if p := a.peer(b.ID()); len(p.Subnets) != 2 {
		t.Errorf("subnets of a dead peer: %v", p.Subnets)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	a := newNode(t, 1, nil).start()
	waitFor(t, "first lease", func() bool { return a.held() == 2 })
	seed := []string{loopback(t, 1).String()}
	static := a.View().Held[0]
	for name, tc := range map[string]struct {
		change func(*Config)
		want   error
	}{
		"other network":    {func(c *Config) { c.Settings = testSettings("100.96.0.0/15") }, ErrSettings},
		"other length":     {func(c *Config) { c.Settings.SubnetLens[0] = 25 }, ErrSettings},
		"name of a peer":   {func(c *Config) { c.Name = "node1" }, ErrNameTaken},
		"one family fewer": {func(c *Config) { c.Settings = testSettings("100.96.0.0/16") }, ErrSettings},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, 2, func(c *Config) { c.Seeds = seed; tc.change(c) })
			n.start().waitEnd()
			if !errors.Is(n.Err(), tc.want) {
				t.Errorf("ended with %v", n.Err())
			}
			t.Log(n.Err())
		})
	}
	t.Run("two static subnets alike", func(t *testing.T) {
		b := newNode(t, 2, func(c *Config) { c.Seeds = seed; c.Static = []netip.Prefix{static} }).start()
		// Static beats dynamic: the first node moves away.
		waitFor(t, "the static lease", func() bool { return b.held() == 2 })
		waitFor(t, "the first node's new lease", func() bool { return a.held() == 2 && a.View().Held[0] != static })
		a.mu.Lock()
		lost := false
		for _, e := range a.events {
			lost = lost || e.Kind == LeaseLost && e.Prefix == static
		}
		a.mu.Unlock()
		if !lost {
			t.Error("the beaten node got no event")
		}
		waitFor(t, "agreement", func() bool { return agree([]*node{a, b}) })
		distinct(t, []*node{a, b})
		c := newNode(t, 3, func(c *Config) { c.Seeds = seed; c.Static = []netip.Prefix{static} }).start()
		c.waitEnd()
		if !errors.Is(c.Err(), ErrSubnetTaken) {
			t.Errorf("ended with %v", c.Err())
		}
	})
}

func TestStateDirectory(t *testing.T) {
	t.Run("busy", func(t *testing.T) {
		n := newNode(t, 1, nil)
		m, err := New(n.cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Stop(t.Context())
		if _, err := New(n.cfg); !errors.Is(err, ErrStateBusy) {
			t.Errorf("second New: %v", err)
		}
	})
	for _, file := range []string{nodeFile} {
		for what, content := range map[string]string{"empty": "", "cut": `{"id":"00`, "wrong": `{"id":"00000000000000000000000000000000"}`} {
			t.Run(file+" "+what, func(t *testing.T) {
				n := newNode(t, 1, nil)
				path := filepath.Join(n.cfg.StateDir, file)
				os.WriteFile(path, []byte(content), 0o600)
				_, err := New(n.cfg)
				if !errors.Is(err, ErrStateCorrupt) {
					t.Errorf("New: %v", err)
				}
				if b, _ := os.ReadFile(path); string(b) != content {
					t.Error("the file was changed")
				}
			})
		}
	}
	for _, file := range []string{leaseFile, peersFile} {
		t.Run(file+" is moved aside", func(t *testing.T) {
			n := newNode(t, 1, nil)
			os.WriteFile(filepath.Join(n.cfg.StateDir, file), []byte("["), 0o600)
			var log strings.Builder
			n.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
			m, err := New(n.cfg)
			if err != nil {
				t.Fatal(err)
			}
			m.Stop(t.Context())
			aside := filepath.Join(n.cfg.StateDir, file+".corrupt")
			if b, err := os.ReadFile(aside); string(b) != "[" {
				t.Error(err)
			}
			if !strings.Contains(log.String(), aside) {
				t.Errorf("it is not named: %s", log.String())
			}
		})
	}
	t.Run("not a directory", func(t *testing.T) {
		n := newNode(t, 1, nil)
		n.cfg.StateDir = filepath.Join(n.cfg.StateDir, "file")
		os.WriteFile(n.cfg.StateDir, nil, 0o600)
		if _, err := New(n.cfg); err == nil {
			t.Error("no error")
		}
	})
}

func TestGossipPortInUse(t *testing.T) {
	a := newNode(t, 1, nil).start()
	b := newNode(t, 1, nil)
	m, err := New(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Stop(t.Context())
	if err := m.Start(); !errors.Is(err, ErrPortInUse) {
		t.Errorf("Start: %v", err)
	}
	_ = a
}

func TestKeysAndClusterKeepStrangersOut(t *testing.T) {
	t.Parallel()
	key := func(c *Config) { c.Keys = [][]byte{[]byte("0123456789abcdef")} }
	a := newNode(t, 1, key).start()
	waitFor(t, "first lease", func() bool { return a.held() == 2 })
	seed := []string{loopback(t, 1).String()}
	b := newNode(t, 2, func(c *Config) { c.Seeds = seed; key(c) }).start()
	waitFor(t, "a lease with the key", func() bool { return b.held() == 2 })
	for name, tc := range map[string]struct {
		change func(*Config)
		why    string
	}{
		"no key":        {func(c *Config) {}, "this node has none"},
		"wrong key":     {func(c *Config) { c.Keys = [][]byte{[]byte("fedcba9876543210")} }, "another key"},
		"wrong cluster": {func(c *Config) { key(c); c.Cluster = "other" }, "--cluster"},
		"no label":      {func(c *Config) { key(c); c.Cluster = "" }, "--cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, 3, func(c *Config) { c.Seeds = seed; tc.change(c) })
			if name == "no label" {
				n.cfg.Seeds = []string{loopback(t, 4).String()}
				newNode(t, 4, func(c *Config) { key(c); c.Cluster = "labelled" }).start()
			}
			n.start()
			waitFor(t, "a warning that says why", func() bool {
				n.mu.Lock()
				defer n.mu.Unlock()
				return slices.ContainsFunc(n.events, func(e Event) bool {
					return e.Kind == Warning && strings.Contains(e.Reason, tc.why) && strings.Contains(e.Reason, n.cfg.Seeds[0])
				})
			})
			if n.held() != 0 || a.peer(n.ID()) != nil {
				t.Error("a stranger got in")
			}
		})
	}
	t.Run("a key where there is none", func(t *testing.T) {
		newNode(t, 5, nil).start()
		n := newNode(t, 6, func(c *Config) { key(c); c.Seeds = []string{loopback(t, 5).String()} }).start()
		waitFor(t, "a warning that says why", func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return slices.ContainsFunc(n.events, func(e Event) bool { return strings.Contains(e.Reason, "that node has no key") })
		})
	})
}
