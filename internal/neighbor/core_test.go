package neighbor

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/encap"
)

var (
	ours   = mac{2, 0, 0, 0, 0, 1}
	theirs = mac{2, 0, 0, 0, 0, 2}
	other  = mac{2, 0, 0, 0, 0, 3}

	own4, own6     = netip.MustParseAddr("100.96.1.0"), netip.MustParseAddr("fd96:0:0:1::")
	their4, their6 = netip.MustParseAddr("100.96.2.0"), netip.MustParseAddr("fd96:0:0:2::")
	outer          = netip.MustParseAddr("192.0.2.2")
	endpoint       = netip.MustParseAddrPort("192.0.2.2:8472")
	epoch          = time.Unix(1e9, 0)
)

// them is a peer that is asked for the address ask.
func them(ask netip.Addr) Peer {
	return Peer{ID: [16]byte{2}, Sources: []netip.Addr{outer}, Endpoint: endpoint, Ask: ask,
		Prefixes: []netip.Prefix{netip.MustParsePrefix("100.96.2.0/24"), netip.MustParsePrefix("fd96:0:0:2::/64")}}
}

func newTestCore(peers ...Peer) *core {
	c := newCore(ours)
	c.own = []netip.Addr{own4, own6}
	c.setPeers(epoch, peers)
	return c
}

func serialize(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

func arp(t testing.TB, op uint16, fromMAC mac, from netip.Addr, toMAC mac, to netip.Addr) []byte {
	return serialize(t, &layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: op,
		SourceHwAddress: fromMAC[:], SourceProtAddress: from.AsSlice(), DstHwAddress: toMAC[:], DstProtAddress: to.AsSlice()})
}

func nd(t testing.TB, typ uint8, src, dst, subject netip.Addr, opts ...layers.ICMPv6Option) []byte {
	ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typ, 0)}
	if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	var body gopacket.SerializableLayer = &layers.ICMPv6NeighborSolicitation{TargetAddress: subject.AsSlice(), Options: opts}
	if typ == layers.ICMPv6TypeNeighborAdvertisement {
		body = &layers.ICMPv6NeighborAdvertisement{TargetAddress: subject.AsSlice(), Flags: 0x60, Options: opts}
	}
	return serialize(t, ip, icmp, body)
}

func option(typ layers.ICMPv6Opt, m mac) layers.ICMPv6Option {
	return layers.ICMPv6Option{Type: typ, Data: m[:]}
}

const (
	ns = layers.ICMPv6TypeNeighborSolicitation
	na = layers.ICMPv6TypeNeighborAdvertisement
)

// TestAnswers: who asks for our VTEP is told its MAC, in a message that gopacket
// reads as what it should be.
func TestAnswers(t *testing.T) {
	theirLL := LinkLocal(theirs)
	source := option(layers.ICMPv6OptSourceAddress, theirs)
	for _, tt := range []struct {
		name   string
		kind   encap.Kind
		b      []byte
		sender netip.Addr
		target netip.Addr
	}{
		{"ARP", encap.ARP, arp(t, 1, theirs, their4, mac{}, own4), their4, own4},
		{"ARP from its underlay address", encap.ARP, arp(t, 1, theirs, outer, mac{}, own4), outer, own4},
		{"ARP from another of its addresses", encap.ARP, arp(t, 1, theirs, netip.MustParseAddr("100.96.2.77"), mac{}, own4), netip.MustParseAddr("100.96.2.77"), own4},
		{"solicitation", encap.ND, nd(t, ns, their6, solicitedNode(own6), own6, source), their6, own6},
		{"solicitation from a link-local address", encap.ND, nd(t, ns, theirLL, solicitedNode(own6), own6, source), theirLL, own6},
		{"solicitation for the link-local address", encap.ND, nd(t, ns, theirLL, LinkLocal(ours), LinkLocal(ours), source), theirLL, LinkLocal(ours)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newTestCore(them(netip.Addr{}))
			out, changed, drop := c.take(epoch, tt.kind, tt.b, outer)
			if out == nil || changed || drop != none || out.at != endpoint || out.to != theirs || out.kind != tt.kind {
				t.Fatalf("%+v, %v, %v", out, changed, drop)
			}
			if tt.kind == encap.ARP {
				p := gopacket.NewPacket(out.payload, layers.LayerTypeARP, gopacket.Default).Layer(layers.LayerTypeARP).(*layers.ARP)
				if p.Operation != layers.ARPReply || !bytes.Equal(p.SourceHwAddress, ours[:]) || !bytes.Equal(p.SourceProtAddress, tt.target.AsSlice()) ||
					!bytes.Equal(p.DstHwAddress, theirs[:]) || !bytes.Equal(p.DstProtAddress, tt.sender.AsSlice()) {
					t.Errorf("%+v", p)
				}
				return
			}
			p := gopacket.NewPacket(out.payload, layers.LayerTypeIPv6, gopacket.Default)
			ip, _ := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
			adv, _ := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
			if ip == nil || adv == nil || ip.HopLimit != 255 || !ip.DstIP.Equal(net.IP(tt.sender.AsSlice())) || !ip.SrcIP.Equal(net.IP(tt.target.AsSlice())) ||
				!adv.Solicited() || !adv.Override() || !adv.Router() || !adv.TargetAddress.Equal(net.IP(tt.target.AsSlice())) ||
				len(adv.Options) != 1 || adv.Options[0].Type != layers.ICMPv6OptTargetAddress || !bytes.Equal(adv.Options[0].Data, ours[:]) {
				t.Errorf("%v", p)
			}
			if _, err := parse(encap.ND, out.payload); err != nil { // its checksum
				t.Error(err)
			}
		})
	}
}

// TestHeedsNothingElse: spoofed, gratuitous, malformed and unsolicited messages are
// counted as what they are, and change nothing.
func TestHeedsNothingElse(t *testing.T) {
	source, theirLL := option(layers.ICMPv6OptSourceAddress, theirs), LinkLocal(theirs)
	good6 := nd(t, ns, their6, solicitedNode(own6), own6, source)
	with := func(b []byte, at int, v ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], v)
		return b
	}
	stranger := netip.MustParseAddr("192.0.2.66")
	if c := newTestCore(them(netip.Addr{})); true {
		if _, _, drop := c.take(epoch, encap.ND, adjust(with(good6, 43, good6[43]), 0), outer); drop != none {
			t.Fatalf("the good one is refused: %v", drop)
		}
	}
	for _, tt := range []struct {
		name string
		kind encap.Kind
		b    []byte
		from netip.Addr
		want reason
	}{
		{"from another address", encap.ARP, arp(t, 1, theirs, their4, mac{}, own4), stranger, spoofed},
		{"for somebody else", encap.ARP, arp(t, 1, theirs, netip.MustParseAddr("100.96.3.0"), mac{}, own4), outer, spoofed},
		{"for us", encap.ARP, arp(t, 1, ours, own4, mac{}, own4), outer, spoofed},
		{"a probe for our address", encap.ARP, arp(t, 1, theirs, netip.IPv4Unspecified(), mac{}, own4), outer, spoofed},
		{"gratuitous request", encap.ARP, arp(t, 1, theirs, their4, mac{}, their4), outer, notOurs},
		{"gratuitous reply", encap.ARP, arp(t, 2, theirs, their4, broadcastMAC, their4), outer, notOurs},
		{"a container of ours", encap.ARP, arp(t, 1, theirs, their4, mac{}, netip.MustParseAddr("100.96.1.2")), outer, notOurs},
		{"reply to nothing", encap.ARP, arp(t, 2, theirs, their4, ours, own4), outer, unsolicited},
		{"reply for a container", encap.ARP, arp(t, 2, theirs, netip.MustParseAddr("100.96.2.9"), ours, own4), outer, unsolicited},
		{"reverse ARP", encap.ARP, arp(t, 3, theirs, their4, mac{}, own4), outer, malformed},
		{"group MAC", encap.ARP, arp(t, 1, mac{1}, their4, mac{}, own4), outer, malformed},
		{"no MAC", encap.ARP, arp(t, 1, mac{}, their4, mac{}, own4), outer, malformed},
		{"token ring", encap.ARP, with(arp(t, 1, theirs, their4, mac{}, own4), 0, 0, 6), outer, malformed},
		{"Ethernet in half of the hardware type", encap.ARP, with(arp(t, 1, theirs, their4, mac{}, own4), 0, 0x30, 1), outer, malformed}, // found by FuzzParse
		{"not for IPv4", encap.ARP, with(arp(t, 1, theirs, their4, mac{}, own4), 2, 0x86, 0xdd), outer, malformed},
		{"hardware addresses of 8 bytes", encap.ARP, with(arp(t, 1, theirs, their4, mac{}, own4), 4, 8), outer, malformed},
		{"hardware addresses of 120 bytes", encap.ARP, with(arp(t, 1, theirs, their4, mac{}, own4), 4, 120), outer, malformed}, // found by FuzzTake
		{"protocol addresses of 124 bytes", encap.ARP, with(arp(t, 1, theirs, their4, mac{}, own4), 5, 124), outer, malformed},
		{"empty", encap.ARP, nil, outer, malformed},
		{"a cut one", encap.ARP, arp(t, 1, theirs, their4, mac{}, own4)[:27], outer, malformed},
		{"ND: for somebody else", encap.ND, nd(t, ns, netip.MustParseAddr("fd96:0:0:3::"), solicitedNode(own6), own6, source), outer, spoofed},
		{"ND: from another address", encap.ND, good6, stranger, spoofed},
		{"ND: of a container of ours", encap.ND, nd(t, ns, their6, solicitedNode(own6), netip.MustParseAddr("fd96:0:0:1::9"), source), outer, notOurs},
		{"ND: duplicate address detection", encap.ND, nd(t, ns, netip.IPv6Unspecified(), solicitedNode(own6), own6), outer, malformed},
		{"ND: unsolicited", encap.ND, nd(t, na, their6, netip.MustParseAddr("ff02::1"), their6, option(layers.ICMPv6OptTargetAddress, theirs)), outer, malformed},
		{"ND: reply to nothing", encap.ND, nd(t, na, their6, LinkLocal(ours), their6, option(layers.ICMPv6OptTargetAddress, theirs)), outer, unsolicited},
		{"ND: checksum", encap.ND, with(good6, 42, good6[42]^1), outer, malformed},
		{"ND: target", encap.ND, nd(t, ns, their6, solicitedNode(own6), netip.MustParseAddr("ff02::9"), source), outer, malformed},
		{"ND: code", encap.ND, adjust(with(good6, 41, 1), 1), outer, malformed},
		{"ND: cut", encap.ND, good6[:63], outer, malformed},
		{"ND: no MAC, and none is known", encap.ND, nd(t, ns, theirLL, LinkLocal(ours), own6), outer, malformed},
		{"ND: group MAC", encap.ND, nd(t, ns, theirLL, LinkLocal(ours), own6, option(layers.ICMPv6OptSourceAddress, mac{1})), outer, malformed},
		{"another kind", encap.IPv4, arp(t, 1, theirs, their4, mac{}, own4), outer, malformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newTestCore(them(netip.Addr{}))
			before := c.state([16]byte{2})
			if out, changed, drop := c.take(epoch, tt.kind, tt.b, tt.from); out != nil || changed || drop != tt.want {
				t.Errorf("%+v, %v, %v; want %v", out, changed, drop, tt.want)
			}
			if after := c.state([16]byte{2}); after != before {
				t.Errorf("%+v, now %+v", before, after)
			}
		})
	}
}

// adjust makes the ICMPv6 checksum right again after a 16-bit word has grown by n.
func adjust(b []byte, n uint16) []byte {
	sum := uint32(b[42])<<8 | uint32(b[43])
	if sum -= uint32(n); sum > 0xffff { // end-around borrow
		sum--
	}
	b[42], b[43] = byte(sum>>8), byte(sum)
	return b
}

// TestOptionOfNoLength would be read for ever.
func TestOptionOfNoLength(t *testing.T) {
	b := nd(t, ns, their6, solicitedNode(own6), own6, option(layers.ICMPv6OptSourceAddress, theirs))
	b[65] = 0
	sum := uint16(b[42])<<8 | uint16(b[43])
	sum++ // the length was 1
	b[42], b[43] = byte(sum>>8), byte(sum)
	c := newTestCore(them(netip.Addr{}))
	if out, _, drop := c.take(epoch, encap.ND, b, outer); out != nil || drop != malformed {
		t.Errorf("%+v, %v", out, drop)
	}
}

func TestAnswersAreRateLimited(t *testing.T) {
	c := newTestCore(them(netip.Addr{}))
	q := arp(t, 1, theirs, their4, mac{}, own4)
	answers := func(now time.Time) (n int) {
		for range 100 {
			if out, _, drop := c.take(now, encap.ARP, q, outer); out != nil {
				n++
			} else if drop != rateLimited {
				t.Fatal(drop)
			}
		}
		return n
	}
	if n := answers(epoch); n != answerBurst {
		t.Errorf("%d answers at once", n)
	}
	if n := answers(epoch.Add(500 * time.Millisecond)); n != answerRate/2 {
		t.Errorf("%d answers half a second later", n)
	}
}

// TestAsking follows a static peer from unknown to known, changed, lost and back.
func TestAsking(t *testing.T) {
	for _, tt := range []struct {
		name      string
		ask, self netip.Addr
		answer    func(m mac, c *core) (encap.Kind, []byte)
	}{
		{"ARP", their4, own4, func(m mac, c *core) (encap.Kind, []byte) {
			return encap.ARP, arp(t, 2, m, their4, ours, own4)
		}},
		{"ND", their6, LinkLocal(ours), func(m mac, c *core) (encap.Kind, []byte) {
			return encap.ND, nd(t, na, their6, LinkLocal(ours), their6, option(layers.ICMPv6OptTargetAddress, m))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newTestCore(them(tt.ask))
			id, now := [16]byte{2}, epoch
			poll := func(to mac) {
				t.Helper()
				due, next, _ := c.poll(now)
				if len(due) != 1 || due[0].to != to || due[0].at != endpoint || next != now.Add(askAgain) {
					t.Fatalf("%+v, next %v", due, next.Sub(epoch))
				}
				m, err := parse(due[0].kind, due[0].payload)
				if err != nil || m.answer || m.sender != tt.self || m.senderMAC != ours || m.target != tt.ask {
					t.Fatalf("%+v, %v", m, err)
				}
				now = next
			}
			hear := func(m mac, wantChange bool) {
				t.Helper()
				k, b := tt.answer(m, c)
				at := c.peers[id].asked.Add(3 * time.Millisecond)
				if _, changed, drop := c.take(at, k, b, netip.MustParseAddr("192.0.2.66")); changed || drop != unsolicited {
					t.Fatalf("somebody else's answer: %v, %v", changed, drop)
				}
				if _, changed, drop := c.take(at, k, b, outer); changed != wantChange || drop != none {
					t.Fatalf("changed %v, %v", changed, drop)
				}
				s := c.state(id)
				if !s.Up || s.MAC != m || s.RTT != 3*time.Millisecond || s.LastProof != at {
					t.Fatalf("%+v", s)
				}
				if _, changed, drop := c.take(at, k, b, outer); changed || drop != unsolicited {
					t.Fatalf("the same again: %v, %v", changed, drop)
				}
				now = at.Add(refresh)
			}
			if s := c.state(id); s.Up || s.MAC != (mac{}) {
				t.Fatalf("%+v", s)
			}
			poll(groupMAC(tt.ask))
			poll(groupMAC(tt.ask))
			hear(theirs, true)
			poll(theirs) // it is asked directly
			hear(theirs, false)
			poll(theirs)
			poll(groupMAC(tt.ask)) // another may have taken its place
			hear(other, true)
			for i := range lostAfter {
				if s := c.state(id); !s.Up {
					t.Fatalf("down after %d questions: %+v", i, s)
				}
				to := other
				if i > 0 {
					to = groupMAC(tt.ask)
				}
				poll(to)
			}
			if _, _, changed := c.poll(now); !changed || c.state(id).Up {
				t.Fatalf("still up: %+v", c.state(id))
			}
			if lost := now.Sub(c.state(id).LastProof); lost > 10*time.Second {
				t.Errorf("noticed after %v", lost)
			}
			hear(theirs, true)
		})
	}
}

// TestUnicastAnswer: a kernel that is asked directly does not say its MAC (RFC 4861
// section 4.4).
func TestUnicastAnswer(t *testing.T) {
	bare := nd(t, na, their6, LinkLocal(ours), their6)
	c := newTestCore(them(their6))
	c.poll(epoch)
	if _, changed, drop := c.take(epoch, encap.ND, bare, outer); changed || drop != spoofed {
		t.Errorf("nobody knows it yet: %v, %v", changed, drop)
	}
	if _, changed, drop := c.take(epoch, encap.ND, nd(t, na, their6, LinkLocal(ours), their6, option(layers.ICMPv6OptTargetAddress, theirs)), outer); !changed || drop != none {
		t.Fatalf("%v, %v", changed, drop)
	}
	later := epoch.Add(refresh)
	if due, _, _ := c.poll(later); len(due) != 1 || due[0].to != theirs {
		t.Fatalf("%+v", due)
	}
	if _, changed, drop := c.take(later.Add(time.Millisecond), encap.ND, bare, outer); changed || drop != none || !c.state([16]byte{2}).Up || c.state([16]byte{2}).RTT != time.Millisecond {
		t.Errorf("%v, %v, %+v", changed, drop, c.state([16]byte{2}))
	}
}

// TestManyPings: they wait for the answer to one question, and prove nothing while it
// is open.
func TestManyPings(t *testing.T) {
	c := newTestCore(them(their4))
	c.poll(epoch)
	c.take(epoch, encap.ARP, arp(t, 2, theirs, their4, ours, own4), outer)
	p, now := c.peers[[16]byte{2}], epoch.Add(refresh)
	asked := 0
	for i := range 20 {
		g := &ping{began: now, result: make(chan time.Duration, 1)}
		p.pings, p.next = append(p.pings, g), now
		due, _, changed := c.poll(now)
		if asked += len(due); changed || !p.up || asked != 1 {
			t.Fatalf("ping %d: %d questions, up %v", i, asked, p.up)
		}
		now = now.Add(time.Millisecond)
	}
	pings := p.pings
	if _, _, drop := c.take(now, encap.ARP, arp(t, 2, theirs, their4, ours, own4), outer); drop != none {
		t.Fatal(drop)
	}
	if c.state([16]byte{2}).RTT != 20*time.Millisecond {
		t.Errorf("%+v", c.state([16]byte{2}))
	}
	for i, g := range pings {
		if rtt := <-g.result; rtt != time.Duration(20-i)*time.Millisecond {
			t.Errorf("ping %d: %v", i, rtt)
		}
	}
}

// TestPeersAtOneAddress: a link-local sender is the one of them whose MAC it has.
func TestPeersAtOneAddress(t *testing.T) {
	first, second := them(netip.Addr{}), them(netip.Addr{})
	first.MAC = other
	second.ID, second.MAC, second.Endpoint = [16]byte{3}, theirs, netip.AddrPortFrom(outer, 4790)
	second.Prefixes = []netip.Prefix{netip.MustParsePrefix("100.96.3.0/24")}
	c := newTestCore(first, second)
	q := nd(t, ns, LinkLocal(theirs), LinkLocal(ours), own6, option(layers.ICMPv6OptSourceAddress, theirs))
	if out, _, drop := c.take(epoch, encap.ND, q, outer); out == nil || out.at != second.Endpoint {
		t.Errorf("%+v, %v", out, drop)
	}
	if out, _, drop := c.take(epoch, encap.ARP, arp(t, 1, theirs, netip.MustParseAddr("100.96.3.0"), mac{}, own4), outer); out == nil || out.at != second.Endpoint {
		t.Errorf("%+v, %v", out, drop)
	}
}

// TestNobodyAsksForNothing: without an address of ours, or of theirs, or if the MAC
// is known.
func TestNobodyAsksForNothing(t *testing.T) {
	given := them(their4)
	given.MAC = theirs
	nowhere := them(their4)
	nowhere.Endpoint = netip.AddrPort{}
	for name, p := range map[string]Peer{"no address": them(netip.Addr{}), "given": given, "no endpoint": nowhere} {
		if due, next, _ := newTestCore(p).poll(epoch); len(due) > 0 || !next.IsZero() {
			t.Errorf("%s: %v, %v", name, due, next)
		}
	}
	c := newTestCore(them(their4))
	c.own = nil
	if due, next, _ := c.poll(epoch); len(due) > 0 || next != epoch.Add(askAgain) {
		t.Errorf("without a lease: %v, %v", due, next)
	}
	c.own = []netip.Addr{own4}
	if due, _, _ := c.poll(epoch.Add(askAgain)); len(due) != 1 {
		t.Errorf("with one: %v", due)
	}
}

// TestPeersStay: what is known of a peer outlives others' coming and going, not its
// own moving.
func TestPeersStay(t *testing.T) {
	c := newTestCore(them(their4))
	c.poll(epoch)
	c.take(epoch, encap.ARP, arp(t, 2, theirs, their4, ours, own4), outer)
	id := [16]byte{2}
	c.setPeers(epoch, []Peer{them(their4), {ID: [16]byte{3}}})
	if !c.state(id).Up {
		t.Error("forgotten")
	}
	moved := them(their4)
	moved.Endpoint = netip.MustParseAddrPort("192.0.2.3:8472")
	c.setPeers(epoch, []Peer{moved})
	if s := c.state(id); s.Up || s.MAC != (mac{}) {
		t.Errorf("moved: %+v", s)
	}
}

// FuzzTake: whatever comes, nothing panics; answers go to the peer alone, and states
// change by answers to questions alone.
func FuzzTake(f *testing.F) {
	f.Add(uint8(encap.ARP), arp(f, 1, theirs, their4, mac{}, own4))
	f.Add(uint8(encap.ARP), arp(f, 2, theirs, their4, ours, own4))
	f.Add(uint8(encap.ND), nd(f, ns, their6, solicitedNode(own6), own6, option(layers.ICMPv6OptSourceAddress, theirs)))
	f.Add(uint8(encap.ND), nd(f, na, their6, LinkLocal(ours), their6, option(layers.ICMPv6OptTargetAddress, theirs)))
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		for _, ask := range []netip.Addr{{}, their4, their6} {
			c := newTestCore(them(ask))
			due, _, _ := c.poll(epoch)
			before := bytes.Clone(b)
			out, changed, drop := c.take(epoch, encap.Kind(kind), b, outer)
			if !bytes.Equal(b, before) {
				t.Fatal("the message was changed")
			}
			if out != nil && (drop != none || changed || out.at != endpoint || !station(out.to) || out.to == ours) {
				t.Fatalf("%+v beside %v, %v", out, drop, changed)
			}
			if out != nil {
				read := readARP
				if out.kind == encap.ND {
					read = readND
				}
				m, err := parse(out.kind, out.payload)
				if again, ok := read(out.payload); err != nil || !ok || again != m || !m.answer || m.senderMAC != ours {
					t.Fatalf("our own answer %x: %+v, %v, to gopacket it is %+v, %v", out.payload, m, err, again, ok)
				}
			}
			if s := c.state([16]byte{2}); changed != s.Up || changed && (len(due) == 0 || drop != none || !station(s.MAC) || s.MAC == ours) {
				t.Fatalf("changed %v: %+v", changed, s)
			}
			if c.mac != ours || len(c.peers) != 1 {
				t.Fatal("something else has changed")
			}
		}
	})
}
