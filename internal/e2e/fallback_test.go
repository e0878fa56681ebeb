package e2e_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// TestFallBack: a kernel path that stops working is left within a second, in the
// direction that has stopped, and taken again by itself after the repair.
func TestFallBack(t *testing.T) {
	t.Parallel()
	vxlan := func(from, to *node) lab.Match {
		return lab.Match{Proto: "udp", Port: 4789, Src: netip.PrefixFrom(from.Addr4(), 32), Dst: netip.PrefixFrom(to.Addr4(), 32)}
	}
	for _, tt := range []struct {
		name   string
		harm   func(sw *lab.Switch, a, b *node) error
		repair func(sw *lab.Switch, a *node) error
		aFalls bool // a's path to b is what fails
		bFalls bool
	}{
		{"blocked", func(sw *lab.Switch, a, b *node) error { return sw.Block(vxlan(a, b)) }, unblock, true, false},
		{"blocked the other way", func(sw *lab.Switch, a, b *node) error { return sw.Block(vxlan(b, a)) }, unblock, false, true},
		{"blocked both ways", func(sw *lab.Switch, a, b *node) error { return block(sw, vxlan(a, b), vxlan(b, a)) }, unblock, true, true},
		{"checksums spoiled", func(sw *lab.Switch, a, b *node) error { return sw.Corrupt(vxlan(a, b)) }, unblock, true, false},
		// A bridge drops what is longer than its port's MTU, and tells nobody.
		{"smaller MTU", func(sw *lab.Switch, _, b *node) error { return b.Ports()[0].SetMTU(1400) }, func(_ *lab.Switch, _ *node) error { return nil }, true, false},
		{"own firewall", func(_ *lab.Switch, a, b *node) error { return a.Block(vxlan(a, b), lab.Out) }, func(_ *lab.Switch, a *node) error { return a.Unblock() }, true, false},
		{"its firewall", func(_ *lab.Switch, a, b *node) error { return b.Block(vxlan(a, b), lab.In) }, nil, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, sw, nodes := cluster(t, 2)
			a, b := nodes[0], nodes[1]
			for _, n := range nodes {
				must(t, n.FinishChecksums("eth0"))
			}
			a.start(t, "--fast-path", "kernel-vxlan")
			b.start(t, "--fast-path", "kernel-vxlan", "--join", a.Addr4().String())
			for _, n := range nodes {
				n.lease(t)
				n.attach(t)
			}
			a.awaitPath(t, meshLimit, b, "kernel-vxlan")
			b.awaitPath(t, meshLimit, a, "kernel-vxlan")
			const rate = 500
			flows := []*flow{
				startFlow(t, a, b, b.container.Addr4(), rate), startFlow(t, a, b, b.container.Addr6(), rate),
				startFlow(t, b, a, a.container.Addr4(), rate),
			}
			for _, pair := range [][2]*node{{a, b}, {b, a}} {
				was, err := pair[0].status(t).peer(pair[1])
				must(t, err)
				pair[0].awaitPeer(t, 5*time.Second, pair[1], "traffic", func(p peer) bool { return p.TxBytes > was.TxBytes+20000 })
			}
			began := time.Now()
			must(t, tt.harm(sw, a, b))
			for _, d := range []struct {
				from, to *node
				falls    bool
			}{{a, b, tt.aFalls}, {b, a, tt.bFalls}} {
				if !d.falls {
					continue
				}
				p := d.from.awaitPath(t, time.Until(began.Add(homeLimit)), d.to, "userspace-udp")
				t.Logf("%s is back in userspace after %v: %s", d.from, time.Since(began).Round(10*time.Millisecond), p.PathReason)
				if !strings.Contains(p.PathReason, "while userspace answers; held down until") {
					t.Errorf("the reason does not tell: %s", p.PathReason)
				}
			}
			for i, f := range flows {
				res := f.end(t)
				falls := tt.aFalls
				if i == 2 {
					falls = tt.bFalls
				}
				most := 0
				if falls {
					most = rate
				}
				if res.Lost() > most || res.Duplicates > 0 {
					t.Errorf("%s: %d of %d lost, at most %d are tolerable; %d duplicates", f.name, res.Lost(), res.Sent, most, res.Duplicates)
				}
				t.Logf("%s: %d of %d lost", f.name, res.Lost(), res.Sent)
			}
			for _, pair := range [][2]*node{{a, b}, {b, a}} {
				pingAll(t, pair[0].container.Namespace, lab.PingConfig{Dst: pair[1].container.Addr4()})
			}
			if tt.repair == nil {
				must(t, b.Unblock())
			} else {
				must(t, tt.repair(sw, a))
			}
			repaired := time.Now()
			a.awaitPath(t, 20*time.Second, b, "kernel-vxlan")
			b.awaitPath(t, 20*time.Second, a, "kernel-vxlan")
			t.Logf("by the kernel again %v after the repair", time.Since(repaired).Round(10*time.Millisecond))
			pingAll(t, a.container.Namespace, lab.PingConfig{Dst: b.container.Addr4()})
			pingAll(t, b.container.Namespace, lab.PingConfig{Dst: a.container.Addr6()})
		})
	}
}

func unblock(sw *lab.Switch, _ *node) error { return sw.Unblock() }
