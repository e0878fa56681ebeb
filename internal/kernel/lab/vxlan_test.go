package lab_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// TestKernelVXLAN: containers reach each other through the kernel's devices, and
// what passes the underlay is VXLAN.
func TestKernelVXLAN(t *testing.T) {
	_, _, hosts := labtest.Hosts(t, 3)
	var cs []*lab.Container
	for i, h := range hosts {
		b, err := h.Bridge(lab.BridgeConfig{MTU: 1450, Addrs: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("100.96.%d.1/24", i+1)), netip.MustParsePrefix(fmt.Sprintf("fd96:0:0:%d::1/64", i+1)),
		}})
		must(t, err)
		c, err := b.Container(fmt.Sprint("c", i+1))
		must(t, err)
		cs = append(cs, c)
	}
	must(t, lab.KernelVXLAN(hosts, lab.VXLANConfig{MTU: 1450}))
	outer, err := hosts[0].Count(lab.Match{Proto: "udp", Port: 4789}, lab.Out)
	must(t, err)
	for _, to := range cs[1:] {
		for _, dst := range to.Addrs() {
			res, err := cs[0].Ping(deadline(t, 5*time.Second), lab.PingConfig{Dst: dst, Count: 3, Size: 1450, DontFragment: true})
			must(t, err)
			if res.Received != 3 {
				t.Errorf("%v: %+v", dst, res)
			}
		}
	}
	packets, _, err := outer.Read()
	must(t, err)
	if packets < 12 {
		t.Errorf("%d VXLAN packets were sent for 12 pings", packets)
	}
}
