package overlayd

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/overlayd/overlayd/internal/forward"
	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/probe"
	"github.com/overlayd/overlayd/membership"
)

// mesh is the cluster as this node acts on it: one immutable picture that both
// the forwarding table and the status are made of.
type mesh struct {
	view *membership.View
	// held are our subnets that the kernel knows of.
	held  []netip.Prefix
	peers []*meshPeer // sorted by NodeID
}

// meshPeer is one peer: what gossip says of it, how packets reach it, and why.
type meshPeer struct {
	*membership.Peer
	fwd    *forward.Peer
	state  membership.State // gossip's state, corrected by what the data path knows
	kernel bool             // path is one of the kernel's
	mtu    int              // that it carries, 0: as fwd says
	path   string
	reason string
	since  time.Time // since when path is what it is
	up     bool      // was announced as up
	proof  time.Time // of the last answered probe, also after probing has ended
}

// diagnoseEvery is how often this host is looked over for what eats packets.
const diagnoseEvery = 30 * time.Second

// conduct follows the cluster: each change of membership or reachability makes
// a new mesh, a new forwarding table, and what the kernel has to know. It is
// the only goroutine that writes them.
func (n *Node) conduct() {
	c := &conductor{n: n, counters: make(map[membership.NodeID]*forward.PeerCounters)}
	diagnose := time.NewTicker(diagnoseEvery)
	defer diagnose.Stop()
	var reconcile <-chan time.Time
	if n.parts.kernel != nil {
		ticker := time.NewTicker(reconcileEvery)
		defer ticker.Stop()
		reconcile = ticker.C
	}
	if n.parts.envWritten && len(n.parts.member.View().Held) < len(n.cfg.Networks) {
		// A killed node left its file, and its subnet is not ours.
		if err := RemoveSubnetEnv(n.cfg.subnetFile); err != nil {
			n.finish(err)
			return
		}
	}
	if !c.update() {
		return
	}
	if len(c.held) == 0 {
		n.diagnose() // else update has
	}
	for _, text := range n.notes.conflicts {
		n.events.publish(Event{Kind: EventWarning, Reason: text})
	}
	for {
		n.beat.Store(time.Now().UnixNano())
		select {
		case <-n.parts.member.Changed():
			if !c.update() {
				return
			}
		case <-n.parts.prober.Changed():
			if !c.update() {
				return
			}
		case <-n.parts.neighbors.Changed():
			if !c.update() {
				return
			}
		case r := <-n.reloads:
			n.takeUp(r.cfg)
			on := c.update()
			close(r.done)
			if !on {
				return
			}
		case <-n.parts.statics.changed:
			if !c.update() {
				return
			}
		case now := <-reconcile:
			if !c.underlayMoved(now) {
				return
			}
			if !c.keepMasquerade(now) {
				return
			}
			c.keepForwardRules()
			n.readQueue()
			again, changed := n.parts.fast.reconcile(c.held, now)
			if changed {
				c.repair()
			}
			if again && !c.update() {
				return
			}
		case <-diagnose.C:
			c.repair()
			if !c.update() { // reasons change without a change of reach
				return
			}
			n.diagnose()
		case <-n.parts.member.Done():
			// A Done by our own Stop comes after quit.
			if err := n.parts.member.Err(); err != nil {
				n.finish(err)
			}
			return
		case <-n.quit.Done():
			return
		}
	}
}

// repair puts back what somebody else has taken from the kernel: a device that
// was down has lost its routes and its IPv6 addresses, and network managers
// remove routes that they do not know. What stands is left as it is.
func (c *conductor) repair() {
	n := c.n
	if n.parts.kernel == nil {
		return
	}
	// The same addresses stand on the kernel paths' devices.
	err := n.parts.kernel.SetAddrs(n.cfg.Device, nodeAddrs(c.held))
	if err == nil {
		err = n.parts.kernel.SetRoutes(n.cfg.Device, n.cfg.Networks, nodeAddrs(c.held))
	}
	n.notes.setRepair(err)
}

type conductor struct {
	n        *Node
	counters map[membership.NodeID]*forward.PeerCounters
	held     []netip.Prefix // what the kernel was told
	// goneSince is since when the first endpoint is not on its interface.
	goneSince time.Time
	ready     bool
	masq      masquerade
	accepting forwardRules
}

// update reports whether the node goes on.
func (c *conductor) update() bool {
	n := c.n
	view := n.parts.member.View()
	fresh, err := c.setHeld(view)
	if err != nil {
		n.finish(err)
		return false
	}
	c.setFramings(view)
	probed := c.probed(view)
	fast := n.parts.fast
	undecided := fast.consider(c, view, probed)
	n.parts.prober.SetPeers(probed)
	if fast.apply(c.held, view) || undecided {
		fast.consider(c, view, probed)
		n.parts.prober.SetPeers(probed)
	}
	n.parts.neighbors.Set(nodeAddrs(c.held), n.live().neighbors())
	old := n.mesh.Load()
	next := &mesh{view: view, held: c.held}
	now := time.Now()
	for _, p := range view.Peers {
		next.peers = append(next.peers, c.judge(p, old.peer(p.ID), now))
	}
	statics := n.live().StaticPeers
	for i := range statics {
		p := &statics[i]
		next.peers = append(next.peers, c.judgeStatic(p, old.peer(p.id()), now))
	}
	slices.SortFunc(next.peers, func(a, b *meshPeer) int { return slices.Compare(a.ID[:], b.ID[:]) })
	for _, text := range n.notes.setContested(contested(view, statics)) {
		n.events.publish(Event{Kind: EventWarning, Reason: text})
	}
	table := forward.TableConfig{
		Networks: n.cfg.Networks, Own: c.held,
		OwnAddrs:    append(nodeAddrs(c.held), n.parts.endpoints...),
		AllowSource: n.live().AllowSource,
	}
	for _, p := range next.peers {
		table.Peers = append(table.Peers, p.fwd)
	}
	t, err := forward.NewTable(table)
	n.notes.setRefused(err)
	if err != nil {
		// Membership has checked all of this: a table that is refused is a fault
		// of ours, and the old one is the safest thing to keep.
		n.log.Error("forwarding table refused", "error", err)
		return true
	}
	n.parts.engine.SetTable(t)
	n.notes.setJoined(view.Synced && len(c.held) == len(n.cfg.Networks))
	n.mesh.Store(next)
	for _, p := range fresh {
		n.events.publish(Event{Kind: EventLeaseHeld, Prefix: p})
	}
	c.announce(old, next)
	for id := range c.counters {
		if next.peer(id) == nil {
			delete(c.counters, id)
		}
	}
	if !c.ready && len(c.held) == len(n.cfg.Networks) {
		c.ready = true
		close(n.ready)
	}
	if len(fresh) > 0 {
		n.diagnose() // our own routes are part of the picture
	}
	return true
}

// peer finds a peer by id, nil if there is none.
func (m *mesh) peer(id membership.NodeID) *meshPeer {
	i, ok := slices.BinarySearchFunc(m.peers, id, func(p *meshPeer, id membership.NodeID) int {
		return slices.Compare(p.ID[:], id[:])
	})
	if !ok {
		return nil
	}
	return m.peers[i]
}

// announce publishes which peers came and went on the data path.
func (c *conductor) announce(old, next *mesh) {
	tell := func(kind EventKind, p *meshPeer, reason string) {
		c.n.events.publish(Event{Kind: kind, Peer: p.Name, PeerID: p.ID.String(), Path: p.path, Reason: reason})
	}
	for _, p := range next.peers {
		c.n.countChange(old.peer(p.ID), p)
		if was := old.peer(p.ID); was != nil && was.path != p.path && (was.kernel || p.kernel) {
			tell(EventPath, p, c.n.pathReason(p))
		}
		reach, _ := c.n.parts.prober.State(p.ID)
		switch {
		case !p.up && p.path != PathNone && (p.kernel || p.state == membership.StateStatic || reach.Reach == probe.Up):
			p.up = true
			tell(EventPeerUp, p, p.reason)
		case p.up && p.path == PathNone:
			p.up = false
			tell(EventPeerDown, p, p.reason)
		}
	}
	for _, p := range old.peers {
		if p.up && next.peer(p.ID) == nil {
			tell(EventPeerDown, p, "gone")
		}
	}
}

// setHeld tells the kernel, and whoever sources subnet.env, which subnets are
// ours now, and returns those that were not before.
func (c *conductor) setHeld(view *membership.View) (fresh []netip.Prefix, err error) {
	n, held := c.n, view.Held
	before := c.held
	moved := !slices.Equal(held, before)
	if k := n.parts.kernel; k != nil && moved {
		between := func() { n.parts.fast.moveTo(held) }
		if err := setKernelHeld(k, n.cfg.Device, n.cfg.Networks, nodeAddrs(before), nodeAddrs(held), between); err != nil {
			return nil, fmt.Errorf("the kernel does not take our subnets %v: %w", held, err)
		}
	}
	if moved {
		c.held = slices.Clone(held)
	}
	if c.setMasquerade(view) || moved {
		if err := c.writeEnv(); err != nil {
			return nil, err
		}
	}
	c.setForwardRules()
	for _, p := range c.held {
		if !slices.Contains(before, p) {
			fresh = append(fresh, p)
		}
	}
	return fresh, nil
}

// writeEnv tells whoever sources subnet.env of our subnets, once there is one of each
// network.
func (c *conductor) writeEnv() error {
	n := c.n
	if n.cfg.subnetFile == "" {
		return nil
	}
	n.parts.envWritten = true
	if len(c.held) < len(n.cfg.Networks) {
		return RemoveSubnetEnv(n.cfg.subnetFile)
	}
	return WriteSubnetEnv(n.cfg.subnetFile, SubnetEnv{Networks: n.cfg.Networks, Subnets: c.held, MTU: int(n.parts.mtu), IPMasq: c.masq.stands})
}

// setKernelHeld moves the node's addresses. The routes name an address as their
// source, and the kernel removes routes with their source: so the new addresses
// stand before the routes change, those of kernel paths in between, and the old ones go last.
func setKernelHeld(k *kernel.Kernel, device string, networks []netip.Prefix, old, next []netip.Addr, between func()) error {
	if err := k.SetAddrs(device, append(slices.Clone(next), old...)); err != nil {
		return err
	}
	if err := k.SetRoutes(device, networks, next); err != nil {
		return err
	}
	between()
	return k.SetAddrs(device, next)
}

// nodeAddrs are the node's own addresses in its subnets: the first of each.
func nodeAddrs(subnets []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, p := range subnets {
		out = append(out, p.Addr())
	}
	return out
}
