package overlayd

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/path"
	"github.com/overlayd/overlayd/internal/probe"
	"github.com/overlayd/overlayd/membership"
)

const (
	// reconcileEvery is how often it is looked whether the guard stands, and whether
	// somebody has changed what the kernel paths are made of.
	reconcileEvery = 500 * time.Millisecond
	// readAllEvery is how often all of it is read, also when nobody was heard to change it.
	readAllEvery = 30 * time.Second
	// forgetEvery is the least time between two times that the kernel is made to forget what
	// it has learned of paths.
	forgetEvery = time.Second
	// mendEvery is how often something that could not be set up is tried again.
	mendEvery = 5 * time.Second
	// adoptFor is how long, after this node has merged with its cluster, it keeps what a
	// dead daemon left for peers that it does not know yet: the time in which gossip spreads,
	// with a margin.
	adoptFor = 10 * time.Second
	// sampleEvery is how often the peers' counters are read, at least; with many peers
	// it takes samplePerPeer for each of them.
	sampleEvery   = 250 * time.Millisecond
	samplePerPeer = time.Millisecond
)

// fastPaths are the ways by which the kernel takes packets to peers without us: what
// they need in the kernel, who may be tried, and the guard in front of them. What is
// not marked otherwise is the conductor's.
type fastPaths struct {
	n     *Node
	k     *kernel.Kernel
	fast  *kernel.Fast // nil: why says why
	why   string
	links *probe.Links

	rulings  atomic.Pointer[[2]string]                           // firewall, for the status
	noticed  atomic.Bool                                         // somebody has changed something
	forgotAt time.Time                                           // the prober's
	devices  atomic.Pointer[map[membership.NodeID]kernelDevices] // for the prober
	counts   atomic.Pointer[kernel.GuardCounts]

	kept carriedCounts

	peers     map[membership.NodeID]*fastPeer
	adopted   map[netip.Prefix]kernel.FastKind // what a dead daemon left
	syncedAt  time.Time
	guard     *kernel.Guard          // as it was set last; nil: it does not stand
	guardErr  atomic.Pointer[string] // why the guard does not stand, nil if it does
	keptGuard bool                   // set with keep
	wish      []kernel.FastPeer      // as of the last Apply
	result    kernel.Result          // of the last Apply or Check
	up        bool                   // SetUp was told so
	upErr     error
	firewall  [2]string // why data that comes by VXLAN, or directly, would not get to containers
	rules     uint32    // the firewall generation when that was found out
	ruledAt   time.Time
	readAt    time.Time
	triedAt   time.Time
	hops      map[netip.Addr]hop // of underlay addresses
	hopsOld   bool
	said      map[string]time.Time // repairs, when they were last logged
	left      [3]time.Time         // by path.Kind: when it was allowed no more
}

// hop is what is known of the way to an underlay address on our link.
type hop struct {
	kernel.LinkHop
	why string
}

// kernelDevices are the devices of a peer's kernel paths, by path.Kind, and where
// its VXLAN goes.
type kernelDevices struct {
	vxlan, direct string
	outer         netip.Addr
}

// openFast looks at what the kernel paths need, and at what a dead daemon has left of
// them. Nothing of it keeps the node from running.
func (n *Node) openFast() error {
	if n.parts.kernel == nil || n.cfg.FastPath == "off" {
		return nil
	}
	f := &fastPaths{n: n, k: n.parts.kernel, hops: map[netip.Addr]hop{}, said: map[string]time.Time{}}
	f.links = probe.NewLinks(probe.LinksConfig{
		Port: n.cfg.UDPPort, In: n.parts.kernel.Do,
		Handle: func(b []byte, by encap.Path, from netip.AddrPort) { n.parts.prober.Handle(b, by, from) },
		Echoed: func(peer [16]byte, k path.Kind, round uint64) { n.parts.prober.Echoed(peer, k, round) },
	})
	f.devices.Store(&map[membership.NodeID]kernelDevices{})
	f.counts.Store(&kernel.GuardCounts{})
	f.rulings.Store(&[2]string{})
	fast, err := n.parts.kernel.NewFast(kernel.FastConfig{
		Device: n.cfg.Device, VNI: n.cfg.VNI, Port: n.cfg.KernelVXLANPort, MAC: membership.VTEPMAC(n.parts.member.ID()),
		MTU: int(n.parts.mtu), Locals: n.parts.endpoints, Networks: n.cfg.Networks, IPv6: n.cfg.Networks[len(n.cfg.Networks)-1].Addr().Is6(),
	})
	if err != nil {
		f.why = strings.TrimPrefix(err.Error(), "kernel paths: ")
	} else {
		f.fast, f.adopted = fast, fast.Adopted()
	}
	n.parts.fast = f
	return nil
}

// allows tells whether a kind may be tried at all, as of now.
func (f *fastPaths) allows(k path.Kind) bool {
	return f.n.live().allows(k.String())
}

// run follows what changes in the kernel, and the counters, until ctx ends.
func (f *fastPaths) run(ctx context.Context) {
	if f == nil || f.fast == nil {
		return
	}
	f.n.parts.carrying.Go(func() {
		if err := f.fast.Watch(ctx, func() { f.noticed.Store(true) }); err != nil && ctx.Err() == nil {
			f.n.log.Warn("changes of the kernel paths are noticed late", "error", err)
		}
	})
	f.n.parts.carrying.Go(func() { f.sample(ctx) })
}

// send and echo are the prober's.
func (f *fastPaths) send(b []byte, peer [16]byte, k path.Kind, to netip.AddrPort, fresh bool) error {
	d := (*f.devices.Load())[peer]
	device := d.direct
	if k == path.KernelVXLAN {
		device = d.vxlan
	}
	// For IPv4 it is forgotten of all destinations, which is no cheap thing to do.
	if now := time.Now(); fresh && d.outer.IsValid() && now.Sub(f.forgotAt) >= forgetEvery {
		f.forgotAt = now
		if err := f.fast.Forget(d.outer); err != nil {
			f.n.log.Debug("learned path MTUs are not forgotten", "error", err)
		}
	}
	return f.links.Send(device, b, to)
}

func (f *fastPaths) echo(peer [16]byte, k path.Kind, to netip.Addr, round uint64) error {
	d := (*f.devices.Load())[peer]
	if k == path.KernelVXLAN {
		return f.links.Echo(d.vxlan, peer, to, round)
	}
	return f.links.Echo(d.direct, peer, to, round)
}

// apply brings the kernel to what was decided: the guard first, then the rest. It
// reports whether what this node is ready to take has changed.
func (f *fastPaths) apply(held []netip.Prefix, view *membership.View) (changed bool) {
	if f == nil || f.fast == nil {
		return false
	}
	if len(held) == 0 && f.wish == nil {
		return false // what a dead daemon left stays as it is until our subnets are known
	}
	now := time.Now()
	if view.Synced && f.syncedAt.IsZero() {
		f.syncedAt = now
	}
	keep := f.keeping(now)
	if !keep {
		f.adopted = nil
	}
	f.setGuard(held, keep)
	var peers []kernel.FastPeer
	devices := make(map[membership.NodeID]kernelDevices, len(f.peers))
	for _, p := range f.peers {
		q := p.kernelPeer(f)
		peers = append(peers, q)
		devices[p.ID] = p.devices(f)
	}
	slices.SortFunc(peers, func(a, b kernel.FastPeer) int { return slices.Compare(a.ID[:], b.ID[:]) })
	f.devices.Store(&devices)
	f.wish = peers
	f.settle(f.fast.Apply(nodeAddrs(held), peers, keep))
	if g := f.guard; g != nil && !maps.Equal(g.Indexes, f.indexes(g)) { // the devices have one now
		f.setGuard(held, keep)
	}
	if f.guard != nil && len(held) > 0 {
		f.setUp(true)
	}
	f.setLinks(held)
	if f.ruledAt.IsZero() && len(held) > 0 {
		f.rule(held, now)
	}
	changed = f.judgeReady()
	if f.guard == nil || !f.up || f.result.Err != nil {
		return changed
	}
	for id, p := range f.peers {
		if f.result.Peers[id] == nil && p.stands() {
			changed = true
		}
	}
	return changed
}

// moveTo gives the kernel paths this node's new addresses, before the old ones go.
func (f *fastPaths) moveTo(held []netip.Prefix) {
	if f == nil || f.fast == nil || f.wish == nil {
		return
	}
	f.settle(f.fast.Apply(nodeAddrs(held), f.wish, f.keeping(time.Now())))
}

// keeping tells whether what a dead daemon left for others is to stay.
func (f *fastPaths) keeping(now time.Time) bool {
	return f.syncedAt.IsZero() || now.Sub(f.syncedAt) < adoptFor
}

// settle takes note of how setting up went, and has what could not be had left.
func (f *fastPaths) settle(res kernel.Result) {
	f.result = res
	for id, err := range res.Peers {
		if p := f.peers[id]; p != nil && p.applied != path.Userspace {
			p.applied = path.Userspace
			f.n.parts.prober.PathRefused(id, p.wanted, err.Error())
		}
	}
	if res.Err != nil {
		f.n.log.Warn("kernel paths", "error", res.Err)
	}
}

// setUp sets the VXLAN devices up or down. One of them may fail: the result says which.
func (f *fastPaths) setUp(up bool) {
	f.up = up
	if f.upErr = f.fast.SetUp(up); f.upErr != nil {
		_, res := f.fast.Check()
		f.settle(res)
	}
}

// setLinks has a socket on each device.
func (f *fastPaths) setLinks(held []netip.Prefix) {
	var links []probe.Link
	now := time.Now()
	v4, v6 := kernel.VXLANNames(f.n.cfg.Device)
	if f.takes(path.KernelVXLAN, now) {
		for _, name := range []string{v4, v6} {
			links = append(links, probe.Link{Device: name, Kind: path.KernelVXLAN, Addrs: nodeAddrs(held)})
		}
	}
	if f.takes(path.Direct, now) {
		for _, name := range f.underlays() {
			links = append(links, probe.Link{Device: name, Kind: path.Direct, Addrs: nodeAddrs(held)})
		}
	}
	if err := f.links.Set(links); err != nil && !errors.Is(err, probe.ErrClosed) {
		f.n.log.Debug("probes by kernel paths", "error", err)
	}
}

// remove takes all of it out of the kernel.
func (f *fastPaths) remove() error {
	if f == nil || f.fast == nil {
		return nil
	}
	_, err := f.fast.Remove()
	_, gerr := f.k.RemoveGuard(f.n.cfg.Device)
	return errors.Join(err, gerr)
}

// close ends the probes.
func (f *fastPaths) close() {
	if f != nil {
		f.links.Close()
	}
}
