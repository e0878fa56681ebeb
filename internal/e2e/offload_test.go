package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// TestOffloads sends TCP between hosts with the offloads on and off, in every
// combination, over links with an MTU of 1400, 1500 and 9000 bytes, IPv4 and IPv6:
// the bytes that arrive are those that were sent, and nothing is dropped on the
// way but what belongs to no flow.
func TestOffloads(t *testing.T) {
	t.Parallel()
	for _, mtu := range []int{1400, 1500, 9000} {
		t.Run(fmt.Sprint("MTU ", mtu), func(t *testing.T) {
			l := labtest.New(t)
			sw, err := l.Switch("lan", lab.SwitchConfig{})
			must(t, err)
			var nodes []*node
			for i, offload := range []string{"on", "on", "off", "off"} {
				h, err := sw.Host(fmt.Sprint("host", i+1), lab.PortConfig{MTU: mtu})
				must(t, err)
				n := &node{Host: h}
				args := []string{"--offload", offload}
				if i > 0 {
					args = append(args, "--join", nodes[0].Addr4().String())
				}
				n.start(t, args...)
				nodes = append(nodes, n)
			}
			for _, n := range nodes {
				n.lease(t)
				if n.env.MTU != innerMTU(mtu) {
					t.Errorf("%s has the inner MTU %d", n, n.env.MTU)
				}
				n.attach(t)
			}
			awaitMesh(t, nodes...)
			for _, pair := range [][2]int{{0, 1}, {0, 2}, {2, 1}, {2, 3}} {
				a, b := nodes[pair[0]], nodes[pair[1]]
				for _, dst := range b.container.Addrs() {
					const size = 20e6
					res, err := lab.Transfer(within(t, 60*time.Second), lab.TransferConfig{From: a.container.Namespace, To: b.container.Namespace, Dst: dst, Bytes: size})
					must(t, err)
					if res.Bytes != size || res.SentSHA256 != res.ReceivedSHA256 {
						t.Errorf("%s to %s at %v: %d bytes arrived, or other ones", a, b, dst, res.Bytes)
					}
					t.Logf("%s to %s at %v: %.2f Gb/s", a, b, dst, res.BitsPerSecond()/1e9)
				}
			}
			for _, n := range nodes {
				for reason, count := range n.status(t).Drops {
					switch reason {
					case "tx_multicast", "rx_unknown_source", "tx_device_queue_full": // neighbour discovery, probes of newcomers
						continue
					}
					if count > 0 {
						t.Errorf("%s has dropped %d packets as %s", n, count, reason)
					}
				}
			}
		})
	}
}
