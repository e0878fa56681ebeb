package kernel_test

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
)

// Packets by each way, in both directions, and nothing left in the end.
func TestFastVXLAN(t *testing.T) {
	n := fastNodes(t, 2)
	a, b := n[0], n[1]
	before := [][]string{a.state(), b.state()}
	ready(a, b)
	a.pings(b)
	b.pings(a)
	a.stands()
	a.wayIs(b.own[0], "", vx4+" via 100.96.2.0 src 100.96.1.0 mtu 0")
	a.wayIs(b.own[1], "", vx4+" via fe80::ff:fe00:2 src fd96:0:0:1:: mtu 0")
	for _, outer := range []netip.Addr{b.host.Addr6(), b.host.Addr4()} {
		// One direction is over IPv6 then, the other over IPv4.
		a.apply(b.peer(outer, kernel.FastVXLAN))
		a.pings(b)
		b.pings(a)
		a.stands()
	}
	both := b.peer(b.host.Addr4(), kernel.FastDirect)
	both.Hops = b.direct(0).Hops
	both.MTU = 1400
	a.apply(both)
	a.wayIs(b.own[0], "", "eth0 via 192.0.2.2 src 100.96.1.0 mtu 1400")
	a.wayIs(b.own[1], "", "eth0 via 2001:db8::2 src fd96:0:0:1:: mtu 1400")
	// Probes find all ways whatever the main table says, and at full size.
	a.wayIs(b.own[0], vx4, vx4+" via <nil> src 100.96.1.0 mtu 0")
	a.wayIs(b.own[1], vx4, vx4+" via fe80::ff:fe00:2 src fd96:0:0:1:: mtu 0")
	a.wayIs(b.own[0], "eth0", "eth0 via 192.0.2.2 src 100.96.1.0 mtu 0")
	for i, x := range n {
		removed, err := x.f.Remove()
		x.ok(err)
		if len(removed) < 6 || !strings.HasPrefix(removed[0], "route 100.96") || removed[len(removed)-1] != "device "+vx6 {
			t.Errorf("removed %q", removed)
		}
		x.same(before[i])
		again, err := x.f.Remove()
		if err != nil || len(again) != 0 {
			t.Errorf("removed again: %q, %v", again, err)
		}
		if did, res := x.f.Check(); len(did) > 0 || res.Err != nil {
			t.Errorf("put back: %q, %+v", did, res)
		}
	}
}

// What the kernel is asked for is what it has: the netlink library cannot say.
func TestFastDevice(t *testing.T) {
	a := fastNodes(t, 1)[0]
	a.clean(a.f.Apply(a.own, nil, false))
	for _, name := range []string{vx4, vx6} {
		l := a.link(name).(*netlink.Vxlan)
		up := l.Flags&net.FlagUp != 0
		if l.VxlanId != 1 || l.Port != 4789 || l.Learning || l.TOS != 1 || l.MTU != 1430 || l.Alias != kernel.DeviceAlias || up ||
			l.HardwareAddr.String() != "02:00:00:00:00:01" || !l.UDPCSum || l.UDP6ZeroCSumRx || l.UDP6ZeroCSumTx || l.VtepDevIndex != 0 {
			t.Errorf("%s: %+v", name, l)
		}
	}
	a.ok(a.f.SetUp(true))
	addrs, err := a.h.AddrList(a.link(vx4), netlink.FAMILY_ALL)
	a.ok(err)
	if len(addrs) != 2 { // no link-local one
		t.Errorf("addresses %v", addrs)
	}
	v4, v6 := kernel.VXLANNames("overlay0")
	if v4 != vx4 || v6 != vx6 {
		t.Errorf("names %s, %s", v4, v6)
	}
}

func TestNewFastRefuses(t *testing.T) {
	a := fastNodes(t, 1)[0]
	for want, spoil := range map[string]func(*kernel.FastConfig){
		"choose a --device of at most 12 characters": func(c *kernel.FastConfig) { c.Device = "overlay000000" },
		"VNI 16777216":              func(c *kernel.FastConfig) { c.VNI = 1 << 24 },
		"no UDP port":               func(c *kernel.FastConfig) { c.Port = 0 },
		"VTEP MAC 01":               func(c *kernel.FastConfig) { c.MAC[0] = 1 },
		"MTU 1200":                  func(c *kernel.FastConfig) { c.MTU = 1200 },
		"MTU 60":                    func(c *kernel.FastConfig) { c.MTU = 60; c.IPv6 = false },
		"two endpoints":             func(c *kernel.FastConfig) { c.Locals = addrs("192.0.2.1", "192.0.2.2") },
		"is no address":             func(c *kernel.FastConfig) { c.Locals = addrs("fe80::1%eth0") },
		"no overlay networks":       func(c *kernel.FastConfig) { c.Networks = nil },
		"of at most 12 characters ": nil,
	} {
		cfg := a.cfg
		if spoil == nil {
			cfg.Device = "overlay00000" // 12 are allowed
			_, err := a.k.NewFast(cfg)
			a.ok(err)
			continue
		}
		spoil(&cfg)
		_, err := a.k.NewFast(cfg)
		a.failsWith(err, nil, want)
	}
}

// Apply leaves the devices down until SetUp, and no route leads to one that is.
func TestFastSetUp(t *testing.T) {
	n := fastNodes(t, 2)
	a, b := n[0], n[1]
	ready(b, a)
	a.remove()
	p := b.peer(b.host.Addr4(), kernel.FastNone)
	a.clean(a.f.Apply(a.own, []kernel.FastPeer{p}, false)) // nothing is lacking but SetUp
	p.Route = kernel.FastVXLAN
	down := func() {
		t.Helper()
		res := a.f.Apply(a.own, []kernel.FastPeer{p}, false)
		a.failsWith(res.Peers[p.ID], nil, vx4, "is down")
		if got := a.way(b.own[0], ""); strings.Contains(got, vx4) {
			t.Errorf("a route to a device that is down: %s", got)
		}
		if a.link(vx4).Attrs().RawFlags&unix.IFF_UP != 0 {
			t.Error("it is up")
		}
	}
	down()
	a.ok(a.f.SetUp(true))
	a.pings(b) // SetUp has put in what was wanted
	a.apply(p)
	told := a.news()
	a.ok(a.f.SetUp(true))
	if got := told.count(); len(got) > 0 {
		t.Errorf("up again: %q", got)
	}
	a.ok(a.f.SetUp(false))
	down()
	// Somebody sets it up while there is no guard.
	a.ok(a.h.LinkSetUp(a.link(vx4)))
	if did, _ := a.f.Check(); !slices.Contains(did, "device "+vx4+": setting it down") {
		t.Errorf("Check: %q", did)
	}
	down()
	a.ok(a.f.SetUp(true))
	a.pings(b)
}

// The daemon dies and the next one adopts: nothing is changed, not for a moment.
func TestFastAdopt(t *testing.T) {
	n := fastNodes(t, 3)
	a, b, c := n[0], n[1], n[2]
	peers := []kernel.FastPeer{b.peer(b.host.Addr4(), kernel.FastVXLAN), c.peer(c.host.Addr6(), kernel.FastDirect)}
	peers[1].Hops = c.direct(0).Hops
	if got := a.f.Adopted(); len(got) != 0 {
		t.Errorf("adopted from nobody: %v", got)
	}
	a.f.Apply(a.own, peers, false)
	a.ok(a.f.SetUp(true))
	a.apply(peers...)
	before, told := a.state(), a.news()

	a.restart()
	want := map[netip.Prefix]kernel.FastKind{
		b.nets[0]: kernel.FastVXLAN, b.nets[1]: kernel.FastVXLAN, c.nets[0]: kernel.FastDirect, c.nets[1]: kernel.FastDirect}
	if got := a.f.Adopted(); !maps.Equal(got, want) {
		t.Errorf("adopted %v, want %v", got, want)
	}
	// It does not know its subnets nor its peers yet, then one of them, then all.
	a.clean(a.f.Apply(nil, nil, true))
	a.clean(a.f.Apply(a.own, peers[:1], true))
	a.stands()
	a.clean(a.f.Apply(a.own, peers, true))
	a.apply(peers...)
	a.ok(a.f.SetUp(true))
	a.stands()
	if got := told.count(); len(got) != 0 {
		t.Errorf("news: %q", got)
	}
	a.same(before)

	// Other settings: the devices are made anew. One endpoint is no more.
	a.cfg.VNI, a.cfg.Locals = 7, a.cfg.Locals[:1]
	a.restart()
	res := a.f.Apply(a.own, peers, true)
	if res.Peers != nil && res.Peers[peers[0].ID] == nil || !errors.Is(res.VXLAN6, kernel.ErrNoAddress) {
		t.Errorf("%s", resultText(res))
	}
	if id := a.link(vx4).(*netlink.Vxlan).VxlanId; id != 7 {
		t.Errorf("VNI %d", id)
	}
	if _, err := a.h.LinkByName(vx6); err == nil {
		t.Error(vx6 + " is still there")
	}
}

// What keep keeps and what it does not.
func TestFastKeep(t *testing.T) {
	n := fastNodes(t, 3)
	a, b, c := n[0], n[1], n[2]
	pb, pc := b.peer(b.host.Addr4(), kernel.FastVXLAN), c.peer(c.host.Addr4(), kernel.FastVXLAN)
	a.f.Apply(a.own, []kernel.FastPeer{pb, pc}, false)
	a.ok(a.f.SetUp(true))
	full := a.state()
	a.apply(pb)
	onlyB := a.state()
	a.apply(pb, pc)
	for _, restart := range []bool{false, true} {
		if restart {
			a.restart()
		}
		// c is not known: all of it stays, also after Check.
		a.clean(a.f.Apply(a.own, []kernel.FastPeer{pb}, true))
		a.same(full)
		a.stands()
		a.same(full)
		// b is known, and moves: nothing of what it was stays.
		moved := pb
		moved.Route = kernel.FastNone
		a.clean(a.f.Apply(a.own, []kernel.FastPeer{moved}, true))
		a.wayIs(b.own[0], "", unix.ENETUNREACH.Error())
		a.wayIs(c.own[0], "", vx4+" via 100.96.3.0 src 100.96.1.0 mtu 0")
		a.clean(a.f.Apply(a.own, []kernel.FastPeer{pb}, true))
		a.same(full)
	}
	moved := pb
	moved.MAC[3] = 7
	a.clean(a.f.Apply(a.own, []kernel.FastPeer{moved}, true))
	for _, line := range a.state() {
		if strings.Contains(line, "02:00:00:00:00:02") || strings.Contains(line, "fe80::ff:fe00:2") {
			t.Errorf("left of the old MAC: %s", line)
		}
	}
	// c's prefix is b's now: that contradicts c's route.
	taken := pb
	taken.Prefixes = c.nets
	a.clean(a.f.Apply(a.own, []kernel.FastPeer{taken}, true))
	a.wayIs(c.own[1], "", vx4+" via fe80::ff:fe00:2 src fd96:0:0:1:: mtu 0")
	a.apply(pb)
	a.same(onlyB)
}

// Calls on a closed Kernel.
func TestFastClosed(t *testing.T) {
	a := fastNodes(t, 1)[0]
	a.ok(a.k.Close())
	_, check := a.f.Check()
	_, remove := a.f.Remove()
	_, why := a.k.OnLink(a.host.Addr4())
	_, fresh := a.k.NewFast(a.cfg)
	for name, err := range map[string]error{
		"Apply": a.f.Apply(nil, nil, false).Err, "Check": check.Err, "SetUp": a.f.SetUp(true), "Remove": remove,
		"Forget": a.f.Forget(a.host.Addr4()), "Watch": a.f.Watch(t.Context(), func() {}), "NewFast": fresh,
	} {
		if !errors.Is(err, kernel.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if why == "" {
		t.Error("OnLink has an answer")
	}
}

// All at once, for the race detector: the prober, the conductor and whoever mends.
func TestFastTogether(t *testing.T) {
	n := fastNodes(t, 2)
	a, b := n[0], n[1]
	ready(a, b)
	p := b.peer(b.host.Addr4(), kernel.FastVXLAN)
	p.Hops = b.direct(0).Hops
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() {
		if err := a.f.Watch(ctx, func() {}); err != nil {
			t.Error(err)
		}
	})
	var busy sync.WaitGroup
	for _, do := range []func() error{
		func() error { a.f.Apply(a.own, []kernel.FastPeer{p}, false); return nil },
		func() error { _, res := a.f.Check(); return res.Err },
		func() error { return a.f.Forget(b.host.Addr6()) },
		func() error { return a.f.SetUp(true) },
		func() error { a.k.OnLink(b.host.Addr4()); a.f.Adopted(); return nil },
	} {
		busy.Go(func() {
			for range 20 {
				if err := do(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	busy.Wait()
	cancel()
	wg.Wait()
	a.stands()
	a.pings(b)
}
