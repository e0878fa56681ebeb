package e2e_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// TestHostsComeAndGo adds hosts to a cluster and removes them in every way there
// is, while two others talk: they lose nothing.
func TestHostsComeAndGo(t *testing.T) {
	t.Parallel()
	_, sw, nodes := seeded(t, 2)
	a, b := nodes[0], nodes[1]
	flows := []*flow{
		startFlow(t, a, b, b.container.Addr4(), 500),
		startFlow(t, b, a, a.container.Addr6(), 500),
	}
	var guests []*node
	for i := range 3 {
		h, err := sw.Host(fmt.Sprintf("guest%d", i+1), lab.PortConfig{})
		must(t, err)
		guests = append(guests, &node{Host: h})
	}
	for _, g := range guests {
		g.start(t, "--join", a.Addr4().String()+","+b.Addr4().String())
	}
	for _, g := range guests {
		g.lease(t)
	}
	awaitMesh(t, append(guests, a, b)...)
	for _, g := range guests {
		pingAll(t, a.container.Namespace, lab.PingConfig{Dst: g.own4()})
		pingAll(t, b.container.Namespace, lab.PingConfig{Dst: g.own6()})
	}

	leaver, stopped, killed := guests[0], guests[1], guests[2]
	stdout, stderr, code := leaver.overlaydCommand(t, "leave")
	if want := fmt.Sprintf("guest1 has left and stopped; released: %v,%v\n", leaver.env.Subnet4.Masked(), leaver.env.Subnet6.Masked()); code != 0 || stdout != want {
		t.Errorf("leave: exit code %d, %q, %q, want %q", code, stdout, stderr, want)
	}
	<-leaver.daemon.Done()
	must(t, leaver.daemon.Err())
	stopped.stop(t)
	killed.daemon.Kill()

	for _, n := range nodes {
		// What has been released is nobody's, so nothing of the leaver is left.
		labtest.Eventually(t, downLimit, func() error {
			s, err := n.ask()
			if err != nil {
				return err
			}
			if p, err := s.peer(leaver); err == nil {
				return fmt.Errorf("%s still has %+v", n, p)
			}
			return nil
		})
		n.awaitPeer(t, downLimit, stopped, "left", func(p peer) bool {
			return p.State == "left" && p.Path == "none" && p.PathReason == "said good-bye" && len(p.Subnets) == 2
		})
		n.awaitPeer(t, downLimit, killed, "down", func(p peer) bool {
			return p.Path == "none" && p.PathReason != "" && len(p.Subnets) == 2
		})
		for _, gone := range guests {
			for _, dst := range []netip.Addr{gone.own4(), gone.own6()} {
				awaitUnreachable(t, downLimit, n.container.Namespace, dst)
			}
		}
	}
	for _, f := range flows {
		f.endLossless(t)
	}
}
