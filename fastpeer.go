package overlayd

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/path"
	"github.com/overlayd/overlayd/internal/probe"
	"github.com/overlayd/overlayd/membership"
)

// fastPeer is a peer as kernel paths see it.
type fastPeer struct {
	*membership.Peer
	prefixes []netip.Prefix // its subnets, less what is not sent to it
	outer    netip.Addr     // where its VXLAN goes
	hops     []kernel.DirectHop
	senders  []kernel.DirectSender
	vxlan    path.Chance
	direct   path.Chance
	mtu      int
	ready    encap.Flags
	// What stands in the kernel for its paths, as of path.Chance.Way: nothing is sent by
	// a path before.
	stood [2]string

	wanted  path.Kind // what was decided
	applied path.Kind // what the kernel does
	route   int       // the routes' MTU, 0: the device's
}

// consider finds out who may be tried by which kernel path, and tells the prober's
// peers. It reports whether there are some of whom only apply finds out what is taken
// from them, after which they are to be considered again.
func (f *fastPaths) consider(c *conductor, view *membership.View, peers []probe.Peer) (undecided bool) {
	if f == nil {
		return false
	}
	if f.hopsOld {
		clear(f.hops)
		f.hopsOld = false
	}
	known := make(map[membership.NodeID]*membership.Peer, len(view.Peers))
	for _, p := range view.Peers {
		known[p.ID] = p
	}
	// A peer may go on sending by what a daemon before this one had set up.
	keeping := f.keeping(time.Now())
	old := f.peers
	f.peers = make(map[membership.NodeID]*fastPeer, len(peers))
	for i := range peers {
		q := &peers[i]
		p := &fastPeer{Peer: known[q.ID], mtu: q.FullSize}
		p.prefixes = c.foreign(p.Subnets)
		if len(p.prefixes) == 0 {
			// What stands for it from before this node started is not touched until its
			// subnets are known.
			why := path.Chance{Why: "the peer has no subnet yet"}
			q.Path = path.Peer{Full: p.mtu, Floor: minInner4}
			q.Path.Chances[path.KernelVXLAN], q.Path.Chances[path.Direct] = why, why
			q.Undecided = keeping && len(f.adopted) > 0
			continue
		}
		q.Undecided = keeping && f.fast != nil && old[q.ID] == nil
		undecided = undecided || q.Undecided
		p.vxlan, p.direct = f.chanceVXLAN(c, p), f.chanceDirect(c, p)
		if o := old[q.ID]; o != nil {
			p.ready, p.applied, p.route, p.stood = o.ready, o.applied, o.route, o.stood
		}
		f.peers[q.ID] = p
		p.tell(c, q, f.adopted)
	}
	return undecided
}

// tell fills in what the prober has to know of a peer's kernel paths.
func (p *fastPeer) tell(c *conductor, q *probe.Peer, adopted map[netip.Prefix]kernel.FastKind) {
	q.Ready, q.VTEPs = p.ready, nil
	q.Path = path.Peer{Full: p.mtu, Floor: minInner4}
	for _, s := range p.prefixes {
		if !hasFamily(c.held, s.Addr()) {
			continue
		}
		q.VTEPs = append(q.VTEPs, netip.AddrPortFrom(s.Addr(), p.Ports.UDP))
		if s.Addr().Is6() {
			q.Path.Floor = minInner6
		}
		switch adopted[s] {
		case kernel.FastVXLAN:
			q.Path.Standing = path.KernelVXLAN
		case kernel.FastDirect:
			q.Path.Standing = path.Direct
		}
	}
	for i, kind := range []path.Kind{path.KernelVXLAN, path.Direct} {
		chance := []path.Chance{p.vxlan, p.direct}[i]
		if chance.Way != "" && p.stood[i] != chance.Way && (q.Path.Standing != kind || p.stood[i] != "") {
			chance = path.Chance{Why: "it is being set up"}
		}
		q.Path.Chances[kind] = chance
	}
}

// stands takes note that the kernel has what a peer's paths need.
func (p *fastPeer) stands() (changed bool) {
	now := [2]string{p.vxlan.Way, p.direct.Way}
	changed = now != p.stood
	p.stood = now
	return changed
}

// hasFamily tells whether one of subnets is of the family of a.
func hasFamily(subnets []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Addr().Is4() == a.Is4() })
}

// chance is what all kernel paths need.
func (f *fastPaths) chance(c *conductor, p *fastPeer, k path.Kind, need membership.Capability) error {
	switch {
	case !f.allows(k):
		return errNotAllowed
	case f.fast == nil:
		return errors.New(f.why)
	case p.Caps&need == 0:
		return errors.New("the peer does not take it")
	case len(c.held) < len(c.n.cfg.Networks):
		return errors.New("this node has no subnet yet")
	case !slices.ContainsFunc(p.prefixes, func(s netip.Prefix) bool { return hasFamily(c.held, s.Addr()) }):
		return errors.New("the peer has no subnet yet")
	}
	return nil
}

// errNotAllowed is worth no word: it was asked for.
var errNotAllowed = errors.New("")

// chanceVXLAN tells whether the kernel's VXLAN to a peer may be tried.
func (f *fastPaths) chanceVXLAN(c *conductor, p *fastPeer) path.Chance {
	n := c.n
	if err := f.chance(c, p, path.KernelVXLAN, membership.CapKernelVXLAN); err != nil {
		return path.Chance{Why: err.Error()}
	}
	for _, own := range n.parts.endpoints {
		for _, a := range p.Addrs {
			if a.Is4() == own.Is4() && !p.outer.IsValid() {
				p.outer = a
			}
		}
	}
	// One that lacks nothing but our own device is to be set up all the same.
	if p.outer.IsValid() && f.vxlanErr(p.outer) != nil {
		return path.Chance{Why: f.vxlanErr(p.outer).Error()}
	}
	why := func(format string, args ...any) path.Chance {
		p.outer = netip.Addr{}
		return path.Chance{Why: fmt.Sprintf(format, args...)}
	}
	switch {
	case !p.outer.IsValid():
		return why("no common address family")
	case p.Ports.KernelVXLAN != n.cfg.KernelVXLANPort:
		return why("its port is %d, this node's is %d: give both the same --kernel-vxlan-port", p.Ports.KernelVXLAN, n.cfg.KernelVXLANPort)
	case p.VNI != n.cfg.VNI:
		return why("its VNI is %d, this node's is %d: give both the same --vni", p.VNI, n.cfg.VNI)
	case p.VTEPMAC == [6]byte{}:
		return why("it does not tell its VTEP's MAC")
	}
	return path.Chance{Way: fmt.Sprintf("%v %x %v %v", p.outer, p.VTEPMAC, p.prefixes, c.held)}
}

// vxlanErr is why there is no VXLAN over the family of an address.
func (f *fastPaths) vxlanErr(outer netip.Addr) error {
	if outer.Is4() {
		return f.result.VXLAN4
	}
	return f.result.VXLAN6
}

// chanceDirect tells whether a plain route to a peer may be tried.
func (f *fastPaths) chanceDirect(c *conductor, p *fastPeer) path.Chance {
	if err := f.chance(c, p, path.Direct, membership.CapDirect); err != nil {
		if err == errNotAllowed && f.takes(path.Direct, time.Now()) {
			p.senders = f.onLink(p.Addrs)
		}
		return path.Chance{Why: err.Error()}
	}
	var hops []kernel.DirectHop
	for _, a := range p.Addrs {
		h := f.hop(a)
		if h.MAC != [6]byte{} && h.Link != "" {
			p.senders = append(p.senders, kernel.DirectSender{Link: h.Link, MAC: h.MAC})
		}
		if h.why != "" {
			p.senders = nil
			return path.Chance{Why: h.why}
		}
		hops = append(hops, kernel.DirectHop{Link: h.Link, Addr: a})
	}
	for _, s := range p.prefixes {
		if hasFamily(c.held, s.Addr()) && !slices.ContainsFunc(hops, func(h kernel.DirectHop) bool { return h.Addr.Is4() == s.Addr().Is4() }) {
			family := "IPv4"
			if s.Addr().Is6() {
				family = "IPv6"
			}
			return path.Chance{Why: fmt.Sprintf("it has no %s address on the link, which its subnet %v needs", family, s)}
		}
	}
	p.hops = hops
	var ways []string
	for _, h := range hops {
		ways = append(ways, fmt.Sprintf("%v on %s", h.Addr, h.Link))
	}
	return path.Chance{Way: fmt.Sprintf("%s %v %v", strings.Join(ways, ", "), p.prefixes, c.held)}
}

// hop looks an underlay address up, once for each time that the kernel has changed.
func (f *fastPaths) hop(a netip.Addr) hop {
	h, ok := f.hops[a]
	if !ok {
		h.LinkHop, h.why = f.k.OnLink(a)
		f.hops[a] = h
	}
	return h
}

// kernelPeer is what a peer needs in the kernel, by what was decided.
func (p *fastPeer) kernelPeer(f *fastPaths) kernel.FastPeer {
	q := kernel.FastPeer{ID: p.ID, Name: p.Name, Prefixes: p.prefixes, Outer: p.outer, MAC: p.VTEPMAC, Hops: p.hops}
	st := f.n.parts.prober.PathState(p.ID)
	p.wanted = st.Kind
	switch {
	case f.guard == nil:
	case st.Kind == path.KernelVXLAN:
		q.Route = kernel.FastVXLAN
	case st.Kind == path.Direct:
		q.Route = kernel.FastDirect
	}
	p.applied, p.route = path.Userspace, 0
	if q.Route != kernel.FastNone {
		p.applied = st.Kind
		if st.MTU < int(f.n.parts.mtu) {
			q.MTU = st.MTU
		}
		p.route = st.MTU
	}
	return q
}

// devices are those by which a peer's probes leave.
func (p *fastPeer) devices(f *fastPaths) (d kernelDevices) {
	if d.outer = p.outer; d.outer.IsValid() {
		v4, v6 := kernel.VXLANNames(f.n.cfg.Device)
		if d.vxlan = v6; d.outer.Is4() {
			d.vxlan = v4
		}
	}
	if len(p.hops) > 0 {
		d.direct = p.hops[0].Link
	}
	return d
}

// judgeReady decides from whom which kernel path would be taken now, and reports
// whether that has changed.
func (f *fastPaths) judgeReady() (changed bool) {
	for _, p := range f.peers {
		var ready encap.Flags
		if f.guard != nil && f.up && p.vxlan.Way != "" && f.vxlanErr(p.outer) == nil && f.firewall[0] == "" {
			ready |= encap.ReadyKernelVXLAN
		}
		if f.guard != nil && p.direct.Way != "" && len(p.senders) > 0 && f.firewall[1] == "" {
			ready |= encap.ReadyDirect
		}
		if ready != p.ready {
			p.ready, changed = ready, true
		}
	}
	return changed
}

// path is the kernel path that a peer's packets take, with the size that it carries;
// empty if they come to us.
func (f *fastPaths) path(id membership.NodeID) (kind string, mtu int) {
	if f == nil {
		return "", 0
	}
	p := f.peers[id]
	if p == nil || p.applied == path.Userspace {
		return "", 0
	}
	return p.applied.String(), p.route
}
