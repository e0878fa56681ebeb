package forward

import (
	"encoding/binary"
	"hash/maphash"
	"testing"
)

// TestFlowHash: what belongs to one flow has one hash, and many flows spread evenly.
func TestFlowHash(t *testing.T) {
	seed := maphash.MakeSeed()
	udp4 := func(src, dst uint16) []byte {
		p := innerFrom("100.96.1.9", "100.96.7.1", 200)
		p[9] = 17
		binary.BigEndian.PutUint16(p[20:], src)
		binary.BigEndian.PutUint16(p[22:], dst)
		return p
	}
	udp6 := func(src, dst uint16) []byte {
		p := innerFrom("fd96:0:0:1::9", "fd96:0:0:7::1", 200)
		p[6] = 17
		binary.BigEndian.PutUint16(p[40:], src)
		binary.BigEndian.PutUint16(p[42:], dst)
		return p
	}
	same := func(what string, a, b []byte, want bool) {
		t.Helper()
		if got := flowHash(seed, a) == flowHash(seed, b); got != want {
			t.Errorf("%s: alike: %v", what, got)
		}
	}
	first, label := udp4(1, 2), udp6(1, 2)
	first[6], first[7] = 0x20, 0 // more fragments
	later := udp4(77, 78)        // whatever stands where ports would be
	later[6], later[7] = 0, 20
	label[3] = 9
	same("a packet's payload", append(udp4(1, 2)[:60:60], make([]byte, 140)...), udp4(1, 2), true)
	same("the fragments of a packet", first, later, true)
	same("a flow label beside ports", label, udp6(1, 2), true)
	other6 := innerFrom("fd96:0:0:1::9", "fd96:0:0:7::1", 200)
	other6[3]++
	same("flow labels without ports", other6, innerFrom("fd96:0:0:1::9", "fd96:0:0:7::1", 200), false)
	tcp := udp4(1, 2)
	tcp[9] = 6
	same("TCP and UDP", tcp, udp4(1, 2), false)
	for name, packet := range map[string]func(src, dst uint16) []byte{"IPv4": udp4, "IPv6": udp6} {
		var lanes [16]int
		for i := range uint16(1600) {
			lanes[flowHash(seed, packet(30000+i, 443))%16]++
		}
		for _, n := range lanes {
			if n < 50 || n > 150 { // 10 is the standard deviation
				t.Errorf("%s: 1600 flows in 16 lanes: %v", name, lanes)
				break
			}
		}
	}
	short := udp4(1, 2)[:22]
	short[3] = 22
	p := udp6(1, 2)
	if n := testing.AllocsPerRun(100, func() { flowHash(seed, short); flowHash(seed, p) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
