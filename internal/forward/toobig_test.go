package forward

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/encap"
)

type heardSize struct {
	peer [16]byte
	to   netip.AddrPort
	mtu  int
}

// TestTooBigIsBelieved: what a router says of a datagram's size counts if this node
// may have sent that datagram.
func TestTooBigIsBelieved(t *testing.T) {
	long := func(src, dst string) []byte { return frame(encap.IPv4, innerFrom(src, dst, 1400)) }
	long6 := frame(encap.IPv6, innerFrom("fd96:0:0:1::9", "fd96:0:0:2::1", 1400))
	control := frame(encap.Control, make([]byte, 60))
	to := addrPort("192.0.2.2:8285")
	over := 20 + 8 + testCodec{}.HeaderLen()
	for _, tt := range []struct {
		name  string
		to    netip.AddrPort
		mtu   int
		quote []byte
		inner int // -1: not believed
	}{
		{"to the peer", to, 1300, long("100.96.1.9", "100.96.2.1"), 1300 - over},
		{"from this host", to, 1300, long("192.0.2.1", "100.96.2.1"), 1300 - over},
		{"IPv6 inside", to, 1300, long6, 1300 - over},
		{"just too long", to, 1400 + over - 1, long("100.96.1.9", "100.96.2.1"), 1399},
		{"it would have fitted", to, 1400 + over, long("100.96.1.9", "100.96.2.1"), -1},
		{"less than the headers", to, 10, long("100.96.1.9", "100.96.2.1"), 0},
		{"to another port", addrPort("192.0.2.2:53"), 1300, long("100.96.1.9", "100.96.2.1"), -1},
		{"to a stranger", addrPort("192.0.2.66:8285"), 1300, long("100.96.1.9", "100.96.2.1"), -1},
		{"for another peer", to, 1300, long("100.96.1.9", "100.96.4.1"), -1},
		{"for nobody", to, 1300, long("100.96.1.9", "100.96.77.1"), -1},
		{"from the peer", to, 1300, long("100.96.2.9", "100.96.2.1"), -1},
		{"longer than anything that is sent", to, 1300, frame(encap.IPv4, innerFrom("100.96.1.9", "100.96.2.1", 1401)), -1},
		{"a control frame", to, 1300, control, -1},
		{"quotes too little", to, 1300, long("100.96.1.9", "100.96.2.1")[:20], -1},
		{"quotes nothing", to, 1300, nil, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := stubEngine(t, nil)
			var heard []heardSize
			e.tooBig = func(p [16]byte, to netip.AddrPort, mtu int) { heard = append(heard, heardSize{p, to, mtu}) }
			quote := tt.quote[:min(len(tt.quote), quoteLen)]
			e.heardTooBig(tooBig{to: tt.to, mtu: tt.mtu, quote: quote})
			var want []heardSize
			if tt.inner >= 0 {
				want = []heardSize{{e.Table().Peers()[0].ID, to, tt.inner}}
			}
			if !slices.Equal(heard, want) {
				t.Errorf("told %v, want %v", heard, want)
			}
			if tt.name == "a control frame" {
				if len(heard) > 0 || e.Drops().Count(RxICMPNotBelieved) > 0 {
					t.Errorf("told %v", heard)
				}
				return
			}
			counts := [2]uint64{e.Drops().Count(TxSocketTooBig), e.Drops().Count(RxICMPNotBelieved)}
			if (counts == [2]uint64{1, 0}) != (want != nil) || counts[0]+counts[1] != 1 {
				t.Errorf("counted as lost and as not believed: %v", counts)
			}
		})
	}
}

// TestTooBigOfTwo: of two peers that are known at one endpoint, one of which is gone,
// that is meant whose packet is quoted.
func TestTooBigOfTwo(t *testing.T) {
	for _, first := range []bool{true, false} {
		cfg := testTableConfig()
		gone := *cfg.Peers[0]
		gone.ID, gone.Name, gone.Prefixes, gone.Dest = [16]byte{99}, "gone", nil, encap.Dest{}
		if first {
			cfg.Peers = slices.Insert(cfg.Peers, 0, &gone)
		} else {
			cfg.Peers = append(cfg.Peers, &gone)
		}
		e := stubEngine(t, nil)
		e.SetTable(mustTable(t, cfg))
		var heard []heardSize
		e.tooBig = func(p [16]byte, to netip.AddrPort, mtu int) { heard = append(heard, heardSize{p, to, mtu}) }
		to := addrPort("192.0.2.2:8285")
		e.heardTooBig(tooBig{to: to, mtu: 1300, quote: frame(encap.IPv4, innerFrom("100.96.1.9", "100.96.2.1", 1400))[:quoteLen]})
		if len(heard) != 1 || heard[0].peer != [16]byte{2} || e.Drops().Count(RxICMPNotBelieved) != 0 {
			t.Errorf("first %v: %v", first, heard)
		}
	}
}

// FuzzTooBig: whatever is quoted, and whatever the kernel's control messages hold,
// nothing panics, and no size is told that is not below what was quoted.
func FuzzTooBig(f *testing.F) {
	f.Add(uint16(1300), frame(encap.IPv4, innerFrom("100.96.1.9", "100.96.2.1", 1400)), []byte{})
	f.Add(uint16(0), []byte{0x45}, make([]byte, 48))
	e := stubEngine(f, nil)
	told := -1
	e.tooBig = func(_ [16]byte, _ netip.AddrPort, mtu int) { told = mtu }
	f.Fuzz(func(t *testing.T, mtu uint16, quote, control []byte) {
		readTooBig(control)
		readCmsgs(control)
		told = -1
		e.heardTooBig(tooBig{to: addrPort("192.0.2.2:8285"), mtu: int(mtu), quote: quote})
		if told > int(mtu) || told >= e.mtu {
			t.Fatalf("MTU %d became %d", mtu, told)
		}
	})
}

// TestReadTooBig reads the kernel's messages: struct sock_extended_err behind a
// struct cmsghdr.
func TestReadTooBig(t *testing.T) {
	message := func(level, typ uint32, errno unix.Errno, origin byte, info uint32) []byte {
		b := make([]byte, 16+16)
		binary.NativeEndian.PutUint64(b, uint64(len(b)))
		binary.NativeEndian.PutUint32(b[8:], level)
		binary.NativeEndian.PutUint32(b[12:], typ)
		binary.NativeEndian.PutUint32(b[16:], uint32(errno))
		b[20] = origin
		binary.NativeEndian.PutUint32(b[24:], info)
		return b
	}
	var tos [cmsgSpace]byte
	putTrafficClass(tos[:], false, 7)
	for _, tt := range []struct {
		name string
		b    []byte
		want int
	}{
		{"IPv4", message(unix.IPPROTO_IP, unix.IP_RECVERR, unix.EMSGSIZE, unix.SO_EE_ORIGIN_ICMP, 1400), 1400},
		{"IPv6", message(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, unix.EMSGSIZE, unix.SO_EE_ORIGIN_ICMP6, 1280), 1280},
		{"behind another one", append(tos[:], message(unix.IPPROTO_IP, unix.IP_RECVERR, unix.EMSGSIZE, unix.SO_EE_ORIGIN_ICMP, 1400)...), 1400},
		{"absurd", message(unix.IPPROTO_IP, unix.IP_RECVERR, unix.EMSGSIZE, unix.SO_EE_ORIGIN_ICMP, 1<<31), 65535},
		{"of this host", message(unix.IPPROTO_IP, unix.IP_RECVERR, unix.EMSGSIZE, unix.SO_EE_ORIGIN_LOCAL, 1400), 0},
		{"port unreachable", message(unix.IPPROTO_IP, unix.IP_RECVERR, unix.ECONNREFUSED, unix.SO_EE_ORIGIN_ICMP, 0), 0},
		{"of another option", message(unix.IPPROTO_IP, unix.IP_TTL, unix.EMSGSIZE, unix.SO_EE_ORIGIN_ICMP, 1400), 0},
		{"cut", message(unix.IPPROTO_IP, unix.IP_RECVERR, unix.EMSGSIZE, unix.SO_EE_ORIGIN_ICMP, 1400)[:20], 0},
		{"nothing", nil, 0},
	} {
		if got := readTooBig(tt.b); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}
