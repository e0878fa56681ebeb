package kernel_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// news collects the kernel's notifications in a namespace.
type news struct {
	x      *fastNode
	socket *nl.NetlinkSocket
}

func (x *fastNode) news() *news {
	x.Helper()
	n := &news{x: x}
	x.ok(x.host.Do(func() (err error) {
		n.socket, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
			unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
		return err
	}))
	x.Cleanup(n.socket.Close)
	return n
}

// count is how many there were since the last call. An address of the loopback
// device marks the end of what can have happened. Neighbours of the underlay come
// and go in their own time.
func (n *news) count() (all []string) {
	n.x.Helper()
	mark := netip.MustParseAddr("127.77.77.77")
	n.x.ok(n.x.h.AddrAdd(n.x.link("lo"), &netlink.Addr{IPNet: mustNet(single(mark).String())}))
	n.x.ok(n.x.h.AddrDel(n.x.link("lo"), &netlink.Addr{IPNet: mustNet(single(mark).String())}))
	eth0 := n.x.link("eth0").Attrs().Index
	lo := n.x.link("lo").Attrs().Index
	for {
		msgs, _, err := n.socket.Receive()
		n.x.ok(err)
		for _, m := range msgs {
			switch m.Header.Type {
			case unix.RTM_DELADDR, unix.RTM_NEWADDR:
				index := int(nl.DeserializeIfAddrmsg(m.Data).Index)
				if index == lo {
					if m.Header.Type == unix.RTM_DELADDR {
						return all
					}
					continue
				}
			case unix.RTM_NEWROUTE, unix.RTM_DELROUTE: // the mark's own
				if nl.DeserializeRtMsg(m.Data).Table == unix.RT_TABLE_LOCAL {
					continue
				}
			case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
				e, err := netlink.NeighDeserialize(m.Data)
				n.x.ok(err)
				if e.LinkIndex == eth0 {
					continue
				}
			}
			all = append(all, fmt.Sprintf("type %d", m.Header.Type))
		}
	}
}

// A peer that changes leaves nothing of what it was; and Apply, which goes by what
// it remembers, has done what Check, which reads, would do.
func TestFastChanges(t *testing.T) {
	n := fastNodes(t, 2)
	a, b := n[0], n[1]
	ready(a, b)
	for _, c := range []struct {
		name   string
		change func(p *kernel.FastPeer)
	}{
		{"outer address", func(p *kernel.FastPeer) { p.Outer = netip.MustParseAddr("192.0.2.77") }},
		{"outer family", func(p *kernel.FastPeer) { p.Outer = b.host.Addr6() }},
		{"MAC", func(p *kernel.FastPeer) { p.MAC[4] = 9 }},
		{"prefix", func(p *kernel.FastPeer) { p.Prefixes = prefixes("100.96.40.0/24", "fd96:0:0:40::/64") }},
		{"prefix length", func(p *kernel.FastPeer) { p.Prefixes = prefixes("100.96.2.0/25", "fd96:0:0:2::/80") }},
		{"IPv4 only", func(p *kernel.FastPeer) { p.Prefixes = p.Prefixes[:1] }},
		{"two prefixes", func(p *kernel.FastPeer) {
			p.Prefixes = append(slices.Clone(p.Prefixes), prefixes("100.96.41.0/24", "fd96:0:0:41::/64")...)
		}},
		{"MTU", func(p *kernel.FastPeer) { p.MTU = 1300 }},
		{"to the TUN", func(p *kernel.FastPeer) { p.Route = kernel.FastNone }},
		{"direct", func(p *kernel.FastPeer) { *p = b.direct(kernel.FastDirect) }},
		{"both ways, direct", func(p *kernel.FastPeer) { p.Hops, p.Route = b.direct(0).Hops, kernel.FastDirect }},
		{"both ways, VXLAN", func(p *kernel.FastPeer) { p.Hops = b.direct(0).Hops }},
		{"direct over IPv4 only", func(p *kernel.FastPeer) { *p = b.direct(kernel.FastDirect); p.Hops = p.Hops[:1] }},
		{"another direct hop", func(p *kernel.FastPeer) {
			*p = b.direct(kernel.FastDirect)
			p.Hops[0].Addr = netip.MustParseAddr("192.0.2.77")
		}},
		{"neither way", func(p *kernel.FastPeer) { p.Outer, p.Route = netip.Addr{}, kernel.FastNone }},
	} {
		base := b.peer(b.host.Addr4(), kernel.FastVXLAN)
		a.apply(base)
		a.stands()
		was := a.state()
		p := base
		c.change(&p)
		a.apply(p)
		a.stands()
		changed := a.state()
		if slices.Equal(was, changed) {
			t.Errorf("%s: nothing has changed", c.name)
		}
		// The same from nothing.
		a.remove()
		a.f.Apply(a.own, []kernel.FastPeer{p}, false)
		a.ok(a.f.SetUp(true))
		a.apply(p)
		a.same(changed)
		a.apply(base)
		a.same(was)
		if t.Failed() {
			t.Fatalf("%s: see above", c.name)
		}
	}
	a.pings(b)
}

// Random peers in random order, with everything changing at once.
func TestFastRandom(t *testing.T) {
	a := fastNodes(t, 1)[0]
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	a.f.Apply(a.own, nil, false)
	a.ok(a.f.SetUp(true))
	owns := [][]netip.Addr{a.own, addrs("100.96.200.0", "fd96:0:0:200::"), a.own[:1], a.own[1:], nil}
	for range 60 {
		var peers []kernel.FastPeer
		subnets := rnd.Perm(6)
		macs := rnd.Perm(6)
		for i := range rnd.IntN(5) {
			p := kernel.FastPeer{ID: [16]byte{byte(i + 1)}, Name: fmt.Sprint("peer", i), MAC: [6]byte{2, 0, 0, 0, 1, byte(macs[i])}, MTU: 1400 * rnd.IntN(2)}
			p.Prefixes = prefixes(fmt.Sprintf("100.96.%d.0/24", 100+subnets[i]), fmt.Sprintf("fd96:0:0:%d::/64", 100+subnets[i]))
			from := rnd.IntN(2) // one of them, or both
			p.Prefixes = p.Prefixes[from : from+1+rnd.IntN(2-from)]
			outer := addrs("192.0.2.10", "192.0.2.11", "192.0.2.12", "2001:db8::10", "2001:db8::11")
			if k := rnd.IntN(6); k < 5 {
				p.Outer = outer[k]
			}
			for _, hop := range addrs("192.0.2.20", "2001:db8::20") {
				if rnd.IntN(2) == 0 {
					p.Hops = append(p.Hops, kernel.DirectHop{Link: "eth0", Addr: hop})
				}
			}
			p.Route = kernel.FastKind(rnd.IntN(3))
			if p.Route == kernel.FastVXLAN && !p.Outer.IsValid() {
				p.Route = kernel.FastNone
			}
			peers = append(peers, p)
		}
		own := owns[rnd.IntN(len(owns))]
		res := a.f.Apply(own, peers, false)
		a.clean(res)
		a.stands()
		if t.Failed() {
			t.Fatalf("own %v, peers %+v", own, peers)
		}
	}
	a.remove()
}

// While a peer's way changes no packet is lost: there is no moment without a route.
func TestFastHandOffLosesNothing(t *testing.T) {
	n := fastNodes(t, 2)
	a, b := n[0], n[1]
	ready(a, b)
	both := b.peer(b.host.Addr4(), kernel.FastVXLAN)
	both.Hops = b.direct(0).Hops
	six := both
	six.Outer = b.host.Addr6()
	direct := both
	direct.Route = kernel.FastDirect
	small := both
	small.MTU = 1300
	done := make(chan error)
	for i, dst := range b.own {
		go func() {
			res, err := a.host.Ping(context.Background(), lab.PingConfig{Dst: dst, Src: a.own[i], Count: 500, Interval: time.Millisecond, Timeout: 5 * time.Second})
			if err == nil && (res.Received != 500 || res.Duplicates > 0) {
				err = fmt.Errorf("%s: sent %d, received %d, twice %d, errors %v, %v", dst, res.Sent, res.Received, res.Duplicates, res.Errors, res.SendErr)
			}
			done <- err
		}()
	}
	rounds, ended := 0, 0
	for ended < 2 {
		select {
		case err := <-done:
			ended++
			if err != nil {
				t.Error(err)
			}
		default:
			for _, p := range []kernel.FastPeer{direct, both, small, six, direct, six, both} {
				a.apply(p)
			}
			rounds++
		}
	}
	t.Logf("%d rounds of 7 changes", rounds)
	a.stands()
}

// A node that moves to other subnets of its own: no route is lost with its old source.
func TestFastOwnAddressesChange(t *testing.T) {
	n := fastNodes(t, 2)
	a, b := n[0], n[1]
	ready(a, b)
	p := b.peer(b.host.Addr4(), kernel.FastVXLAN)
	p.Hops = b.direct(0).Hops
	for _, kind := range []kernel.FastKind{kernel.FastVXLAN, kernel.FastDirect} {
		p.Route = kind
		a.apply(p)
		old := a.own
		for _, own := range [][]netip.Addr{addrs("100.96.9.0", "fd96:0:0:9::"), old, nil, old} {
			a.own = own
			a.apply(p)
			a.stands()
			for i := range own {
				dev, via := vx4, []string{"100.96.2.0", "fe80::ff:fe00:2"}[i]
				if kind == kernel.FastDirect {
					dev, via = "eth0", p.Hops[i].Addr.String()
				}
				a.wayIs(b.own[i], "", fmt.Sprintf("%s via %s src %s mtu 0", dev, via, own[i]))
				// Where no route leads by the link, IPv4 takes the destination for one of it.
				probes := []string{"<nil>", "fe80::ff:fe00:2"}[i]
				if i == 0 && kind == kernel.FastVXLAN {
					probes = "100.96.2.0"
				}
				a.wayIs(b.own[i], vx4, fmt.Sprintf("%s via %s src %s mtu 0", vx4, probes, own[i]))
				a.wayIs(b.own[i], "eth0", fmt.Sprintf("eth0 via %s src %s mtu 0", p.Hops[i].Addr, own[i]))
			}
		}
	}
}

// One changed peer costs a few requests, whatever the others are; and nothing
// that stays is touched.
func TestFastChangesLittle(t *testing.T) {
	a := fastNodes(t, 1)[0]
	peers := manyPeers(50)
	a.f.Apply(a.own, peers, false)
	a.ok(a.f.SetUp(true))
	a.apply(peers...)
	told := a.news()
	a.apply(peers...)
	if got := told.count(); len(got) != 0 {
		t.Errorf("the same again: %q", got)
	}
	a.stands()
	if got := told.count(); len(got) != 0 {
		t.Errorf("a check: %q", got)
	}
	peers[7].Route = kernel.FastNone
	a.apply(peers...)
	if got := told.count(); len(got) != 2 {
		t.Errorf("a demotion: %q", got)
	}
	peers[7].Route = kernel.FastVXLAN
	a.apply(peers...)
	if got := told.count(); len(got) != 2 {
		t.Errorf("a promotion: %q", got)
	}
	a.apply(peers[1:]...)
	if got := told.count(); len(got) > 9 {
		t.Errorf("a peer less: %q", got)
	}
}

// manyPeers are n peers, reached by VXLAN.
func manyPeers(n int) []kernel.FastPeer {
	var all []kernel.FastPeer
	for i := range n {
		hi, lo := byte(i/250), byte(i%250)
		all = append(all, kernel.FastPeer{
			ID: [16]byte{1, hi, lo}, Name: fmt.Sprint("peer", i), MAC: [6]byte{2, 0, 0, 1, hi, lo}, Route: kernel.FastVXLAN,
			Outer: netip.AddrFrom4([4]byte{198, 51, hi, lo}),
			// /27: 2048 of them in the network.
			Prefixes: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 96, byte(64 + i/8), byte(i % 8 * 32)}), 27),
				netip.MustParsePrefix(fmt.Sprintf("fd96:0:0:%x::/64", 0x1000+i)),
			},
		})
	}
	return all
}

// A thousand peers, from nothing and back to it: what it costs is told for fewer as
// well, and grows with their number.
func TestFastThousandPeers(t *testing.T) {
	for _, n := range []int{250, 500, 1000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) { thousandPeers(t, n) })
	}
}

func thousandPeers(t *testing.T, n int) {
	a := fastNodes(t, 1)[0]
	before := a.state()
	peers := manyPeers(n)
	used := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	memory := used()
	timed := func(what string, f func()) {
		start := time.Now()
		f()
		t.Logf("%d peers: %s: %v", n, what, time.Since(start).Round(time.Millisecond/10))
	}
	timed("the first Apply, devices down", func() { a.f.Apply(a.own, peers, false) })
	timed("SetUp", func() { a.ok(a.f.SetUp(true)) })
	t.Logf("%d peers: %d kB of memory", n, (int64(used())-int64(memory))/1000)
	timed("Apply of the same", func() { a.apply(peers...) })
	timed("Check", func() { a.stands() })
	timed("Forget", func() { a.ok(a.f.Forget(peers[n/2].Outer)) })
	peers[n/2].Outer = netip.MustParseAddr("198.51.99.99")
	timed("Apply of one change", func() { a.apply(peers...) })
	want := map[string]int{"route": 3 * n, "neigh": 2 * n, "fdb": n}
	for _, line := range a.state() {
		for kind := range want {
			if len(line) > len(kind) && line[:len(kind)] == kind && !slices.Contains(before, line) {
				want[kind]--
			}
		}
	}
	// Four local routes for two addresses on two devices.
	if want["route"] < -4 || want["route"] > 0 || want["neigh"] != 0 || want["fdb"] != 0 {
		t.Errorf("missing (or too many, if negative): %v", want)
	}
	timed("Remove", a.remove)
	a.same(before)
}
