package tunnel_test

import (
	"testing"

	"github.com/overlayd/overlayd/tunnel"
)

func TestSupports(t *testing.T) {
	all := tunnel.Features{TCP4: true, TCP6: true, UDP: true, Checksum: true}
	for _, c := range []struct {
		name string
		f    tunnel.Features
		o    tunnel.Offload
		want bool
	}{
		{"ordinary, no offloads", tunnel.Features{}, tunnel.Offload{}, true},
		{"ordinary, all offloads", all, tunnel.Offload{}, true},
		{"header length is a hint", tunnel.Features{}, tunnel.Offload{HeaderLen: 40}, true},
		{"checksum", tunnel.Features{Checksum: true}, tunnel.Offload{NeedsChecksum: true}, true},
		{"checksum, lacks", tunnel.Features{TCP4: true}, tunnel.Offload{NeedsChecksum: true}, false},
		{"TCP4", tunnel.Features{TCP4: true}, tunnel.Offload{GSO: tunnel.GSOTCP4, SegmentSize: 1}, true},
		{"TCP4, lacks", tunnel.Features{TCP6: true, UDP: true}, tunnel.Offload{GSO: tunnel.GSOTCP4, SegmentSize: 1}, false},
		{"TCP6", tunnel.Features{TCP6: true}, tunnel.Offload{GSO: tunnel.GSOTCP6, SegmentSize: 1, ECN: true}, true},
		{"TCP6, lacks", tunnel.Features{TCP4: true, UDP: true}, tunnel.Offload{GSO: tunnel.GSOTCP6, SegmentSize: 1}, false},
		{"UDP", tunnel.Features{UDP: true}, tunnel.Offload{GSO: tunnel.GSOUDP, SegmentSize: 1}, true},
		{"UDP, lacks", tunnel.Features{TCP4: true, TCP6: true}, tunnel.Offload{GSO: tunnel.GSOUDP, SegmentSize: 1}, false},
		{"TCP4 with checksum, lacks checksum", tunnel.Features{TCP4: true}, tunnel.Offload{GSO: tunnel.GSOTCP4, SegmentSize: 1, NeedsChecksum: true}, false},
		{"no segment size", all, tunnel.Offload{GSO: tunnel.GSOTCP4}, false},
		{"segment size alone", all, tunnel.Offload{SegmentSize: 1}, false},
		{"ECN without TCP", all, tunnel.Offload{ECN: true}, false},
		{"ECN with UDP", all, tunnel.Offload{GSO: tunnel.GSOUDP, SegmentSize: 1, ECN: true}, false},
		{"ECN bit in the type", all, tunnel.Offload{GSO: 0x80 | tunnel.GSOTCP4, SegmentSize: 1}, false},
	} {
		if got := c.f.Supports(c.o); got != c.want {
			t.Errorf("%s: Supports is %v, want %v", c.name, got, c.want)
		}
	}
}
