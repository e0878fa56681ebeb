//go:build !race

package membership

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// copyState makes dst's state directory a copy of src's, as a copy of the whole
// machine would.
func copyState(t *testing.T, dst, src *node) {
	t.Helper()
	for _, name := range []string{nodeFile, leaseFile, peersFile} {
		b, err := os.ReadFile(filepath.Join(src.cfg.StateDir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dst.cfg.StateDir, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (n *node) ended() bool {
	select {
	case <-n.Done():
		return true
	default:
		return false
	}
}

// TestClone: a machine is copied with its state. The copy, which starts later,
// notices, draws a new identity, and gets a subnet of its own; the original and
// everybody else keep theirs.
func TestClone(t *testing.T) {
	for _, seeds := range []bool{true, false} {
		t.Run(fmt.Sprint("with seeds ", seeds), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 1, lan)
				defer c.stopAll()
				for range 3 {
					c.add(seedsOf(1, 2, 3))
				}
				for _, n := range c.nodes {
					c.start(n)
				}
				c.wait("agreement", time.Minute, func() bool { return allHeld(c.nodes) && agree(c.nodes) })
				time.Sleep(10 * time.Second) // until peers are written down
				before := fmt.Sprint(c.nodes[0].View().Held, c.nodes[1].View().Held, c.nodes[2].View().Held)
				original := c.nodes[1]
				list := seedsOf(1, 3)
				if !seeds {
					list = nil // the copy remembers the others
				}
				clone := c.add(list)
				copyState(t, clone, original)
				c.start(clone)
				if clone.ID() != original.ID() || clone.held() != 2 {
					t.Fatal("not the case that is meant")
				}
				took := c.wait("the end of the copy", 30*time.Second, clone.ended)
				t.Logf("noticed after %v", took)
				if err := clone.Err(); !errors.Is(err, ErrCloned) || !strings.Contains(err.Error(), original.cfg.Gossip.String()) {
					t.Fatalf("it ended with %v", err)
				}
				clone.Stop(t.Context())
				c.start(clone)
				if clone.ID() == original.ID() || clone.held() != 0 {
					t.Fatalf("identity %v, holding %v", clone.ID(), clone.View().Held)
				}
				c.wait("agreement of all four", time.Minute, func() bool { return allHeld(c.nodes) && agree(c.nodes) })
				distinct(t, c.nodes)
				if after := fmt.Sprint(c.nodes[0].View().Held, c.nodes[1].View().Held, c.nodes[2].View().Held); after != before {
					t.Errorf("held %s, now %s", before, after)
				}
				for _, n := range c.nodes[:3] {
					if n.ended() || slices.ContainsFunc(n.events, func(e Event) bool { return e.Kind == LeaseLost }) {
						t.Errorf("%s: ended %v, events %v", n.cfg.Name, n.ended(), n.events)
					}
				}
			})
		})
	}
}

// TestCloneOfTheSameSecond: both copies of a machine start at once, so that even
// their boots are alike.
func TestCloneOfTheSameSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, lan)
		defer c.stopAll()
		first := c.add(nil)
		c.start(first)
		a, b := c.add(seedsOf(1)), c.add(seedsOf(1))
		for _, n := range []*node{a, b} {
			if err := os.WriteFile(filepath.Join(n.cfg.StateDir, nodeFile), []byte(`{"id":"000102030405060708090a0b0c0d0e0f","boot":1}`), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c.start(a)
		c.start(b)
		if a.ID() != b.ID() || a.Boot() != b.Boot() {
			t.Fatal("not the case that is meant")
		}
		c.wait("the end of one", 30*time.Second, func() bool { return a.ended() || b.ended() })
		if a.ended() || !errors.Is(b.Err(), ErrCloned) {
			t.Fatalf("ended: %v and %v", a.ended(), b.ended())
		}
		b.Stop(t.Context())
		c.start(b)
		c.wait("agreement", time.Minute, func() bool { return allHeld(c.nodes) && agree(c.nodes) })
		distinct(t, c.nodes)
		if slices.ContainsFunc(a.events, func(e Event) bool { return e.Kind == LeaseLost }) {
			t.Errorf("events %v", a.events)
		}
	})
}

// TestMovedHostIsNoClone: a host comes back at another address while gossip still
// takes its past for alive.
func TestMovedHostIsNoClone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, lan)
		defer c.stopAll()
		for range 3 {
			c.start(c.add(seedsOf(1, 2, 3)))
		}
		c.wait("agreement", time.Minute, func() bool { return allHeld(c.nodes) && agree(c.nodes) })
		n := c.nodes[1]
		id, before := n.ID(), fmt.Sprint(n.View().Held)
		n.kill()
		n.cfg.Gossip = clusterAddr(77)
		n.cfg.Addrs[0] = clusterAddr(77).Addr()
		c.start(n)
		c.wait("agreement", time.Minute, func() bool { return allHeld(c.nodes) && agree(c.nodes) })
		time.Sleep(time.Minute)
		if n.ended() || n.ID() != id || fmt.Sprint(n.View().Held) != before || !agree(c.nodes) {
			t.Errorf("ended %v: %v, identity %v, holds %v", n.ended(), n.Err(), n.ID(), n.View().Held)
		}
	})
}

// TestClusterEvict: over real gossip, through the Member's door.
func TestClusterEvict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, lan)
		defer c.stopAll()
		for range 3 {
			c.start(c.add(seedsOf(1, 2, 3)))
		}
		c.wait("agreement", time.Minute, func() bool { return allHeld(c.nodes) && agree(c.nodes) })
		a, dead := c.nodes[0], c.nodes[2]
		subnet := dead.View().Held[0]
		if err := a.Evict(t.Context(), subnet); !errors.Is(err, ErrEvict) {
			t.Errorf("a living one: %v", err)
		}
		dead.kill()
		c.wait("its death", time.Minute, func() bool { return a.peer(dead.ID()).State == StateDead })
		began := time.Now()
		if err := a.Evict(t.Context(), subnet); err != nil {
			t.Fatal(err)
		}
		t.Logf("evicted in %v", time.Since(began))
		c.wait("everybody to know", 10*time.Second, func() bool {
			return !slices.Contains(c.nodes[1].peer(dead.ID()).Subnets, subnet) && len(c.nodes[1].peer(dead.ID()).Subnets) == 1
		})
		time.Sleep(5 * time.Second) // or its owner may hear of the claim before its end, and refute it
		c.start(dead)
		lost := func(e Event) bool { return e.Kind == LeaseLost }
		c.wait("the evicted one to notice", time.Minute, func() bool { return slices.ContainsFunc(dead.events, lost) })
		c.wait("agreement", time.Minute, func() bool { return allHeld(c.nodes) && agree(c.nodes) })
		distinct(t, c.nodes)
		if slices.ContainsFunc(a.events, lost) {
			t.Errorf("events %v", a.events)
		}
	})
}
