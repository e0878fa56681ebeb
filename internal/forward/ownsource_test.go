package forward

import (
	"net/netip"
	"testing"
)

// TestOwnAddressIsNobodysSource: a peer that gossips one of our underlay
// addresses as its own does not get it as an inner source.
func TestOwnAddressIsNobodysSource(t *testing.T) {
	a := netip.MustParseAddr
	for _, c := range []struct{ own, outer, dst netip.Addr }{
		{a("192.0.2.1"), a("2001:db8::2"), a("100.96.1.2")},
		{a("2001:db8::1"), a("192.0.2.2"), a("fd96:0:0:1::2")},
	} {
		table, err := NewTable(TableConfig{
			Networks:    []netip.Prefix{netip.MustParsePrefix("100.96.0.0/16"), netip.MustParsePrefix("fd96::/48")},
			Own:         []netip.Prefix{netip.MustParsePrefix("100.96.1.0/24"), netip.MustParsePrefix("fd96:0:0:1::/64")},
			OwnAddrs:    []netip.Addr{c.own},
			AllowSource: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
			Peers:       []*Peer{{ID: [16]byte{1}, Sources: []netip.Addr{c.own, c.outer}, Counters: new(PeerCounters)}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, r := table.accept(table.senders(c.outer), c.outer, c.own, c.dst); r != RxSpoofedSource {
			t.Errorf("inner source %v from %v: %v", c.own, c.outer, r)
		}
		if _, r := table.accept(table.senders(c.outer), c.outer, c.outer, c.dst); c.outer.Is4() == c.dst.Is4() && r != None {
			t.Errorf("its other address: %v", r)
		}
	}
}
