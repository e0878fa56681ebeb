//go:build !race

// Clusters of Members over an in-memory network, in virtual time. testing/synctest
// under -race can crash before Go 1.27 (golang/go issue 76691), hence the build
// constraint; member_test.go runs the same code over sockets under -race.

package membership

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlayd/overlayd/membership/gossiptest"
)

// lan is what gossip meets in a data centre on a bad day.
var lan = gossiptest.Faults{Loss: 0.01, Duplicate: 0.005, MinDelay: 100 * time.Microsecond, MaxDelay: 3 * time.Millisecond}

// cluster is a set of Members on one in-memory network.
type cluster struct {
	t     *testing.T
	net   *gossiptest.Network
	nodes []*node
}

func clusterAddr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 7946)
}

func newCluster(t *testing.T, seed uint64, f gossiptest.Faults) *cluster {
	return &cluster{t: t, net: gossiptest.NewNetwork(seed, f)}
}

// add prepares node i, counted from 1.
func (c *cluster) add(change func(*Config)) *node {
	i := len(c.nodes) + 1
	n := &node{t: c.t}
	n.cfg = Config{
		StateDir: c.t.TempDir(), Name: fmt.Sprintf("node%d", i),
		Settings: testSettings("100.96.0.0/16", "fd96::/48"),
		Gossip:   clusterAddr(i), Addrs: []netip.Addr{clusterAddr(i).Addr()},
		Ports: Ports{UDP: 8285, VXLAN: 8472, KernelVXLAN: 4789}, MTU: 1450,
		OnEvent: func(e Event) { n.mu.Lock(); n.events = append(n.events, e); n.mu.Unlock() },
	}
	if change != nil {
		change(&n.cfg)
	}
	c.nodes = append(c.nodes, n)
	return n
}

// start starts a node, anew if it ran before.
func (c *cluster) start(n *node) {
	c.t.Helper()
	tr, err := c.net.Listen(n.cfg.Gossip)
	if err != nil {
		c.t.Fatal(err)
	}
	n.cfg.Transport = tr
	if n.Member, err = New(n.cfg); err != nil {
		c.t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		c.t.Fatal(err)
	}
}

// stopAll ends everything, so that the bubble can end.
func (c *cluster) stopAll() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // no good-byes
	// At once: those that are left would gossip of each other's death.
	var all sync.WaitGroup
	for _, n := range c.nodes {
		if n.Member != nil {
			all.Go(func() { n.Stop(ctx) })
		}
	}
	all.Wait()
	// memberlist's goroutines end when their timers fire next.
	time.Sleep(time.Minute)
}

// wait lets virtual time pass until cond holds, at most limit, and returns how
// long it took.
func (c *cluster) wait(what string, limit time.Duration, cond func() bool) time.Duration {
	c.t.Helper()
	began := time.Now()
	for !cond() {
		if time.Since(began) > limit {
			c.t.Fatalf("after %v of virtual time still not: %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
		synctest.Wait()
	}
	return time.Since(began)
}

func seedsOf(idx ...int) func(*Config) {
	return func(c *Config) {
		for _, i := range idx {
			c.Seeds = append(c.Seeds, clusterAddr(i).String())
		}
	}
}

// free is a subnet of the network that no node holds.
func (c *cluster) free() string {
	for i := range 256 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 96, byte(250 - i), 0}), 24)
		if !slices.ContainsFunc(c.nodes, func(n *node) bool { return n.Member != nil && slices.Contains(n.View().Held, p) }) {
			return p.String()
		}
	}
	c.t.Fatal("no subnet is free")
	return ""
}

func TestClusterSixAtOnce(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, seed, lan)
				defer c.stopAll()
				for range 6 {
					c.add(seedsOf(1, 2, 3, 4, 5, 6))
				}
				for _, n := range c.nodes {
					c.start(n)
				}
				c.wait("six leases", 20*time.Second, func() bool { return allHeld(c.nodes) })
				c.wait("agreement", 20*time.Second, func() bool { return agree(c.nodes) })
				distinct(t, c.nodes)
			})
		})
	}
}

func TestClusterPartitionHeals(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, seed, lan)
				defer c.stopAll()
				for range 6 {
					c.add(seedsOf(1, 2, 3, 4, 5, 6))
				}
				for _, n := range c.nodes {
					c.start(n)
				}
				c.wait("agreement", time.Minute, func() bool { return allHeld(c.nodes) && agree(c.nodes) })
				before := ""
				for _, n := range c.nodes {
					before += fmt.Sprint(n.View().Held)
				}
				side := func(a netip.AddrPort) bool { return a.Addr().As4()[3]%2 == 0 }
				c.net.Partition(func(from, to netip.AddrPort) bool { return side(from) != side(to) })
				// Long enough that memberlist has forgotten the other side.
				time.Sleep(5 * time.Minute)
				for _, n := range c.nodes[:2] { // a new host on each side
					c.start(c.add(func(cfg *Config) { cfg.Seeds = []string{n.cfg.Gossip.String()} }))
				}
				c.wait("leases of the new hosts", time.Minute, func() bool { return allHeld(c.nodes) })
				c.net.Partition(nil)
				took := c.wait("agreement after the heal", 90*time.Second, func() bool { return allHeld(c.nodes) && agree(c.nodes) })
				t.Logf("healed in %v", took)
				distinct(t, c.nodes)
				after := ""
				for _, n := range c.nodes[:6] {
					after += fmt.Sprint(n.View().Held)
				}
				if before != after {
					t.Errorf("held subnets moved: %s, now %s", before, after)
				}
			})
		})
	}
}

func TestClusterAllKilledAndRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, lan)
		defer c.stopAll()
		for range 6 {
			c.add(seedsOf(1, 2, 3, 4, 5, 6))
		}
		for _, n := range c.nodes {
			c.start(n)
		}
		c.wait("agreement", time.Minute, func() bool { return allHeld(c.nodes) && agree(c.nodes) })
		var before []string
		for _, n := range c.nodes {
			before = append(before, fmt.Sprint(n.View().Held))
			n.kill()
		}
		time.Sleep(time.Hour)
		for i, n := range c.nodes {
			if i > 0 {
				n.cfg.Seeds = []string{clusterAddr(99).String()} // nobody is there: peers are remembered
			}
			c.start(n)
		}
		c.wait("agreement", time.Minute, func() bool { return allHeld(c.nodes) && agree(c.nodes) })
		for i, n := range c.nodes {
			if after := fmt.Sprint(n.View().Held); after != before[i] {
				t.Errorf("node %d held %s, now %s", i+1, before[i], after)
			}
		}
	})
}

func TestClusterTwentyFiveNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 7, lan)
		defer c.stopAll()
		for range 25 {
			c.start(c.add(seedsOf(1, 2, 3)))
		}
		took := c.wait("25 leases", 30*time.Second, func() bool { return allHeld(c.nodes) })
		c.wait("agreement", 30*time.Second, func() bool { return agree(c.nodes) })
		t.Logf("all hold their subnets after %v", took)
		distinct(t, c.nodes)
	})
}
