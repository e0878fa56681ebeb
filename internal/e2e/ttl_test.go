package e2e_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// TestTTL: a packet loses one hop on each host, in the kernel, and none in the tunnel.
// Whoever takes the last one answers with time exceeded, from an overlay address.
func TestTTL(t *testing.T) {
	t.Parallel()
	_, _, nodes := seeded(t, 2)
	a, b := nodes[0], nodes[1]
	for _, dst := range b.container.Addrs() {
		bridge, far := a.env.Subnet4.Addr(), b.own4()
		if dst.Is6() {
			bridge, far = a.env.Subnet6.Addr(), b.own6()
		}
		for ttl, from := range map[int]netip.Addr{1: bridge, 2: far, 3: {}} {
			res, err := a.container.Ping(within(t, 10*time.Second), lab.PingConfig{Dst: dst, Count: 1, TTL: ttl, Timeout: time.Second})
			must(t, err)
			if !from.IsValid() {
				if res.Received != 1 {
					t.Errorf("%v with TTL %d: %+v", dst, ttl, res)
				}
				continue
			}
			const exceeded4, exceeded6 = 11, 3 // RFC 792, RFC 4443 section 3.3
			if res.Received != 0 || len(res.Errors) != 1 || res.Errors[0].From != from || res.Errors[0].Type != exceeded4 && res.Errors[0].Type != exceeded6 {
				t.Errorf("%v with TTL %d: %+v, want time exceeded from %v", dst, ttl, res, from)
			}
		}
	}
}
