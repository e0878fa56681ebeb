package kernel_test

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// attack is what somebody sends to the first host, in frames.
type attack struct {
	name   string
	reason string // for which the guard drops it; empty: the kernel does
	n      uint64 // how many packets that are
	real   bool   // it is delivered where there is no guard
	frames [][]byte
}

// withstand sends each attack without a guard, to see that it is one, and with it.
// All of them would let one of the ears hear "attack".
func (g *guarded) withstand(attacks []attack) {
	g.Helper()
	for _, a := range attacks {
		g.Logf("%s", a.name)
		_, err := g.k.RemoveGuard(g.guard.Device)
		g.ok(err)
		g.inject(2, a.frames...)
		if a.real {
			g.either("attack")
		}
		g.set()
		if a.reason != "" {
			g.dropped(a.reason, a.n, func() { g.inject(2, a.frames...) })
		} else {
			g.inject(2, a.frames...)
		}
		// Whatever was left of it, this comes behind it.
		g.inject(2, g.onWire(toPort(g.underlay(2, true), g.underlay(1, true), 4789, inVXLAN(datagram(vtep(2, true), "after")))))
		g.heard(true, "after")
		g.silent()
		if g.Failed() {
			g.Fatalf("%s: see above", a.name)
		}
	}
}

// cut4 makes fragments of an IPv4 datagram of n bytes each, but the last.
func cut4(src, dst netip.Addr, id uint16, options, body []byte, n int) (all [][]byte) {
	for at := 0; at < len(body); at += n {
		end := min(at+n, len(body))
		frag := uint16(at / 8)
		if end < len(body) {
			frag |= 0x2000
		}
		all = append(all, ip4(src, dst, unix.IPPROTO_UDP, id, frag, options, body[at:end]))
	}
	return all
}

// cut6 makes fragments of what follows the IPv6 header, whose first header is
// next; each has the headers before, which lead to the fragment header.
func cut6(src, dst netip.Addr, before func([]byte) (byte, []byte), next byte, body []byte, id uint32, sizes ...int) (all [][]byte) {
	for at := 0; at < len(body); {
		n := len(body)
		if len(sizes) > 0 {
			n, sizes = sizes[0], sizes[1:]
		}
		end := min(at+n, len(body))
		first, packet := before(fragment6(next, at, end < len(body), id, body[at:end]))
		all = append(all, ip6(src, dst, first, packet))
		at = end
	}
	return all
}

func nothing(b []byte) (byte, []byte) { return unix.IPPROTO_FRAGMENT, b }

func (g *guarded) wire(packets [][]byte) (frames [][]byte) {
	for _, p := range packets {
		frames = append(frames, g.onWire(p))
	}
	return frames
}

// backwards puts the first fragment last, so that all have been looked at when
// it was dropped.
func backwards(packets [][]byte) [][]byte {
	slices.Reverse(packets)
	return packets
}

// Nothing reaches the VXLAN device in fragments, even from a peer: what a guard
// sees of it may be the first 8 bytes.
func TestGuardFragments(t *testing.T) { everyIndex(t, guardFragments) }

func guardFragments(t *testing.T, g *guarded) {
	const f = "guard_vxlan_fragment"
	var attacks []attack
	for _, inner4 := range []bool{true, false} {
		body := inVXLAN(datagram(vtep(2, inner4), "attack"))
		src, dst := g.hosts[1].Addr4(), g.hosts[0].Addr4()
		whole := udp(src, dst, 5555, 4789, body)
		id := uint32(100) // what is left of an attack must not fit to the next one
		if inner4 {
			id = 200
		}
		overlap := cut4(src, dst, uint16(id), nil, whole, 16)
		early := overlap[0]
		late := ip4(src, dst, unix.IPPROTO_UDP, uint16(id), 0x2000, nil, whole[:24]) // also over the second one
		broadcast := netip.MustParseAddr("192.0.2.255")
		attacks = append(attacks,
			attack{"IPv4, first of 8 bytes", f, 1, true, g.wire(backwards(cut4(src, dst, uint16(id)+1, nil, whole, 8)))},
			attack{"IPv4, in halves", f, 1, true, g.wire(cut4(src, dst, uint16(id)+2, nil, whole, 40))},
			attack{"IPv4, with options", f, 1, true, g.wire(cut4(src, dst, uint16(id)+3, []byte{1, 1, 1, 0}, whole, 40))},
			attack{"IPv4, twice the first", f, 2, false, g.wire(slices.Concat([][]byte{early, late}, overlap[1:]))},
			attack{"IPv4, of no length that a fragment has", f, 1, false, g.wire(cut4(src, dst, uint16(id)+4, nil, whole, 12))},
			attack{"IPv4, to all", f, 1, true, g.wire(cut4(src, broadcast, uint16(id)+5, nil, udp(src, broadcast, 5555, 4789, body), 40))},
		)

		src, dst = g.hosts[1].Addr6(), g.hosts[0].Addr6()
		whole = udp(src, dst, 5555, 4789, body)
		before := func(b []byte) (byte, []byte) { return unix.IPPROTO_DSTOPTS, padding(unix.IPPROTO_FRAGMENT, b) }
		after := padding(unix.IPPROTO_UDP, whole)
		long := append([]byte{unix.IPPROTO_UDP, 1, 1, 12}, append(make([]byte, 12), whole...)...) // 16 bytes of options
		atomic := func(b []byte) (byte, []byte) {
			return unix.IPPROTO_FRAGMENT, fragment6(unix.IPPROTO_FRAGMENT, 0, false, 7, b)
		}
		nested := cut6(src, dst, nothing, unix.IPPROTO_FRAGMENT, fragment6(unix.IPPROTO_UDP, 0, false, 8, whole), 9, 24)
		attacks = append(attacks,
			attack{"IPv6, first of 8 bytes", f, 1, true, g.wire(backwards(cut6(src, dst, nothing, unix.IPPROTO_UDP, whole, id, 8)))},
			attack{"IPv6, in halves", f, 1, true, g.wire(cut6(src, dst, nothing, unix.IPPROTO_UDP, whole, id+1, 40))},
			attack{"IPv6, options before", f, 1, true, g.wire(cut6(src, dst, before, unix.IPPROTO_UDP, whole, id+2, 8))},
			attack{"IPv6, options after", f, 1, true, g.wire(cut6(src, dst, nothing, unix.IPPROTO_DSTOPTS, after, id+3, 16))},
			attack{"IPv6, first without UDP", f, 1, false, g.wire(cut6(src, dst, nothing, unix.IPPROTO_DSTOPTS, after, id+4, 8))},
			attack{"IPv6, first ends in options", f, 1, false, g.wire(cut6(src, dst, nothing, unix.IPPROTO_DSTOPTS, long, id+5, 8))},
			attack{"IPv6, in one fragment", f, 1, true, g.wire(cut6(src, dst, nothing, unix.IPPROTO_UDP, whole, id+6))},
			attack{"IPv6, fragments after one in one fragment", f, 1, false, g.wire(cut6(src, dst, atomic, unix.IPPROTO_UDP, whole, id+7, 8))},
			attack{"IPv6, one in one fragment in fragments", f, 1, false, g.wire(nested)},
		)
		if !inner4 {
			continue
		}
		// Fragments that lie about what they are a part of.
		frags := cut6(src, dst, nothing, unix.IPPROTO_UDP, whole, id+8, 8)
		frags[1][46] = unix.IPPROTO_TCP // the fragment header's next header of a later one
		attacks = append(attacks, attack{"IPv6, not UDP but in the first", f, 1, false, g.wire(frags)})
	}
	g.withstand(attacks)
}

// Fragments of anything else come through, and those that are forwarded.
func TestGuardOtherFragments(t *testing.T) { everyIndex(t, guardOtherFragments) }

func guardOtherFragments(t *testing.T, g *guarded) {
	for _, four := range []bool{true, false} {
		src, dst := g.underlay(3, four), g.underlay(1, four)
		ear, err := g.hosts[0].ListenUDP(netip.AddrPortFrom(dst, 4790))
		g.ok(err)
		defer ear.Close()
		g.ears[four].Close()
		g.ears[four] = ear
		whole := udp(src, dst, 5555, 4790, []byte("in two fragments"))
		frags := cut4(src, dst, 1, nil, whole, 16)
		if !four {
			frags = cut6(src, dst, nothing, unix.IPPROTO_UDP, whole, 1, 16)
		}
		g.inject(2, g.wire(frags)...)
		g.heard(four, "in two fragments")

		// To another host behind this one.
		far := netip.MustParseAddr("198.51.100.7")
		if !four {
			far = netip.MustParseAddr("2001:db8:f::7")
		}
		g.ok(g.hosts[0].AddRoute(single(far), g.underlay(2, four)))
		seen, err := g.hosts[1].Capture("eth0", func(frame []byte) bool {
			return len(frame) > 41 && (frame[12] == 8 && frame[30] == 198 || len(frame) > 43 && frame[12] == 0x86 && binary.BigEndian.Uint16(frame[42:]) == 0xf)
		})
		g.ok(err)
		defer seen.Stop()
		whole = udp(src, far, 5555, 4789, []byte("in two fragments"))
		frags = cut4(src, far, 2, nil, whole, 16)
		if !four {
			frags = cut6(src, far, nothing, unix.IPPROTO_UDP, whole, 2, 16)
		}
		g.inject(2, g.wire(frags)...)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		g.ok(seen.Wait(ctx, 2))
		if n := g.drops("guard_vxlan_fragment"); n != 0 {
			t.Errorf("%d fragments dropped", n)
		}
	}
}
