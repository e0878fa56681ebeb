package e2e_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// catcher is where a host's default route leads: a neighbour that would see
// every overlay packet that escapes.
type catcher struct {
	*lab.Host
	overlay, other *lab.Capture
}

// catchDefault gives nodes a default route to a catcher.
func catchDefault(t *testing.T, sw *lab.Switch, nodes ...*node) *catcher {
	t.Helper()
	h, err := sw.Host("catcher", lab.PortConfig{})
	must(t, err)
	c := &catcher{Host: h}
	inOverlay := func(a netip.Addr) bool { return network4.Contains(a) || network6.Contains(a) }
	c.overlay, err = h.Capture("eth0", func(p []byte) bool {
		dst, ok := destination(p)
		return ok && inOverlay(dst)
	})
	must(t, err)
	// What is outside of the overlay shows that the route works.
	c.other, err = h.Capture("eth0", func(p []byte) bool {
		dst, ok := destination(p)
		return ok && (dst == elsewhere4 || dst == elsewhere6)
	})
	must(t, err)
	for _, n := range nodes {
		must(t,
			n.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), h.Addr4()),
			n.AddRoute(netip.MustParsePrefix("::/0"), h.Addr6()))
	}
	return c
}

var (
	elsewhere4 = netip.MustParseAddr("203.0.113.9")
	elsewhere6 = netip.MustParseAddr("2001:db8:ffff::9")
)

// destination is an Ethernet frame's IP destination.
func destination(p []byte) (netip.Addr, bool) {
	switch {
	case len(p) >= 14+20 && p[12] == 0x08 && p[13] == 0x00:
		return netip.AddrFrom4([4]byte(p[14+16 : 14+20])), true
	case len(p) >= 14+40 && p[12] == 0x86 && p[13] == 0xdd:
		return netip.AddrFrom16([16]byte(p[14+24 : 14+40])), true
	}
	return netip.Addr{}, false
}

// check demands that nothing of the overlay was caught, after it has seen that
// packets of a container to other places are.
func (c *catcher) check(t *testing.T, nodes ...*node) {
	t.Helper()
	before := c.other.Count()
	for _, n := range nodes {
		pingOnce(t, n.container.Namespace, elsewhere4)
		pingOnce(t, n.container.Namespace, elsewhere6)
	}
	must(t, c.other.Wait(within(t, 5*time.Second), before+2*len(nodes)))
	if got := c.overlay.Count(); got != 0 {
		t.Errorf("%d overlay packets left by the default route, first: %x", got, c.overlay.Packets()[0].Data)
	}
}

// TestDeadHost kills a daemon, and cuts a host off: its subnet is answered with
// unreachable and leaks nowhere, and it comes back by itself.
func TestDeadHost(t *testing.T) {
	t.Parallel()
	_, sw, nodes := seeded(t, 3)
	a, b, victim := nodes[0], nodes[1], nodes[2]
	c := catchDefault(t, sw, nodes...)
	targets := victim.container.Addrs()

	// down checks what the others see from the moment on at which it happened.
	down := func(t *testing.T, happened time.Time, skip int) {
		for _, dst := range append(targets, victim.own4(), victim.own6()) {
			e := awaitUnreachable(t, time.Until(happened.Add(downLimit)), a.container.Namespace, dst)
			want := a.own4()
			if dst.Is6() {
				want = a.own6()
			}
			if e.From != want {
				t.Errorf("%v is called unreachable by %v, want %v", dst, e.From, want)
			}
		}
		for _, n := range []*node{a, b} {
			p := n.awaitPeer(t, time.Until(happened.Add(downLimit)), victim, "down", func(p peer) bool { return p.Path == "none" })
			if p.PathReason == "" || len(p.Subnets) != 2 || p.State != "alive" && p.State != "suspect" && p.State != "dead" {
				t.Errorf("%s says of the dead host: %+v", n, p)
			}
		}
		a.awaitLog(t, downLimit, skip, "msg=peer-down", "peer="+victim.Name())
		t.Logf("down after %v", time.Since(happened))
		// In the end gossip notices, too, and the claim stays.
		p := a.awaitPeer(t, 30*time.Second, victim, "dead", func(p peer) bool { return p.State == "dead" })
		if p.Path != "none" || len(p.Subnets) != 2 {
			t.Errorf("the dead host: %+v", p)
		}
		for _, dst := range targets {
			awaitUnreachable(t, time.Second, b.container.Namespace, dst)
		}
		c.check(t, a, b)
	}
	back := func(t *testing.T, skip int) {
		awaitMesh(t, nodes...)
		for _, dst := range targets {
			awaitPing(t, 5*time.Second, a.container.Namespace, dst)
			pingAll(t, b.container.Namespace, lab.PingConfig{Dst: dst})
		}
		a.awaitLog(t, downLimit, skip, "msg=peer-up", "peer="+victim.Name())
	}

	t.Run("Killed", func(t *testing.T) {
		skip := len(a.log(t))
		happened := time.Now()
		victim.daemon.Kill()
		down(t, happened, skip)
		// The killed daemon's own containers do not leak either: the route behind
		// the device's refuses.
		for _, dst := range a.container.Addrs() {
			awaitRefusal(t, time.Second, victim.container.Namespace, dst)
		}
		c.check(t, victim)
		victim.start(t, "--join", a.Addr4().String())
		victim.lease(t)
		back(t, skip)
	})
	t.Run("CutOff", func(t *testing.T) {
		skip := len(a.log(t))
		happened := time.Now()
		must(t, victim.Cut())
		down(t, happened, skip)
		must(t, victim.Restore())
		back(t, skip)
		if got := victim.status(t).Node.Subnets; got[0] != victim.env.Subnet4.Masked() || got[1] != victim.env.Subnet6.Masked() {
			t.Errorf("it has come back with %v, not with %v", got, victim.env.Subnets())
		}
	})
}
