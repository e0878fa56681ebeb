//go:build !race

package membership

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
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
	for _, tt := range []struct {
		name         string
		seeds, below bool
	}{{"with seeds", true, false}, {"remembering the others", false, false}, {"at a lower address", true, true}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, 1, lan)
				defer c.stopAll()
				for range 3 {
					n := c.add(seedsOf(11, 12, 13))
					n.cfg.Gossip, n.cfg.Addrs[0] = clusterAddr(10+len(c.nodes)), clusterAddr(10+len(c.nodes)).Addr()
				}
				for _, n := range c.nodes {
					c.start(n)
				}
				c.wait("agreement", time.Minute, func() bool { return allHeld(c.nodes) && agree(c.nodes) })
				time.Sleep(10 * time.Second) // until peers are written down
				before := fmt.Sprint(c.nodes[0].View().Held, c.nodes[1].View().Held, c.nodes[2].View().Held)
				original := c.nodes[1]
				var list func(*Config) // without it the copy remembers the others
				if tt.seeds {
					list = seedsOf(11, 13)
				}
				clone := c.add(list)
				if !tt.below {
					clone.cfg.Gossip, clone.cfg.Addrs[0] = clusterAddr(14), clusterAddr(14).Addr()
				}
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

// TestTwinThatNeverAnswers: of a node with our name memberlist says once that it is
// there, and never that it is gone.
func TestTwinThatNeverAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, lan)
		defer c.stopAll()
		n := c.add(nil)
		c.start(n)
		n.inbox.put(conflict{addr: clusterAddr(99)})
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if len(n.twins) != 1 || n.ended() {
			t.Fatalf("%d twins, ended: %v", len(n.twins), n.ended())
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if len(n.twins) != 0 || n.ended() {
			t.Errorf("%d twins, ended: %v", len(n.twins), n.ended())
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

// three makes a settled cluster of three and returns the one that is copied.
func (c *cluster) three() (original *node) {
	for range 3 {
		c.start(c.add(seedsOf(1, 2, 3)))
	}
	c.wait("agreement", time.Minute, func() bool { return allHeld(c.nodes) && agree(c.nodes) })
	time.Sleep(10 * time.Second) // until peers are written down
	return c.nodes[1]
}

// untouched checks that the original has lost nothing and that all send to it.
func (c *cluster) untouched(original *node, held string) {
	c.t.Helper()
	if original.ended() || fmt.Sprint(original.View().Held) != held || slices.ContainsFunc(original.events, func(e Event) bool { return e.Kind == LeaseLost }) {
		c.t.Errorf("the original ended %v, held %v, holds %v, events %v", original.ended(), held, original.View().Held, original.events)
	}
	c.wait("all to know the original", time.Minute, func() bool {
		for _, n := range c.nodes[:3] {
			if n == original {
				continue
			}
			if p := n.peer(original.ID()); p == nil || p.State != StateAlive || p.Addrs[0] != original.cfg.Addrs[0] || fmt.Sprint(p.Subnets) != held {
				return false
			}
		}
		return true
	})
}

// TestCloneBehindAnother: the first copy has just died without a word, so that
// gossip takes it for alive, when the second one starts.
func TestCloneBehindAnother(t *testing.T) {
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, seed, lan)
			defer c.stopAll()
			original := c.three()
			held := fmt.Sprint(original.View().Held)
			first, second := c.add(seedsOf(1, 3)), c.add(seedsOf(1, 3))
			copyState(t, first, original)
			copyState(t, second, original)
			c.start(first)
			c.wait("the end of the first copy", 30*time.Second, first.ended)
			first.silent = true // it has no time for a good-bye
			first.Stop(t.Context())
			first.Member = nil
			time.Sleep(time.Second)
			c.start(second)
			c.wait("the end of the second copy", 30*time.Second, second.ended)
			second.Stop(t.Context())
			second.Member = nil
			c.untouched(original, held)
		})
	}
}

// TestCloneOfAPausedOriginal: the original does not answer while its copy starts,
// as when a snapshot of it is made.
func TestCloneOfAPausedOriginal(t *testing.T) {
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, seed, lan)
			defer c.stopAll()
			original := c.three()
			held := fmt.Sprint(original.View().Held)
			clone := c.add(seedsOf(1, 3))
			copyState(t, clone, original)
			at := original.cfg.Gossip
			c.net.Partition(func(from, to netip.AddrPort) bool { return from == at || to == at })
			c.start(clone)
			time.Sleep(5 * time.Second)
			c.net.Partition(nil)
			c.wait("the end of the copy", 2*time.Minute, clone.ended)
			clone.Stop(t.Context())
			clone.Member = nil
			c.untouched(original, held)
		})
	}
}

// TestCloneWithAnOlderLease: the copy is of a time at which the node had another
// subnet. It never gives up in the original's name what that holds now.
func TestCloneWithAnOlderLease(t *testing.T) {
	for _, paused := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, 3, lan)
			defer c.stopAll()
			original := c.three()
			held := fmt.Sprint(original.View().Held)
			subnet := original.View().Held[0]
			clone := c.add(seedsOf(1, 3))
			copyState(t, clone, original)
			file := filepath.Join(clone.cfg.StateDir, leaseFile)
			b, err := os.ReadFile(file)
			if err == nil {
				err = os.WriteFile(file, bytes.ReplaceAll(b, []byte(subnet.String()), []byte(c.free())), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			if paused {
				at := original.cfg.Gossip
				c.net.Partition(func(from, to netip.AddrPort) bool { return from == at || to == at })
				defer c.net.Partition(nil)
			}
			c.start(clone)
			if paused {
				time.Sleep(5 * time.Second)
				c.net.Partition(nil)
			}
			writes := uint64(0)
			for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				synctest.Wait()
				for _, claim := range c.nodes[0].View().Claims() {
					if claim.Owner == original.ID() && claim.Prefix == subnet {
						writes = max(writes, claim.Version)
						if claim.State == Released {
							t.Fatalf("the original's lease was given up: %+v", claim)
						}
					}
				}
				if clone.ended() && clone.Member != nil {
					clone.Stop(t.Context())
				}
			}
			if !clone.ended() || writes > 20 {
				t.Errorf("the copy ended %v; %d versions were written", clone.ended(), writes)
			}
			clone.Member = nil
			c.untouched(original, held)
		})
	}
}

// TestStaleStateIsNoSync: a node that was stopped while tentative wakes up, and
// finds in its socket what somebody has sent before others claimed the same.
func TestStaleStateIsNoSync(t *testing.T) {
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t, seed, lan)
			defer c.stopAll()
			two := func(seeds ...int) func(*Config) {
				return func(cfg *Config) {
					cfg.Settings = Settings{[]netip.Prefix{pfx("100.96.0.0/23")}, []int{24}, 24 * time.Hour}
					seedsOf(seeds...)(cfg)
				}
			}
			a, b, d := c.add(two()), c.add(two(1)), c.add(two(1))
			c.start(a)
			c.wait("the first lease", time.Minute, func() bool { return a.held() == 1 })
			c.start(b)
			c.wait("a tentative claim", time.Minute, func() bool {
				return slices.ContainsFunc(b.View().Claims(), func(c ClaimInfo) bool { return c.Owner == b.ID() && c.State == Tentative })
			})
			old := a.encodeAll()
			at := b.cfg.Gossip
			c.net.Partition(func(from, to netip.AddrPort) bool { return from == at || to == at })
			c.start(d)
			// Not longer than it takes to find b dead, or it is alone and may do what it likes.
			time.Sleep(simSpread + 500*time.Millisecond)
			b.inbox.putState(fullState{old}, len(old))
			synctest.Wait()
			if b.held() != 0 && b.anyAlive() {
				t.Errorf("it holds %v by what it was told before", b.View().Held)
			}
			c.net.Partition(nil)
		})
	}
}

// TestForgedConflict: that somebody has our name somewhere is not believed until
// he answers there.
func TestForgedConflict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, lan)
		defer c.stopAll()
		n := c.add(nil)
		n.cfg.Gossip, n.cfg.Addrs = clusterAddr(50), []netip.Addr{clusterAddr(50).Addr()}
		c.start(n)
		c.wait("a lease", time.Minute, func() bool { return n.held() == 2 })
		for i := range 40 { // more than are kept
			n.inbox.putMessage(conflict{clusterAddr(1 + i)}, 0)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n.ended() || n.held() != 2 {
			t.Errorf("ended %v: %v", n.ended(), n.Err())
		}
	})
}
