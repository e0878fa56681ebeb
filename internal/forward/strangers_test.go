package forward

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
)

// filterConn remembers the filter that it was given.
type filterConn struct {
	batchConn
	lost  uint64
	known []netip.Addr
	on    bool
	fail  error
}

func (c *filterConn) dropped() uint64 { return c.lost }
func (c *filterConn) admit(known []netip.Addr) error {
	if c.fail != nil {
		return c.fail
	}
	c.on, c.known = true, slices.SortedFunc(slices.Values(known), netip.Addr.Compare)
	return nil
}
func (c *filterConn) admitAll() { c.on = false }

// TestStrangers: many strangers call for the filter, it follows the table, it goes
// when they do, and what the kernel drops is counted under the right name.
func TestStrangers(t *testing.T) {
	var d Drops
	a, b := &filterConn{}, &filterConn{}
	s := newStrangers(&d, []batchConn{a, b})
	s.checksums, s.wrong = func() (uint64, bool) { return 0, true }, 0 // not of this host
	table := mustTable(t, testTableConfig())
	load := func() *Table { return table }
	want := func(what string, on bool, unknown, full uint64) {
		t.Helper()
		if a.on != on || b.on != on || d.Count(RxUnknownSource) != unknown || d.Count(RxSocketFull) != full {
			t.Fatalf("%s: filters %v and %v, %d strangers' and %d for lack of room; want %v, %d, %d",
				what, a.on, b.on, d.Count(RxUnknownSource), d.Count(RxSocketFull), on, unknown, full)
		}
	}
	d.Add(RxUnknownSource, manyStrangers-1)
	a.lost = 5
	s.tick(load)
	want("not yet", false, manyStrangers-1, 5)
	d.Add(RxUnknownSource, manyStrangers)
	s.tick(load)
	unknown := uint64(2*manyStrangers - 1)
	want("many", true, unknown, 5)
	if len(a.known) != len(table.sources) || !slices.Contains(a.known, addr("192.0.2.2")) {
		t.Errorf("known are %v", a.known)
	}
	a.lost, b.lost = 1005, 500
	s.tick(load)
	unknown += 1500
	want("the kernel drops them", true, unknown, 5)
	cfg := testTableConfig()
	cfg.Peers = cfg.Peers[:1]
	smaller := mustTable(t, cfg)
	s.renew(func() *Table { return smaller })
	if slices.Contains(a.known, addr("192.0.2.3")) || !slices.Equal(a.known, b.known) {
		t.Errorf("of the new table %v and %v are known", a.known, b.known)
	}
	for range quietSeconds - 1 {
		s.tick(load)
	}
	want("quiet for a while", true, unknown, 5)
	b.lost += fewStrangers
	s.tick(load)
	unknown += fewStrangers
	for range quietSeconds - 1 {
		s.tick(load)
	}
	want("and again", true, unknown, 5)
	s.tick(load)
	want("quiet", false, unknown, 5)
	b.lost += 7
	s.tick(load)
	want("no room", false, unknown, 12)
	wrong := uint64(100)
	told := true
	s.checksums, s.wrong = func() (uint64, bool) { return wrong, told }, 90
	b.lost += 10 // as many as others on this host may have to do with
	s.tick(load)
	want("wrong checksums", false, unknown, 12)
	wrong += 3
	b.lost += 8
	s.tick(load)
	want("some wrong, some too many", false, unknown, 17)
	wrong += 2 // the socket is looked at before it shows them
	s.tick(load)
	b.lost += 2
	s.tick(load)
	want("seen late", false, unknown, 17)
	wrong += 50 // somebody else's
	s.tick(load)
	s.tick(load)
	b.lost += 4
	s.tick(load)
	want("of others, before", false, unknown, 21)
	told, wrong = false, 0 // it cannot be read
	b.lost += 2
	s.tick(load)
	told, wrong = true, 155
	b.lost++
	s.tick(load)
	want("of nobody", false, unknown, 24)
	if n := d.Count(RxChecksum); n != 15 {
		t.Errorf("%d wrong checksums", n)
	}

	b.fail = errors.New("no filters here")
	d.Add(RxUnknownSource, manyStrangers)
	s.tick(load)
	want("a socket that has no filters", false, unknown+manyStrangers, 24)
}

// TestAdmit: the kernel lets pass who is known, of both families, and nobody else.
func TestAdmit(t *testing.T) {
	many := make([]netip.Addr, 0, 3000)
	for a := addr("10.0.0.0"); len(many) < cap(many); a = a.Next() {
		many = append(many, a)
	}
	for _, tt := range []struct {
		name, from, to string
		known          []netip.Addr
		pass           bool
		err            error
	}{
		{"known", "127.0.0.2", "127.0.0.1", addrs("127.0.0.2"), true, nil},
		{"known among others", "127.0.0.2", "127.0.0.1", append(addrs("::1", "127.0.0.3", "127.0.0.2"), many[:1000]...), true, nil},
		{"last of many", "127.0.0.2", "127.0.0.1", append(slices.Clone(many[:2000]), addr("127.0.0.2")), true, nil},
		{"stranger", "127.0.0.2", "127.0.0.1", append(addrs("::1", "127.0.0.3"), many[:1000]...), false, nil},
		{"nobody is known", "127.0.0.2", "127.0.0.1", nil, false, nil},
		{"too many", "127.0.0.2", "127.0.0.1", many, true, errManyAddrs},
		{"IPv6 known", "::1", "::1", addrs("::2", "1::1", "::1:0:0:1", "::1"), true, nil},
		{"IPv6 stranger", "::1", "::1", addrs("::2", "1::1", "0:1::1", "0:0:1::1", "0:0:0:1::1", "::1:0:0:1", "127.0.0.1"), false, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			from, to := listen(t, tt.from), listen(t, tt.to)
			rx, _ := taken(t, to, addr(tt.to).Is6(), 8, true)
			if err := rx.admit(tt.known); !errors.Is(err, tt.err) {
				t.Fatalf("admit: %v, want %v", err, tt.err)
			}
			send := func(b byte) {
				if _, err := from.WriteToUDPAddrPort([]byte{b}, bound(to)); err != nil {
					t.Fatal(err)
				}
			}
			send(1)
			lost := rx.dropped()
			rx.admitAll()
			send(2)
			in := []datagram{{bufs: [][]byte{make([]byte, maxDatagram)}}}
			if n, err := rx.readBatch(in); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			if passed := in[0].bufs[0][0] == 1; passed != tt.pass || (lost > 0) == tt.pass {
				t.Errorf("passed %v, want %v; the kernel has dropped %d", passed, tt.pass, lost)
			}
			rx.admitAll() // once more does no harm
		})
	}
}
