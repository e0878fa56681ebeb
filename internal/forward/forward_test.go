package forward

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"go.uber.org/goleak"

	"github.com/overlayd/overlayd/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix     { return netip.MustParsePrefix(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, prefix(s))
	}
	return out
}

func addrs(ss ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range ss {
		out = append(out, addr(s))
	}
	return out
}

// inner makes an IP packet of n bytes with the experimental protocol 253 (RFC
// 3692) behind the fixed header, and sets every byte that parseInner looks at.
func inner(src, dst netip.Addr, n int) []byte {
	p := make([]byte, n)
	if src.Is4() {
		s, d := src.As4(), dst.As4()
		p[0], p[8], p[9] = 0x45, 64, 253
		binary.BigEndian.PutUint16(p[2:], uint16(n))
		copy(p[12:], s[:])
		copy(p[16:], d[:])
		return p
	}
	s, d := src.As16(), dst.As16()
	p[0], p[6], p[7] = 0x60, 253, 64
	binary.BigEndian.PutUint16(p[4:], uint16(n-ipv6HeaderLen))
	copy(p[8:], s[:])
	copy(p[24:], d[:])
	return p
}

func innerFrom(src, dst string, n int) []byte { return inner(addr(src), addr(dst), n) }

// The cluster that most tests use, as node 1 sees it:
//
//	node 1  100.96.1.0/24 fd96:0:0:1::/64   us
//	node 2  100.96.2.0/24 fd96:0:0:2::/64   192.0.2.2, 2001:db8::2
//	node 3  100.96.3.0/24                   192.0.2.3, shared with node 4, MTU 9000
//	node 4  100.96.4.0/24                   192.0.2.3, port 9999
//	node 5  100.96.5.0/24 fd96:0:0:5::/64   2001:db8::5, next hop down
//	node 6  100.96.6.0/24                   no endpoint
//	node 7  fd96:0:0:7::/64                 2001:db8::7, MTU 1280
func testPeers() []*Peer {
	peer := func(n byte, endpoint string, usable bool, mtu int, sources []netip.Addr, ps ...string) *Peer {
		p := &Peer{
			ID: [16]byte{n}, Name: "node" + string('0'+rune(n)), Prefixes: prefixes(ps...),
			Sources: sources, Usable: usable, MTU: mtu, Counters: new(PeerCounters),
		}
		p.Dest.MAC = [6]byte{2, 0, 0, 0, 0, n}
		if endpoint != "" {
			p.Endpoint = addrPort(endpoint)
		}
		return p
	}
	return []*Peer{
		peer(2, "192.0.2.2:8285", true, 0, addrs("192.0.2.2", "2001:db8::2"), "100.96.2.0/24", "fd96:0:0:2::/64"),
		peer(3, "192.0.2.3:8285", true, 9000, addrs("192.0.2.3"), "100.96.3.0/24"),
		peer(4, "192.0.2.3:9999", true, 0, addrs("192.0.2.3"), "100.96.4.0/24"),
		peer(5, "[2001:db8::5]:8285", false, 0, addrs("2001:db8::5"), "100.96.5.0/24", "fd96:0:0:5::/64"),
		peer(6, "", true, 0, nil, "100.96.6.0/24"),
		peer(7, "[2001:db8::7]:8285", true, 1280, addrs("2001:db8::7"), "fd96:0:0:7::/64"),
	}
}

func testTableConfig() TableConfig {
	return TableConfig{
		Networks:    prefixes("100.96.0.0/16", "fd96::/48"),
		Own:         prefixes("100.96.1.0/24", "fd96:0:0:1::/64"),
		OwnAddrs:    addrs("198.51.100.200", "2001:db8:1::200", "100.96.1.0", "fd96:0:0:1::"),
		AllowSource: prefixes("198.51.100.0/24", "100.96.0.0/12", "2001:db8:1::/48"),
		Peers:       testPeers(),
	}
}

func mustTable(t testing.TB, cfg TableConfig) *Table {
	t.Helper()
	tb, err := NewTable(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tb
}

// stubDevice is a device for tests that call the loops' parts one by one.
type stubDevice struct {
	features tunnel.Features
	write    func([]tunnel.Packet) (int, error)
}

func (d *stubDevice) Name() string                         { return "stub" }
func (d *stubDevice) Features() tunnel.Features            { return d.features }
func (d *stubDevice) Read([]tunnel.Packet) (int, error)    { panic("not read by this test") }
func (d *stubDevice) Write(p []tunnel.Packet) (int, error) { return d.write(p) }
func (d *stubDevice) Close() error                         { return nil }

// stubEngine is an Engine without sockets, for the parts of the loops.
func stubEngine(t testing.TB, write func([]tunnel.Packet) (int, error)) *Engine {
	t.Helper()
	if write == nil {
		write = func(p []tunnel.Packet) (int, error) { return len(p), nil }
	}
	e := newEngine(Config{
		Device: &stubDevice{features: tunnel.Features{ReadBatch: 16, MaxPacket: 2000}, write: write},
		Codec:  testCodec{},
		MTU:    1400,
	})
	e.SetTable(mustTable(t, testTableConfig()))
	return e
}

// queueOf is a queue of e's device.
func queueOf(e *Engine) *queue { return &queue{dev: e.device, out: e.out} }

// txLoopOf is the transmit loop of a queue with such sockets.
func txLoopOf(e *Engine, conns [sockCount]batchConn, off [sockCount]offloads) *txLoop {
	q := queueOf(e)
	for i, c := range conns {
		if c != nil {
			q.tx[i] = []sock{{conn: c, off: off[i]}}
		}
	}
	return newTxLoop(e, q)
}
