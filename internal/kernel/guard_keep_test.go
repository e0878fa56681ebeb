package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// reopen gives the host a Kernel as a new daemon has it.
func (g *guarded) reopen() {
	g.Helper()
	g.ok(g.k.Close())
	g.ok(g.hosts[0].Do(func() (err error) {
		g.k, err = kernel.Open(kernel.Config{Logger: labtest.Logger(g.T)})
		return err
	}))
}

// A daemon that starts lets in whom the one before has let in, until it knows
// better.
func TestGuardKeeps(t *testing.T) {
	g := newGuarded(t)
	pinged := func(want bool) {
		g.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		res, err := g.hosts[1].Ping(ctx, lab.PingConfig{Dst: vtep(1, true), Count: 2, Timeout: 100 * time.Millisecond})
		g.ok(err)
		if (res.Received == 2) != want {
			g.Errorf("answers to a peer: %v, want %v", res.Received == 2, want)
		}
	}
	peer, other := guardPeer(2), guardPeer(3)
	g.guard.Peers = []kernel.GuardPeer{peer, other}
	g.set()
	pinged(true)

	g.reopen()
	g.guard.Peers = nil
	g.ok(g.k.SetGuard(g.guard, true))
	pinged(true)
	g.guard.Peers = []kernel.GuardPeer{other} // it learns of one of them
	g.ok(g.k.SetGuard(g.guard, true))
	pinged(true)
	if c := g.path(2); c.RxPackets != 4 || c.TxPackets != 4 {
		t.Errorf("counted for a kept peer: %+v", c)
	}
	if stands, err := g.k.CheckGuard(); err != nil || !stands {
		t.Errorf("the guard stands: %v, %v", stands, err)
	}
	// The other has moved: what was kept of it is gone, and does not come back.
	moved := peer
	moved.Outer = addrs("192.0.2.99")
	g.guard.Peers = []kernel.GuardPeer{other, moved}
	g.ok(g.k.SetGuard(g.guard, true))
	pinged(false)
	g.guard.Peers = []kernel.GuardPeer{other}
	g.ok(g.k.SetGuard(g.guard, true))
	pinged(false)

	g.guard.Peers = []kernel.GuardPeer{peer}
	g.ok(g.k.SetGuard(g.guard, true))
	g.reopen()
	g.guard.Peers, g.guard.VNI = nil, 1 // nobody came back
	g.ok(g.k.SetGuard(g.guard, true))
	pinged(true)
	g.ok(g.k.SetGuard(g.guard, false))
	pinged(false)

	// Without keep nobody is let in that is not named.
	g.guard.Peers = []kernel.GuardPeer{peer}
	g.set()
	pinged(true)
	g.reopen()
	g.guard.Peers = nil
	g.set()
	pinged(false)
}

// What wants the place of something kept gets it.
func TestGuardKeepContradicted(t *testing.T) {
	x := newHost(t)
	old := guardPeer(2)
	old.Inner = append(old.Inner, netip.MustParsePrefix("10.0.0.0/8"))
	x.ok(x.k.SetGuard(guardOf(old, guardPeer(4)), false))
	k, err := kernel.Open(kernel.Config{})
	x.ok(err)
	t.Cleanup(func() { k.Close() })
	x.k = k
	heir := guardPeer(2)
	heir.ID[0] = 1
	heir.Inner = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("100.96.0.0/16")}
	x.ok(x.k.SetGuard(guardOf(heir), true))
	x.guardStands(true)
	c, err := x.k.GuardCounts()
	x.ok(err)
	if _, kept := c.Peers[guardPeer(4).ID]; !kept {
		t.Error("nothing was kept of a peer that nobody contradicts")
	}
	x.ok(x.k.SetGuard(guardOf(heir), false))
	x.guardStands(true)
}

// At no moment is there no guard, also while the rules are made anew, and
// counters only grow.
func TestGuardNoGap(t *testing.T) {
	g := newGuarded(t)
	attack := g.onWire(toPort(g.underlay(3, true), g.underlay(1, true), 4789, inVXLAN(datagram(vtep(2, true), "attack"))))
	done := make(chan error, 1)
	var stop atomic.Bool
	sent := uint64(0)
	go func() {
		for !stop.Load() {
			frames := slices.Repeat([][]byte{attack}, 50)
			if err := injectAt(g.hosts[2].Namespace, "eth0", frames...); err != nil {
				done <- err
				return
			}
			sent += 50
		}
		done <- nil
	}()
	var seen uint64
	for i := range 60 {
		g.guard.Ports = []uint16{8285, 8472, uint16(9000 + i)}
		g.set()
		now := g.drops("guard_vxlan_source")
		if now < seen {
			t.Errorf("the counter went from %d to %d", seen, now)
		}
		seen = now
	}
	stop.Store(true)
	g.ok(<-done)
	if seen == 0 {
		t.Error("nothing was dropped")
	}
	g.silent()
	t.Logf("%d of %d packets counted while the rules were made anew 60 times", g.drops("guard_vxlan_source"), sent)
}

// busyNeighbour changes nftables on a host all the time, until it is stopped.
func busyNeighbour(t *testing.T, h *lab.Host) (stop func()) {
	t.Helper()
	done := make(chan error, 1)
	var stopped atomic.Bool
	go func() {
		done <- h.Do(func() error {
			for i := 0; !stopped.Load(); i++ {
				c, err := nftables.New()
				if err != nil {
					return err
				}
				table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "busy"})
				if i%2 == 1 {
					c.DelTable(table)
				}
				if err := c.Flush(); err != nil {
					return fmt.Errorf("the neighbour: %w", err)
				}
			}
			return nil
		})
	}()
	return func() {
		t.Helper()
		stopped.Store(true)
		ok(t, <-done)
	}
}

// Somebody else may change nftables all the time.
func TestGuardBusyNeighbours(t *testing.T) {
	g := newGuarded(t)
	stop := busyNeighbour(t, g.hosts[0])
	for i := range 20 {
		g.guard.Peers = []kernel.GuardPeer{guardPeer(2), guardPeer(3 + i)}
		if err := g.k.SetGuard(g.guard, false); err != nil {
			t.Errorf("set: %v", err)
		}
		if stands, err := g.k.CheckGuard(); err != nil || !stands {
			t.Errorf("the guard stands: %v, %v", stands, err)
		}
	}
	stop()
	if _, err := g.k.GuardCounts(); err != nil && !errors.Is(err, kernel.ErrClosed) {
		t.Error(err)
	}
}

func TestRulesBusyNeighbours(t *testing.T) {
	g := newGuarded(t)
	ok(t, g.hosts[0].DockerFirewall())
	stop := busyNeighbour(t, g.hosts[0])
	for i := range 10 {
		m := masquerade()
		m.Ports = append(m.Ports, uint16(10000+i))
		if err := g.k.SetMasquerade(m); err != nil {
			t.Errorf("masquerade: %v", err)
		}
		if stands, err := g.k.CheckMasquerade(); err != nil || !stands {
			t.Errorf("the masquerade stands: %v, %v", stands, err)
		}
		if done, err := g.k.SetForwardRules(forwardRules()); err != nil || len(done) != 2 {
			t.Errorf("accept rules: %q, %v", done, err)
		}
		if done, err := g.k.SetForwardRules(forwardRules()); err != nil || len(done) > 0 {
			t.Errorf("the second time: %q, %v", done, err)
		}
		if removed, err := g.k.RemoveForwardRules("overlay0"); err != nil || len(removed) != 4 {
			t.Errorf("removed %q, %v", removed, err)
		}
	}
	stop()
}
