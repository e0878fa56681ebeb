package e2e_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// TestAddressChanges: the underlay interface gets another address. The node goes on with
// it by itself, with its subnet and its kernel paths.
func TestAddressChanges(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"off", "kernel-vxlan", "direct"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			_, _, nodes := seeded(t, 3, "--fast-path", kind)
			a, b, c := nodes[0], nodes[1], nodes[2]
			path := kind
			if kind == "off" {
				path = "userspace-udp"
			}
			for _, n := range []*node{b, c} {
				n.awaitPath(t, meshLimit, a, path)
				a.awaitPath(t, meshLimit, n, path)
			}
			beside := startFlow(t, b, c, c.container.Addr4(), 500)
			through := startFlow(t, b, a, a.container.Addr4(), 500)
			old := a.Ports()[0].Addrs()[0]
			moved := netip.PrefixFrom(netip.MustParseAddr("192.0.2.101"), old.Bits())
			began := time.Now()
			must(t, a.MoveAddr("eth0", old, moved))
			for _, n := range []*node{b, c} {
				n.awaitPeer(t, 10*time.Second, a, "at its new address", func(p peer) bool {
					return p.Endpoint == moved.Addr().String()+":8285" && p.Path != "none" && len(p.Subnets) == 2
				})
			}
			awaitPing(t, 5*time.Second, b.container.Namespace, a.container.Addr4())
			took := time.Since(began)
			t.Logf("reached at the new address %v after the change", took.Round(10*time.Millisecond))
			if took > 2*repairLimit {
				t.Errorf("that took too long")
			}
			labtest.Eventually(t, 20*time.Second, func() error {
				for _, pair := range [][2]*node{{a, b}, {b, a}, {a, c}, {c, a}} {
					s, err := pair[0].ask()
					if err != nil {
						return err
					}
					if p, err := s.peer(pair[1]); err != nil || p.Path != path {
						return fmt.Errorf("%s says of %s: %+v, %v", pair[0], pair[1], p, err)
					}
				}
				return nil
			})
			for _, dst := range a.container.Addrs() {
				pingAll(t, b.container.Namespace, lab.PingConfig{Dst: dst, Size: a.env.MTU, DontFragment: true})
			}
			beside.endLossless(t)
			res := through.end(t)
			t.Logf("to the node that moved: %d of %d lost, the longest gap %v", res.Lost(), res.Sent, res.Gap.Round(time.Millisecond))
		})
	}
}

// TestLinkFlaps: the underlay interface goes down and up again.
func TestLinkFlaps(t *testing.T) {
	t.Parallel()
	_, _, nodes := fast(t, 2, "kernel-vxlan")
	a, b := nodes[0], nodes[1]
	for range 3 {
		must(t, a.SetUp("eth0", false))
		must(t, a.SetUp("eth0", true))
		began := time.Now()
		awaitPing(t, repairLimit, a.container.Namespace, b.container.Addr4())
		t.Logf("works again %v after the link is up", time.Since(began).Round(time.Millisecond))
	}
	must(t, a.Cut())
	b.awaitPeer(t, downLimit, a, "down", func(p peer) bool { return p.Path == "none" })
	must(t, a.Restore())
	a.awaitPath(t, meshLimit, b, "kernel-vxlan")
	b.awaitPath(t, meshLimit, a, "kernel-vxlan")
	pingAll(t, b.container.Namespace, lab.PingConfig{Dst: a.container.Addr6()})
}
