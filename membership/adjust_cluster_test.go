//go:build !race

package membership

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestClusterAdjust: two clusters of one become one when a seed is given to a running
// node that waits, capabilities are told anew, and what is reserved is never leased.
func TestClusterAdjust(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, lan)
		defer c.stopAll()
		a, b := c.add(nil), c.add(seedsOf(99)) // nobody is at 99
		c.start(a)
		c.start(b)
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(b.View().Held) != 0 {
			t.Fatalf("b knows nobody and holds %v", b.View().Held)
		}

		// All but a few subnets are reserved before b may have one.
		reserved := []netip.Prefix{netip.MustParsePrefix("100.96.0.0/17"), netip.MustParsePrefix("100.96.128.0/18"), netip.MustParsePrefix("100.96.192.0/19")}
		want := Adjustment{Seeds: []string{a.cfg.Gossip.String()}, Reserved: reserved, Caps: CapVXLAN}
		if err := b.Adjust(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		took := c.wait("agreement", 20*time.Second, func() bool { return allHeld(c.nodes) && agree(c.nodes) })
		t.Logf("joined in %v", took)
		distinct(t, c.nodes)
		for _, own := range b.View().Held {
			if slices.ContainsFunc(reserved, own.Overlaps) {
				t.Errorf("b has leased %v, which is reserved", own)
			}
		}
		caps := func(want Capability) func() bool {
			return func() bool { return a.peer(b.ID()).Caps == want }
		}
		c.wait("b's capabilities", 5*time.Second, caps(CapVXLAN))

		// What is held cannot be reserved, and then nothing else changes either.
		bad := want
		bad.Caps, bad.Reserved = CapUDP, b.View().Held[:1]
		if err := b.Adjust(t.Context(), bad); !errors.Is(err, ErrReserved) {
			t.Errorf("reserving what is held: %v", err)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if !caps(CapVXLAN)() {
			t.Error("a refused adjustment has changed the capabilities")
		}
		want.Caps = CapUDP | CapDirect
		if err := b.Adjust(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		c.wait("b's capabilities", 5*time.Second, caps(CapUDP|CapDirect))

		// A seed that is no seed any more is not called.
		want.Seeds = nil
		if err := b.Adjust(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for key := range b.targets {
			if key.seed != "" {
				t.Errorf("it still calls %v", key)
			}
		}
		b.kill()
		if err := b.Adjust(t.Context(), want); err == nil {
			t.Error("a node that has ended takes an adjustment")
		}
	})
}
