package e2e_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// TestDataPortBlocked blocks UDP 8285 while gossip lives: the status says that a
// living peer cannot be reached, and why, on both sides whichever direction it
// is. When the block ends, traffic returns by itself.
func TestDataPortBlocked(t *testing.T) {
	t.Parallel()
	_, sw, nodes := seeded(t, 3)
	a, b, c := nodes[0], nodes[1], nodes[2]
	data := func(m lab.Match) lab.Match { m.Proto, m.Port = "udp", 8285; return m }
	host := func(n *node) netip.Prefix { return netip.PrefixFrom(n.Addr4(), 32) }
	aToB, bToA := lab.Match{Src: host(a), Dst: host(b)}, lab.Match{Src: host(b), Dst: host(a)}
	for _, tc := range []struct {
		name     string
		block    func() error
		unblock  func() error
		aSays    string // of b
		bSays    string // of a
		pingSays string // a's, on standard error
	}{
		{"BothWays", func() error { return block(sw, data(aToB), data(bToA)) }, sw.Unblock,
			"is the host down, or the UDP port blocked?", "is the host down, or the UDP port blocked?", "host2 does not answer: path none: probes to"},
		{"OneWay", func() error { return block(sw, data(aToB)) }, sw.Unblock,
			"though its own arrive here", "is the host down, or the UDP port blocked?", "host2 does not answer: path none: probes to"},
		{"OtherWay", func() error { return block(sw, data(bToA)) }, sw.Unblock,
			"is the host down, or the UDP port blocked?", "though its own arrive here", "host2 does not answer: path none: probes to"},
		// A firewall on the sender's own host, which tells the sender.
		{"OwnFirewall", func() error { return a.Block(data(lab.Match{Dst: host(b)}), lab.Out) }, a.Unblock,
			"sending to 192.0.2.2:8285/udp fails", "is the host down, or the UDP port blocked?", "operation not permitted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			skipA, skipB := len(a.log(t)), len(b.log(t))
			must(t, tc.block())
			for i, pair := range [][2]*node{{a, b}, {b, a}} {
				p := pair[0].awaitPeer(t, downLimit, pair[1], "alive without a path", func(p peer) bool { return p.Path == "none" })
				want := []string{tc.aSays, tc.bSays}[i]
				if p.State != "alive" || len(p.Subnets) != 2 || !strings.Contains(p.PathReason, want) {
					t.Errorf("%s says of %s: %+v, want the reason %q", pair[0], pair[1], p, want)
				}
				for _, dst := range pair[1].container.Addrs() {
					awaitUnreachable(t, time.Second, pair[0].container.Namespace, dst)
				}
			}
			a.awaitLog(t, time.Second, skipA, "msg=peer-down", "peer="+b.Name())
			b.awaitLog(t, time.Second, skipB, "msg=peer-down", "peer="+a.Name())
			stdout, stderr, code := a.overlaydCommand(t, "ping", b.Name(), "--count", "1")
			lost := strings.Contains(stdout, "1 sent, 0 received, 100% loss")
			if code != 1 || lost != strings.Contains(tc.pingSays, "does not answer") || !oneLine(stderr) || !strings.Contains(stderr, tc.pingSays) {
				t.Errorf("ping: exit code %d\n%s%s", code, stdout, stderr)
			}
			// The third host is not concerned, and gossip is not either.
			for _, n := range []*node{a, b} {
				pingAll(t, n.container.Namespace, lab.PingConfig{Dst: c.container.Addr4()})
				p, err := n.status(t).peer(c)
				must(t, err)
				if !reachable(p) {
					t.Errorf("%s says of %s: %+v", n, c, p)
				}
			}
			must(t, tc.unblock())
			awaitMesh(t, nodes...)
			a.awaitLog(t, downLimit, skipA, "msg=peer-up", "peer="+b.Name())
			b.awaitLog(t, downLimit, skipB, "msg=peer-up", "peer="+a.Name())
			pingAll(t, a.container.Namespace, lab.PingConfig{Dst: b.container.Addr4()})
			pingAll(t, b.container.Namespace, lab.PingConfig{Dst: a.container.Addr6()})
		})
	}
}

func block(sw *lab.Switch, all ...lab.Match) error {
	for _, m := range all {
		if err := sw.Block(m); err != nil {
			return err
		}
	}
	return nil
}
