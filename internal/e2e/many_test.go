package e2e_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// TestThousandStaticPeers: a node with a thousand peers that do not gossip is up soon,
// stops soon, and leaves nothing; time and memory grow with their number.
func TestThousandStaticPeers(t *testing.T) {
	t.Parallel()
	for _, encap := range []string{"udp", "vxlan"} {
		for _, n := range []int{250, 500, 1000} {
			t.Run(fmt.Sprint(encap, " ", n), func(t *testing.T) {
				_, _, nodes := cluster(t, 1)
				a := nodes[0]
				before := a.state(t)
				args := []string{"--network", "100.64.0.0/10", "--encap", encap, "--fast-path", "auto"}
				for i := range n {
					subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(65 + i/250), byte(i % 250), 0}), 24)
					args = append(args, "--static-peer", fmt.Sprintf("name=p%d,endpoint=198.51.%d.%d,subnet=%v", i, 100+i/250, 1+i%250, subnet))
				}
				began := time.Now()
				a.start(t, args...)
				labtest.Eventually(t, 20*time.Second, func() error {
					if s, err := a.ask(); err != nil || len(s.Peers) != n || len(s.Node.Subnets) != 1 {
						return fmt.Errorf("%d peers, subnets %v, %v", len(s.Peers), s.Node.Subnets, err)
					}
					return nil
				})
				up := time.Since(began)
				rss, err := residentBytes(a.daemon.PID())
				must(t, err)
				began = time.Now()
				a.stop(t)
				t.Logf("%d static peers: up after %v, %.1f MiB, stopped in %v", n, up.Round(time.Millisecond), float64(rss)/(1<<20), time.Since(began).Round(time.Millisecond))
				a.checkTraceless(t, before)
			})
		}
	}
}
