package kernel_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
)

// guardOf is a guard as host 1 of an overlay has it, with these peers.
// usualLens are those of the peers' subnets.
var usualLens = [2]int{24, 64}

func guardOf(peers ...kernel.GuardPeer) kernel.Guard {
	return kernel.Guard{
		Device: "overlay0", VXLANs: []string{"overlay0-v4", "overlay0-v6"}, Underlays: []string{"eth0"},
		Locals: addrs("192.0.2.1", "2001:db8::1"),
		VNI:    1, Port: 4789, Ports: []uint16{8285, 8472, 4789},
		Networks: overlay, Own: ownNets, Peers: peers, Len4: usualLens[0], Len6: usualLens[1],
	}
}

// guardPeer is peer number n, as a member of the cluster without anything special.
func guardPeer(n int) kernel.GuardPeer {
	o4 := netip.AddrFrom4([4]byte{192, 0, byte(2 + n/250), byte(n % 250)})
	o6 := netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 14: byte(n >> 8), 15: byte(n)})
	subnets := []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(96 + n>>8), byte(n), 0}), 24),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x96, 6: byte(n >> 8), 7: byte(n)}), 64),
	}
	return kernel.GuardPeer{
		ID: [16]byte{0: 0xee, 14: byte(n >> 8), 15: byte(n)}, Outer: []netip.Addr{o4, o6},
		Inner: append([]netip.Prefix{single(o4), single(o6)}, subnets...), Prefixes: subnets,
	}
}

func (x *host) guardStands(want bool) {
	x.Helper()
	stands, err := x.k.CheckGuard()
	x.ok(err)
	if stands != want {
		x.Errorf("the guard stands: %v, want %v", stands, want)
	}
}

func TestGuardSet(t *testing.T) {
	x := newHost(t)
	x.guardStands(false)
	x.ok(x.k.SetGuard(guardOf(), false))
	x.guardStands(true)
	x.ok(x.k.SetGuard(guardOf(guardPeer(2), guardPeer(3)), false))
	x.guardStands(true)
	removed, err := x.k.RemoveGuard("overlay0")
	x.ok(err)
	if len(removed) != 1 {
		t.Errorf("removed %q", removed)
	}
	x.guardStands(false)
	c, err := x.k.GuardCounts()
	if err != nil || len(c.Drops) != 8 || len(c.Peers) != 0 {
		t.Errorf("without a guard: %+v, %v", c, err)
	}
	g := guardOf()
	g.Device = "overlay1" // after a removal, another device may have one
	x.ok(x.k.SetGuard(g, false))
	x.guardStands(true)

	x.ok(x.k.Close())
	for name, call := range map[string]func() error{
		"SetGuard":    func() error { return x.k.SetGuard(g, false) },
		"CheckGuard":  func() error { _, err := x.k.CheckGuard(); return err },
		"RemoveGuard": func() error { _, err := x.k.RemoveGuard("overlay1"); return err },
		"GuardCounts": func() error { _, err := x.k.GuardCounts(); return err },
	} {
		if err := call(); !errors.Is(err, kernel.ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", name, err)
		}
	}
}

// tampering is what somebody may do to the guard's table.
func tampering() map[string]func(c *nftables.Conn, t *nftables.Table) error {
	chains := func(c *nftables.Conn) ([]*nftables.Chain, error) {
		all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
		return all, err
	}
	outer := func(c *nftables.Conn, t *nftables.Table) (*nftables.Set, []nftables.SetElement, error) {
		s, err := c.GetSetByName(t, "outer4")
		if err != nil {
			return nil, nil, err
		}
		e, err := c.GetSetElements(s)
		return s, e, err
	}
	return map[string]func(c *nftables.Conn, t *nftables.Table) error{
		"ruleset flushed": func(c *nftables.Conn, _ *nftables.Table) error { c.FlushRuleset(); return nil },
		"table deleted":   func(c *nftables.Conn, t *nftables.Table) error { c.DelTable(t); return nil },
		"table made anew": func(c *nftables.Conn, t *nftables.Table) error { c.DelTable(t); c.AddTable(t); return nil },
		"rules flushed":   func(c *nftables.Conn, t *nftables.Table) error { c.FlushTable(t); return nil },
		"chain flushed": func(c *nftables.Conn, t *nftables.Table) error {
			c.FlushChain(&nftables.Chain{Table: t, Name: "first_fragment"})
			return nil
		},
		"rule added": func(c *nftables.Conn, t *nftables.Table) error {
			c.AddRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Table: t, Name: "vxlan"}, Exprs: accept})
			return nil
		},
		"rule put first": func(c *nftables.Conn, t *nftables.Table) error {
			c.InsertRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Table: t, Name: "vxlan_source4"}, Exprs: accept})
			return nil
		},
		"rule deleted": func(c *nftables.Conn, t *nftables.Table) error {
			rules, err := c.GetRules(t, &nftables.Chain{Table: t, Name: "plain"})
			if err != nil {
				return err
			}
			return c.DelRule(&nftables.Rule{Table: t, Chain: rules[0].Chain, Handle: rules[0].Handle})
		},
		"chain added": func(c *nftables.Conn, t *nftables.Table) error {
			c.AddChain(&nftables.Chain{Table: t, Name: "extra"})
			return nil
		},
		"policy changed": func(c *nftables.Conn, t *nftables.Table) error {
			all, err := chains(c)
			policy := nftables.ChainPolicyDrop
			for _, ch := range all {
				if ch.Table.Name == t.Name && ch.Name == "local" {
					ch.Policy, ch.Table = &policy, t
					c.AddChain(ch)
				}
			}
			return err
		},
		"set flushed": func(c *nftables.Conn, t *nftables.Table) error {
			c.FlushSet(&nftables.Set{Table: t, Name: "vxlan6"})
			return nil
		},
		"element deleted": func(c *nftables.Conn, t *nftables.Table) error {
			s, e, err := outer(c, t)
			if err != nil {
				return err
			}
			return c.SetDeleteElements(s, e[:1])
		},
		"element added": func(c *nftables.Conn, t *nftables.Table) error {
			s, e, err := outer(c, t)
			if err != nil {
				return err
			}
			return c.SetAddElements(s, []nftables.SetElement{{Key: []byte{203, 0, 113, 1}, Val: e[0].Val}})
		},
		"element moved": func(c *nftables.Conn, t *nftables.Table) error {
			s, e, err := outer(c, t)
			if err != nil {
				return err
			}
			if err := c.SetDeleteElements(s, e[:1]); err != nil {
				return err
			}
			return c.SetAddElements(s, []nftables.SetElement{{Key: e[0].Key, Val: e[1].Val, Comment: e[0].Comment}})
		},
		"counter added": func(c *nftables.Conn, t *nftables.Table) error {
			c.AddObj(&nftables.CounterObj{Table: t, Name: "extra"})
			return nil
		},
	}
}

// What anybody does to the table is seen, and repaired by the next call.
func TestGuardRepair(t *testing.T) {
	for name, do := range tampering() {
		t.Run(name, func(t *testing.T) {
			x := newHost(t)
			g := guardOf(guardPeer(2), guardPeer(3))
			x.ok(x.k.SetGuard(g, false))
			c, err := nftables.New()
			x.ok(err)
			x.ok(do(c, &nftables.Table{Family: nftables.TableFamilyINet, Name: "overlayd-overlay0"}))
			x.ok(c.Flush())
			x.guardStands(false)
			x.guardStands(false)
			x.ok(x.k.SetGuard(g, false))
			x.guardStands(true)
		})
	}
	t.Run("asleep", func(t *testing.T) {
		x := newHost(t)
		x.ok(x.k.SetGuard(guardOf(), false))
		x.dormantTable("overlayd-overlay0")
		x.guardStands(false)
		x.ok(x.k.SetGuard(guardOf(), false))
		x.guardStands(true)
	})
	t.Run("others", func(t *testing.T) { // is none of the guard's business
		x := newHost(t)
		x.ok(x.k.SetGuard(guardOf(guardPeer(2)), false))
		before := x.guardChains()
		x.addDropPolicy()
		x.guardStands(true)
		x.ok(x.k.SetGuard(guardOf(guardPeer(2), guardPeer(3)), false))
		x.addDropPolicy()
		x.ok(x.k.SetGuard(guardOf(guardPeer(3)), false))
		x.guardStands(true)
		x.sameHandles(before, x.guardChains())
	})
}

// guardChains are the rules of the guard with their handles, by which rules that
// were made anew are told.
func (x *host) guardChains() (all []uint64) {
	x.Helper()
	c, err := nftables.New()
	x.ok(err)
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "overlayd-overlay0"}
	for _, name := range []string{"arrival", "first_fragment", "vxlan", "vxlan_source4", "plain"} {
		rules, err := c.GetRules(table, &nftables.Chain{Table: table, Name: name})
		x.ok(err)
		for _, r := range rules {
			all = append(all, r.Handle)
		}
	}
	return all
}

func (x *host) sameHandles(before, after []uint64) {
	x.Helper()
	if len(before) == 0 || !slices.Equal(before, after) {
		x.Errorf("rules were made anew: handles %v, then %v", before, after)
	}
}

// A bad entry of a peer is left out, and costs nobody else anything.
func TestGuardLeavesOut(t *testing.T) {
	x := newHost(t)
	bad := guardPeer(2)
	bad.Outer = append(bad.Outer, netip.Addr{}, netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("::ffff:192.0.2.77"),
		netip.MustParseAddr("224.0.0.1"), netip.MustParseAddr("0.0.0.0"))
	bad.Inner = append(bad.Inner, netip.Prefix{}, netip.MustParsePrefix("::ffff:100.96.7.0/120"), netip.MustParsePrefix("0.0.0.0/0"),
		netip.MustParsePrefix("::/0"), netip.MustParsePrefix("100.96.0.0/16"), netip.MustParsePrefix("255.255.255.255/32"))
	bad.Prefixes = append(bad.Prefixes, netip.MustParsePrefix("100.96.2.7/25"))
	bad.Direct = []kernel.DirectSender{{Link: "eth0", MAC: [6]byte{2, 1}}, {Link: "eth0"}, {Link: "", MAC: [6]byte{2, 1}},
		{Link: "eth0", MAC: [6]byte{3}}, {Link: "a-name-of-16-bytes", MAC: [6]byte{2}}}
	twin := guardPeer(2)
	twin.ID[0] = 1
	g := guardOf(bad, guardPeer(3), twin, guardPeer(3))
	err := x.k.SetGuard(g, false)
	if err == nil || errors.Is(err, kernel.ErrNoGuard) {
		t.Fatalf("got %v, want what was left out", err)
	}
	for _, want := range []string{"fe80::1%eth0", "224.0.0.1", "0.0.0.0", "::ffff:100.96.7.0/120", "a-name-of-16-bytes", "ee000000000000000000000000000002"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %s: %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "ee000000000000000000000000000003") {
		t.Errorf("the error names a good peer: %v", err)
	}
	x.guardStands(true)
	x.ok(x.k.SetGuard(guardOf(guardPeer(3), twin), false)) // each element changes its owner
	x.guardStands(true)
	if err := x.k.SetGuard(g, false); err == nil {
		t.Error("nothing was left out")
	}
	x.guardStands(true)
}

// What is no guard at all changes nothing.
func TestGuardRefused(t *testing.T) {
	x := newHost(t)
	x.ok(x.k.SetGuard(guardOf(guardPeer(2)), false))
	for name, spoil := range map[string]func(*kernel.Guard){
		"device":  func(g *kernel.Guard) { g.Device = "overlay1" },
		"name":    func(g *kernel.Guard) { g.VXLANs = []string{"overlay0/v4"} },
		"port":    func(g *kernel.Guard) { g.Port = 0 },
		"VNI":     func(g *kernel.Guard) { g.VNI = 1 << 24 },
		"local":   func(g *kernel.Guard) { g.Locals = []netip.Addr{{}} },
		"network": func(g *kernel.Guard) { g.Networks = []netip.Prefix{{}} },
	} {
		g := guardOf()
		spoil(&g)
		if err := x.k.SetGuard(g, false); !errors.Is(err, kernel.ErrNoGuard) {
			t.Errorf("%s: %v", name, err)
		}
	}
	x.guardStands(true)

	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	x.ok(unix.Capget(&hdr, &caps[0]))
	caps[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	x.ok(unix.Capset(&hdr, &caps[0])) // of this thread, which ends with the test
	err := x.k.SetGuard(guardOf(), false)
	if !errors.Is(err, kernel.ErrNoGuard) || !errors.Is(err, kernel.ErrPermission) || strings.Contains(err.Error(), "\n") {
		t.Errorf("without the right: %v", err)
	}
	if _, err := x.k.CheckGuard(); !errors.Is(err, kernel.ErrPermission) {
		t.Errorf("CheckGuard without the right: %v", err)
	}
	if _, err := x.k.RemoveGuard("overlay0"); !errors.Is(err, kernel.ErrPermission) {
		t.Errorf("RemoveGuard without the right: %v", err)
	}
}

// A thousand peers, and what a change of one of them costs.
func TestGuardThousandPeers(t *testing.T) {
	x := newHost(t)
	var peers []kernel.GuardPeer
	for n := range 1000 {
		p := guardPeer(n + 2)
		p.Direct = []kernel.DirectSender{{Link: "eth0", MAC: [6]byte{2, 0, 0, 0, byte(n >> 8), byte(n)}}}
		peers = append(peers, p)
	}
	timed := func(what string, do func()) {
		begin := time.Now()
		do()
		t.Logf("%s: %v", what, time.Since(begin).Round(10*time.Microsecond))
	}
	timed("none", func() { x.ok(x.k.SetGuard(guardOf(), false)) })
	timed("the first thousand", func() { x.ok(x.k.SetGuard(guardOf(peers...), false)) })
	timed("unchanged", func() { x.ok(x.k.SetGuard(guardOf(peers...), false)) })
	peers[500].Outer = peers[500].Outer[:1]
	timed("one changed", func() { x.ok(x.k.SetGuard(guardOf(peers...), false)) })
	timed("looked at", func() { x.guardStands(true) })
	x.addDropPolicy()
	timed("looked at after a change by others", func() { x.guardStands(true) })
	timed("counted", func() {
		_, err := x.k.GuardCounts()
		x.ok(err)
	})
	g := guardOf(peers...)
	g.Own = nil
	timed("made anew", func() { x.ok(x.k.SetGuard(g, false)) })
	x.guardStands(true)
	timed("removed", func() {
		removed, err := x.k.RemoveGuard("overlay0")
		x.ok(err)
		if !slices.Equal(removed, []string{"nftables table inet overlayd-overlay0"}) {
			t.Errorf("removed %q", removed)
		}
	})
	removed, err := x.k.RemoveGuard("overlay0")
	if err != nil || removed != nil {
		t.Errorf("removed again: %q, %v", removed, err)
	}
}
