package membership

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// TestForgedLastVersion: a record in our name with the last possible version
// cannot be overruled. The prefix is given up, and another one is held, with a
// record that others accept.
func TestForgedLastVersion(t *testing.T) {
	d := drive(t, testID(1), testSettings("100.96.0.0/16"), nil)
	c := d.heldClaim()
	for _, state := range []ClaimState{Released, Held} {
		forged := c
		forged.Version, forged.State, forged.Stamp = maxCounter, state, c.Stamp+1
		d.hears(forged)
		lost := false
		for range 4 {
			for _, e := range d.wait(simSpread) {
				lost = lost || e.kind == effectLost && e.prefix == c.Prefix
				if e.kind == effectSync {
					d.syncStarted()
					d.fullSync(d.now, true)
					d.syncEnded(true)
				}
			}
		}
		if !lost {
			t.Errorf("%v: no word of the lost subnet", state)
		}
		held := d.held()
		if len(held) != 1 || held[0].Prefix == c.Prefix || held[0].check() != nil {
			t.Fatalf("%v: held %+v", state, held)
		}
		c = held[0]
	}
}

// TestResumedFirstNodeWhosePeersAreGone begins again after a while: it has no
// seeds, so nobody else ever will.
func TestResumedFirstNodeWhosePeersAreGone(t *testing.T) {
	t.Parallel()
	a := newNode(t, 1, nil).start()
	b := newNode(t, 2, func(c *Config) { c.Seeds = []string{loopback(t, 1).String()} }).start()
	waitFor(t, "leases", func() bool { return allHeld([]*node{a, b}) && agree([]*node{a, b}) })
	b.kill()
	a.Stop(t.Context())
	a.cfg.Static = []netip.Prefix{netip.MustParsePrefix("100.96.200.0/24")}
	if slices.Contains(a.View().Held, a.cfg.Static[0]) || slices.Contains(b.View().Held, a.cfg.Static[0]) {
		t.Skip("drew the subnet that this test wants for itself")
	}
	a.start()
	waitFor(t, "the static subnet", func() bool { return slices.Contains(a.View().Held, a.cfg.Static[0]) })
}

// TestNewcomerOfTheSameNameGivesWay also to a node that has its lease from an
// earlier run and has met nobody yet.
func TestNewcomerOfTheSameNameGivesWay(t *testing.T) {
	t.Parallel()
	a := newNode(t, 1, func(c *Config) { c.Seeds = []string{loopback(t, 9).String()}; c.Elect = time.Hour })
	a.start()
	a.Stop(t.Context())
	claims := []Claim{{Key: Key{netip.MustParsePrefix("100.96.7.0/24"), a.ID()}, Version: 1, State: Held, Gen: 1, Stamp: 1, Expiry: maxCounter}}
	if err := a.disk.saveLease(a.ID(), a.cfg.Settings, claims); err != nil {
		t.Fatal(err)
	}
	a.start()
	b := newNode(t, 2, func(c *Config) { c.Name = "node1"; c.Seeds = []string{loopback(t, 1).String()} }).start()
	b.waitEnd()
	select {
	case <-a.Done():
		t.Errorf("the node with the lease ended: %v", a.Err())
	default:
	}
	if a.held() != 1 {
		t.Errorf("it holds %v", a.View().Held)
	}
}

// TestGarbageIsCounted: what comes to the gossip port and is no gossip.
func TestGarbageIsCounted(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){"without a key": nil, "with a key": func(c *Config) { c.Keys = [][]byte{[]byte("0123456789abcdef")} }} {
		t.Run(name, func(t *testing.T) {
			a := newNode(t, 1, change).start()
			refused := func() uint64 { return a.Refused()["gossip_packet_refused"] }
			for _, network := range []string{"udp", "tcp"} {
				before := refused()
				conn, err := net.Dial(network, a.cfg.Gossip.String())
				if err != nil {
					t.Fatal(err)
				}
				for range 3 {
					conn.Write([]byte("\xc8garbage garbage garbage garbage garbage garbage garbage"))
				}
				conn.Close()
				waitFor(t, network+" garbage to be counted", func() bool { return refused() > before })
			}
		})
	}
}

// TestSyncThatBringsNothing: exchanges with a node of another cluster that says
// that it holds the settings do not follow each other without a pause.
func TestSyncThatBringsNothing(t *testing.T) {
	t.Parallel()
	a := newNode(t, 1, nil).start()
	waitFor(t, "first lease", func() bool { return a.held() == 2 })
	b := newNode(t, 2, func(c *Config) { c.Settings = testSettings("100.64.0.0/16") }).start()
	waitFor(t, "a lease elsewhere", func() bool { return b.held() == 1 })
	b.Stop(t.Context())
	b.cfg.Seeds = []string{loopback(t, 1).String()}
	b.start()
	<-time.After(3 * time.Second) // what happens in this time is what is counted
	if n := b.refused.counts[slices.Index(refusalErrors[:], errRecordNetwork)].Load(); n > 100 {
		t.Errorf("%d records refused in 3 s: full exchanges in a loop", n)
	}
}
