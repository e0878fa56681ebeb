package e2e_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// TestEndsOnWhatWorks: where something is in the way of one path, the traffic ends on
// another, and the status says why.
func TestEndsOnWhatWorks(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		harm   func(sw *lab.Switch, a, b *node) error
		fast   string // --fast-path
		path   string // of a to b
		reason string // of it, a part
		warns  string // b's warning, a part
	}{
		{"a firewall drops what the kernel device forwards",
			func(_ *lab.Switch, _, b *node) error { return b.DropForwardedFrom("overlay0-v4") },
			"kernel-vxlan", "userspace-udp", "the peer is not ready for it", "this node takes no packets by kernel-vxlan"},
		{"strict reverse-path filtering here",
			func(_ *lab.Switch, a, _ *node) error { return a.Sysctl("net/ipv4/conf/eth0/rp_filter", "1") },
			"auto", "kernel-vxlan", "probes of 1430 bytes are answered", ""},
		{"strict reverse-path filtering there",
			func(_ *lab.Switch, _, b *node) error { return b.Sysctl("net/ipv4/conf/eth0/rp_filter", "1") },
			"auto", "kernel-vxlan", "probes of 1430 bytes are answered", ""},
		{"strict reverse-path filtering of everything",
			func(_ *lab.Switch, _, b *node) error { return b.Sysctl("net/ipv4/conf/all/rp_filter", "1") },
			"auto", "kernel-vxlan", "probes of 1430 bytes are answered", ""},
		{"8285 blocked",
			func(sw *lab.Switch, _, _ *node) error { return sw.Block(lab.Match{Proto: "udp", Port: 8285}) },
			"kernel-vxlan", "kernel-vxlan", "probes of 1430 bytes are answered", ""},
		{"4789 blocked",
			func(sw *lab.Switch, _, _ *node) error { return sw.Block(lab.Match{Proto: "udp", Port: 4789}) },
			"kernel-vxlan", "userspace-udp", "bytes are not answered", ""},
		{"8285 and 4789 blocked",
			func(sw *lab.Switch, a, b *node) error {
				for _, n := range []*node{a, b} { // not what goes directly to overlay addresses
					to := netip.PrefixFrom(n.Addr4(), 32)
					if err := block(sw, lab.Match{Proto: "udp", Port: 4789, Dst: to}, lab.Match{Proto: "udp", Port: 8285, Dst: to}); err != nil {
						return err
					}
				}
				return nil
			},
			"auto", "direct", "probes of 1430 bytes are answered", ""},
		{"a link that carries less",
			func(_ *lab.Switch, _, b *node) error { return b.Ports()[0].SetMTU(1400) },
			"kernel-vxlan", "kernel-vxlan", "larger packets are not sent by it", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, sw, nodes := cluster(t, 2)
			a, b := nodes[0], nodes[1]
			for _, n := range nodes {
				must(t, n.Sysctl("net/ipv4/conf/all/rp_filter", "0"), n.Sysctl("net/ipv4/conf/eth0/rp_filter", "0"))
			}
			must(t, tt.harm(sw, a, b))
			a.start(t, "--fast-path", tt.fast)
			b.start(t, "--fast-path", tt.fast, "--join", a.Addr4().String())
			for _, n := range nodes {
				n.lease(t)
				n.attach(t)
			}
			p := a.awaitPeer(t, 30*time.Second, b, tt.path+" because of "+tt.reason, func(p peer) bool {
				return p.Path == tt.path && strings.Contains(p.PathReason, tt.reason)
			})
			t.Logf("%s: %s", p.Path, p.PathReason)
			if tt.warns != "" {
				warnings := strings.Join(b.status(t).Node.Warnings, "\n")
				if !strings.Contains(warnings, tt.warns) {
					t.Errorf("b does not warn of it: %s", warnings)
				}
			}
			for _, dst := range b.container.Addrs() {
				awaitPing(t, 10*time.Second, a.container.Namespace, dst)
				pingAll(t, a.container.Namespace, lab.PingConfig{Dst: dst, Size: min(p.MTU, 1280), DontFragment: true})
			}
			pingAll(t, b.container.Namespace, lab.PingConfig{Dst: a.container.Addr4()})
		})
	}
}

// TestWithoutKernelPaths: what kernel paths need is not there, on one side. The node runs in
// userspace, and says why.
func TestWithoutKernelPaths(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		start func(t *testing.T, n *node, args ...string)
		fast  string
		says  string // the reason of the path there, a part
		warns string // and a warning, if any
	}{
		{"no nftables", func(t *testing.T, n *node, args ...string) {
			n.networks = 2
			var err error
			n.daemon, err = n.Host.Start(asRole(roleNoNFTables, n.runArgs(args...)...), lab.StartOptions{Name: "overlayd"})
			must(t, err)
		}, "auto", "nftables", "no kernel paths: "},
		{"the port is taken", func(t *testing.T, n *node, args ...string) {
			c, err := n.ListenUDP(netip.MustParseAddrPort("0.0.0.0:4789"))
			must(t, err)
			t.Cleanup(func() { c.Close() })
			n.start(t, args...)
		}, "kernel-vxlan", "4789", ""},
		{"the device's name is taken", func(t *testing.T, n *node, args ...string) {
			must(t, n.AddBridge("overlay0-v4"))
			n.start(t, args...)
		}, "kernel-vxlan", "overlay0-v4", ""},
		{"the device's name is too long", func(t *testing.T, n *node, args ...string) {
			n.start(t, append(args, "--device", "overlay-network")...)
		}, "kernel-vxlan", "choose a --device of at most 12 characters", "no kernel paths: "},
		{"off", func(t *testing.T, n *node, args ...string) {
			n.start(t, append(args, "--fast-path", "off")...)
		}, "auto", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, _, nodes := cluster(t, 2)
			a, b := nodes[0], nodes[1]
			before := a.state(t)
			tt.start(t, a, "--fast-path", tt.fast)
			b.start(t, "--fast-path", tt.fast, "--join", a.Addr4().String())
			for _, n := range nodes {
				n.lease(t)
				n.attach(t)
			}
			p := a.awaitPeer(t, 20*time.Second, b, "in userspace because of "+tt.says, func(p peer) bool {
				return p.Path == "userspace-udp" && strings.Contains(p.PathReason, tt.says)
			})
			t.Log(p.PathReason)
			if all := strings.Join(a.status(t).Node.Warnings, "\n"); !strings.Contains(all, tt.warns) {
				t.Errorf("warnings: %q, want %q", all, tt.warns)
			}
			for _, dst := range b.container.Addrs() {
				pingAll(t, a.container.Namespace, lab.PingConfig{Dst: dst, Size: p.MTU, DontFragment: true})
			}
			if tt.name == "off" {
				for _, line := range a.state(t) {
					if !slices.Contains(before, line) && (strings.Contains(line, "vxlan") || strings.Contains(line, "nft") || strings.Contains(line, "table 96")) {
						t.Errorf("touched: %s", line)
					}
				}
			}
		})
	}
}
