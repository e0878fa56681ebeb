package e2e_test

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// TestOffloads sends TCP between hosts with the offloads on and off, in every
// combination, over links with an MTU of 1280, 1500 and 9000 bytes, IPv4 and IPv6:
// the bytes that arrive are those that were sent, and nothing is dropped on the
// way but what belongs to no flow; also where each host has another encap. Inside of 1280 bytes less is left than IPv6
// needs (RFC 8200 section 5): there it is refused, and IPv4 goes alone.
func TestOffloads(t *testing.T) {
	t.Parallel()
	udp, mixed := []string{"udp", "udp", "udp", "udp"}, []string{"udp", "vxlan", "vxlan", "udp"}
	for _, tt := range []struct {
		mtu    int
		encaps []string
	}{{1280, udp}, {1500, udp}, {9000, udp}, {1500, mixed}, {9000, mixed}} {
		mtu := tt.mtu
		t.Run(fmt.Sprint("MTU ", mtu, tt.encaps), func(t *testing.T) {
			l := labtest.New(t)
			sw, err := l.Switch("lan", lab.SwitchConfig{})
			must(t, err)
			networks := []string{network4.String(), network6.String()}
			if innerMTU(mtu, false) < 1280 {
				networks = networks[:1]
			}
			var nodes []*node
			for i, offload := range []string{"on", "on", "off", "off"} {
				h, err := sw.Host(fmt.Sprint("host", i+1), lab.PortConfig{MTU: mtu})
				must(t, err)
				n := &node{Host: h}
				if i == 0 && len(networks) == 1 {
					refusal{cmd: exec.Command(overlayd, n.runArgs()...), code: 1, says: []string{network6.String() + " cannot be carried", "leave that network out"}}.check(t, n)
				}
				args := []string{"--encap", tt.encaps[i], "--offload", offload, "--network", strings.Join(networks, ",")}
				if i > 0 {
					args = append(args, "--join", nodes[0].Addr4().String())
				}
				n.start(t, args...)
				nodes = append(nodes, n)
			}
			for _, n := range nodes {
				n.lease(t)
				if n.env.MTU != innerMTU(mtu, tt.encaps[slices.Index(nodes, n)] == "vxlan") {
					t.Errorf("%s has the inner MTU %d", n, n.env.MTU)
				}
				n.attach(t)
			}
			awaitMesh(t, nodes...)
			for _, pair := range [][2]int{{0, 1}, {0, 2}, {2, 1}, {2, 3}} {
				a, b := nodes[pair[0]], nodes[pair[1]]
				dsts := b.container.Addrs()
				if len(dsts) != len(networks) {
					t.Fatalf("%s has the addresses %v", b.container, dsts)
				}
				for _, dst := range dsts {
					const size = 20e6
					res, err := lab.Transfer(within(t, 60*time.Second), lab.TransferConfig{From: a.container.Namespace, To: b.container.Namespace, Dst: dst, Bytes: size})
					must(t, err)
					if res.Bytes != size || res.SentSHA256 != res.ReceivedSHA256 {
						t.Errorf("%s to %s at %v: %d bytes arrived, or other ones", a, b, dst, res.Bytes)
					}
					t.Logf("%s to %s at %v: %.2f Gb/s", a, b, dst, res.BitsPerSecond()/1e9)
				}
			}
			checkDrops(t, nodes...)
		})
	}
}

// checkDrops checks that nodes have dropped nothing of any flow.
func checkDrops(t *testing.T, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		for reason, count := range n.status(t).Drops {
			switch reason {
			case "tx_multicast", "rx_unknown_source", "control_unknown_peer", // neighbour discovery, probes of newcomers
				"tx_device_queue_full", "rx_socket_full": // a busy machine
				continue
			}
			if count > 0 {
				t.Errorf("%s has dropped %d packets as %s", n, count, reason)
			}
		}
	}
}
