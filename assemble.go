package overlayd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/internal/control"
	"github.com/overlayd/overlayd/internal/forward"
	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/neighbor"
	"github.com/overlayd/overlayd/internal/probe"
	"github.com/overlayd/overlayd/membership"
	"github.com/overlayd/overlayd/tunnel"
)

// assemble puts the node together, from the outside in: first what can be
// refused without a trace, then what must be taken down again.
func (n *Node) assemble(ctx context.Context) error {
	steps := []func() error{
		n.lockRunDir, n.openKernel, n.findUnderlay, n.openMember, n.checkConflicts,
		n.bindSockets, n.openDoor, n.openDevice, n.bindMore, n.configureDevice, n.openFast, n.openMasquerade, n.openForwardRules, n.startGossip, n.startForwarding, n.serve, n.serveHTTP,
	}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("start: %w", err)
		}
		if err := n.over(); err != nil {
			return err
		}
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) lockRunDir() (err error) {
	if fi, err := os.Stat(n.cfg.subnetFile); err == nil && fi.IsDir() {
		return fmt.Errorf("subnet file %s is a directory: give the name of a file in it", n.cfg.subnetFile)
	}
	if n.cfg.RunDir != "" {
		n.parts.lock, err = control.Acquire(n.cfg.RunDir)
		// A file that a killed node left in a run directory that is ours now is
		// ours, too; any other becomes ours when it is written.
		n.parts.envWritten = err == nil && filepath.Dir(n.cfg.subnetFile) == filepath.Clean(n.cfg.RunDir)
	}
	return err
}

func (n *Node) openKernel() (err error) {
	if n.cfg.Tunnel == nil {
		n.parts.kernel, err = kernel.Open(kernel.Config{Logger: n.log})
	}
	return err
}

// findUnderlay finds this node's endpoints and the inner MTU that they allow.
func (n *Node) findUnderlay() error {
	outer := underlayMTU(0)
	look := func(l kernel.Link, err error) error {
		if err != nil {
			return err
		}
		for _, p := range l.Addrs {
			if a := p.Addr(); len(n.parts.endpoints) == 0 || len(n.parts.endpoints) == 1 && n.parts.endpoints[0].Is4() && a.Is6() {
				n.parts.endpoints = append(n.parts.endpoints, a)
			}
		}
		if outer == 0 || underlayMTU(l.MTU) < outer {
			outer, n.parts.underlay = underlayMTU(l.MTU), l.Name
		}
		return nil
	}
	byName, byAddr := linkByName, linkByAddr
	if k := n.parts.kernel; k != nil {
		byName, byAddr = k.Underlay, k.UnderlayByAddr
	}
	if n.cfg.Interface != "" {
		if err := look(byName(n.cfg.Interface)); err != nil {
			return err
		}
	}
	for _, a := range n.cfg.Advertise {
		if err := look(byAddr(a)); err != nil {
			return err
		}
	}
	for _, a := range n.parts.endpoints {
		for _, net := range n.cfg.Networks {
			if net.Contains(a) {
				return fmt.Errorf("the underlay address %v lies inside the overlay network %v: choose another --network", a, net)
			}
		}
	}
	n.parts.outer = outer
	mtu, err := innerFor(n.cfg, outer, n.parts.underlay, n.parts.endpoints)
	n.parts.mtu = mtu
	return err
}

// linkByName and linkByAddr describe an interface for a node without a TUN,
// which needs no privilege and no netlink.
func linkByName(name string) (kernel.Link, error) {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		var names []string
		if all, err := net.Interfaces(); err == nil {
			for _, i := range all {
				names = append(names, i.Name)
			}
		}
		return kernel.Link{}, fmt.Errorf("interface %q: %w; there are: %s", name, kernel.ErrNoInterface, strings.Join(names, ", "))
	}
	l := kernel.Link{Name: iface.Name, Index: iface.Index, MTU: iface.MTU}
	for _, p := range interfaceAddrs(iface) {
		if a := p.Addr(); !a.IsLinkLocalUnicast() && !a.IsMulticast() {
			l.Addrs = append(l.Addrs, p)
		}
	}
	if len(l.Addrs) == 0 {
		return l, fmt.Errorf("interface %s has no usable address: choose another, or use --advertise", name)
	}
	return l, nil
}

func linkByAddr(a netip.Addr) (kernel.Link, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return kernel.Link{}, fmt.Errorf("interfaces: %w", err)
	}
	for _, iface := range ifaces {
		for _, p := range interfaceAddrs(&iface) {
			// All of 127.0.0.0/8 is this host's, not just the address on lo.
			if p.Addr() == a || p.Addr().IsLoopback() && a.Is4() && p.Contains(a) {
				return kernel.Link{Name: iface.Name, Index: iface.Index, MTU: iface.MTU, Addrs: []netip.Prefix{netip.PrefixFrom(a, p.Bits())}}, nil
			}
		}
	}
	return kernel.Link{}, fmt.Errorf("no interface has the address %v: advertise one of this host's", a)
}

// interfaceAddrs returns an interface's addresses, IPv4 first.
func interfaceAddrs(iface *net.Interface) (out []netip.Prefix) {
	addrs, err := iface.Addrs()
	if err != nil {
		return nil // it has gone
	}
	for _, is4 := range []bool{true, false} {
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() == is4 {
				out = append(out, p)
			}
		}
	}
	return out
}

func (n *Node) openMember() (err error) {
	n.parts.member, err = membership.New(membership.Config{
		StateDir: n.cfg.StateDir, Name: n.cfg.Name, Settings: n.cfg.settings, Static: n.cfg.Subnets,
		Gossip:   netip.AddrPortFrom(n.parts.endpoints[0], n.cfg.GossipPort),
		Reserved: n.cfg.unclaimed(),
		Seeds:    n.cfg.seeds, Cluster: n.cfg.Cluster, Keys: n.cfg.Keys,
		Addrs: n.parts.endpoints,
		Ports: membership.Ports{UDP: n.cfg.UDPPort, VXLAN: n.cfg.VXLANPort, KernelVXLAN: n.cfg.KernelVXLANPort},
		Caps:  n.cfg.caps(), VNI: n.cfg.VNI, MTU: int(n.parts.mtu),
		OnEvent: n.memberEvent, Logger: n.log,
	})
	if err != nil {
		return err
	}
	for _, own := range n.parts.member.Resumed() {
		if slices.ContainsFunc(n.cfg.Subnets, func(s netip.Prefix) bool { return s.Addr().Is4() == own.Addr().Is4() && s != own }) {
			continue // it is given up for a static one
		}
		if err := n.cfg.sparesLease(own); err != nil {
			return err
		}
	}
	return nil
}

// caps are the capabilities that this node tells of.
func (r *resolved) caps() membership.Capability {
	caps := membership.CapUDP
	if r.Encap == "vxlan" {
		caps = membership.CapVXLAN
	}
	if r.allows(PathKernelVXLAN) {
		caps |= membership.CapKernelVXLAN
	}
	if r.allows(PathDirect) {
		caps |= membership.CapDirect
	}
	return caps
}

// memberEvent passes on what gossip says of our leases.
func (n *Node) memberEvent(e membership.Event) {
	switch e.Kind {
	case membership.LeaseHeld:
		// Told by the conductor, once the kernel knows it too.
	case membership.LeaseLost:
		n.events.publish(Event{Kind: EventLeaseLost, Prefix: e.Prefix, Reason: e.Reason})
	case membership.Warning:
		n.notes.setGossip(e.About, e.Reason)
		if e.Reason != "" {
			n.events.publish(Event{Kind: EventWarning, Reason: e.Reason})
		}
	}
}

// checkConflicts refuses an overlay network that this host uses already.
func (n *Node) checkConflicts() error {
	if n.parts.kernel == nil {
		return nil
	}
	conflicts, err := n.parts.kernel.Conflicts(n.cfg.Networks, n.cfg.Device, append(n.parts.member.Resumed(), n.cfg.Subnets...))
	if err != nil {
		return err
	}
	for _, c := range conflicts {
		if c.Fatal {
			return errors.New(c.Text)
		}
		n.notes.conflicts = append(n.notes.conflicts, c.Text)
	}
	return nil
}

func (n *Node) openDevice() (err error) {
	if t := n.cfg.Tunnel; t != nil {
		if most := t.Features().MaxPacket; most < int(n.parts.mtu) {
			return fmt.Errorf("device %s takes packets of at most %d bytes, and the MTU is %d: make it larger, or set the MTU to %d", t.Name(), most, n.parts.mtu, most)
		}
		n.parts.device = t
		return nil
	}
	n.parts.device, err = n.openTUN()
	if errors.Is(err, tunnel.ErrNameInUse) {
		return fmt.Errorf("device %s: %w: choose another --device, or remove that interface", n.cfg.Device, tunnel.ErrNameInUse)
	}
	return err
}

// openTUN opens the device that hands over and takes superpackets, or, where the
// kernel cannot do that or nobody wants it, the portable one.
func (n *Node) openTUN() (tunnel.Device, error) {
	if n.cfg.Offload != "off" {
		d, err := tunnel.OpenVNetQueues(n.cfg.Device, n.cfg.Queues)
		if !errors.Is(err, errors.ErrUnsupported) {
			return d, err
		}
		n.log.Info("no offloads on the TUN: one packet at a time", "reason", err.Error())
	}
	return tunnel.OpenWater(n.cfg.Device, int(n.parts.mtu))
}

// configureDevice brings the device up and points the overlay at it, before
// there is a lease: until then overlay packets are dropped here instead of
// leaving by the default route.
func (n *Node) configureDevice() error {
	if n.parts.kernel == nil {
		return nil
	}
	ipv6 := n.cfg.Networks[len(n.cfg.Networks)-1].Addr().Is6()
	if err := n.parts.kernel.ConfigureDevice(n.cfg.Device, int(n.parts.mtu), ipv6, nil); err != nil {
		return err
	}
	return n.parts.kernel.SetRoutes(n.cfg.Device, n.cfg.Networks, nil)
}

func (n *Node) startGossip() error {
	if err := n.parts.member.Start(); err != nil {
		return err
	}
	if len(n.cfg.Keys) == 0 {
		n.log.Warn("no key is given: gossip is neither encrypted nor authenticated, so whoever reaches its port can join this cluster, claim subnets and redirect traffic; give all nodes one key (--key-file, \"overlayd key generate\"), or keep strangers from the port",
			"port", n.cfg.GossipPort)
	}
	return nil
}

// startForwarding starts everything that runs: the loops, the prober, and the
// conductor that keeps them in step with the cluster.
func (n *Node) startForwarding() error {
	auth, err := encap.NewAuth(n.cfg.Keys)
	if err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	n.parts.framings.Store(new(framings))
	probing := probe.Config{Self: n.parts.member.ID(), Boot: n.parts.member.Boot(), Auth: auth, Send: n.sendControl}
	if f := n.parts.fast; f != nil {
		probing.SendKernel, probing.Echo = f.send, f.echo
	}
	n.parts.prober = probe.New(probing)
	codec := n.codec()
	n.parts.statics.changed = make(chan struct{}, 1)
	n.parts.neighbors = neighbor.New(neighbor.Config{
		MAC: membership.VTEPMAC(n.parts.member.ID()),
		Send: func(k encap.Kind, to [6]byte, b []byte, at netip.AddrPort) error {
			return n.parts.engine.SendFrame(codec, k, encap.Dest{MAC: to}, b, at)
		},
	})
	sizes := newSizeHints(n.headerLen, n.linkMTU, n.sizeHint)
	engine, err := forward.New(forward.Config{
		Device: n.parts.device, Codec: codec, Conns: n.parts.conns, Tx: n.parts.sending, More: n.parts.more,
		Control: func(frame []byte, from netip.AddrPort) { n.parts.prober.Handle(frame, encap.Userspace, from) }, Neighbor: n.parts.neighbors.Handle, TooBig: sizes.heard,
		MTU: int(n.parts.mtu), NoOffload: n.cfg.Offload == "off", Logger: n.log,
	})
	if err != nil {
		return err
	}
	n.parts.engine = engine
	var running context.Context
	running, n.parts.halt = context.WithCancel(context.Background())
	n.parts.carrying.Go(func() {
		if err := engine.Run(running); err != nil {
			n.finish(fmt.Errorf("forwarding ended: %w", err))
		}
	})
	n.parts.carrying.Go(func() { n.parts.prober.Run(running) })
	n.parts.carrying.Go(func() { n.parts.neighbors.Run(running) })
	n.parts.carrying.Go(func() { sizes.run(running) })
	n.parts.fast.run(running)
	n.beat.Store(time.Now().UnixNano())
	n.parts.conducting.Go(n.conduct)
	return nil
}

func (n *Node) serve() (err error) {
	if n.parts.lock != nil {
		n.parts.server, err = control.Serve(n.parts.lock, controlHandlers(n), n.log)
	}
	return err
}

// goodbyeTime bounds the good-bye in gossip, within the 2 s that a stop may take.
const goodbyeTime = 1500 * time.Millisecond

// keeps tells whether kernel paths and subnet.env are left for the next start. A
// node that leaves, or has never had a subnet, has nothing to leave there.
func (n *Node) keeps() bool {
	if n.release.Load() || len(n.mesh.Load().held) == 0 {
		return false
	}
	return n.cfg.KeepPaths && n.parts.fast != nil || errors.Is(context.Cause(n.quit), ErrUnderlayChanged)
}

// dismantle takes down what assemble has put up, in reverse, and then lets Wait
// return. The order matters: first nobody changes anything any more; gossip
// says good-bye while packets still flow, so that the peers stop sending before
// this node stops taking; our routes go before the device, the unreachable ones
// last, so that no packet leaks in between.
func (n *Node) dismantle() {
	n.tearDown.Do(func() {
		p := &n.parts
		var errs []error
		fail := func(what string, err error) {
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", what, err))
			}
		}
		if p.server != nil {
			fail("control socket", p.server.Close())
		}
		if p.web != nil {
			fail("HTTP", p.web.Close())
		} else if p.door != nil {
			fail("HTTP", p.door.Close())
		}
		p.conducting.Wait()
		if p.member != nil {
			ctx, cancel := context.WithTimeout(context.Background(), goodbyeTime)
			switch {
			case n.release.Load():
				fail("gossip", p.member.Leave(ctx))
				// One that had ended by itself has released nothing.
				n.released = p.member.Err() == nil
			case n.keeps():
				fail("gossip", p.member.Vanish(ctx))
			default:
				fail("gossip", p.member.Stop(ctx))
			}
			cancel()
		}
		if p.kernel != nil && !n.keeps() {
			fail("kernel paths", p.fast.remove())
			if p.device != nil {
				fail("masquerading", n.removeMasquerade())
				fail("firewall", n.removeForwardRules())
				_, err := p.kernel.Release(n.cfg.Device, n.cfg.Networks)
				fail("routes", err)
			}
		}
		if p.halt != nil {
			p.halt()
		}
		p.fast.close()
		if p.prober != nil {
			p.prober.Close()
		}
		p.carrying.Wait()
		// The engine has closed these if it ran; closing them again is harmless.
		device := p.device
		if device == nil {
			device = n.cfg.Tunnel // not reached, but promised to be closed
		}
		if device != nil {
			if err := device.Close(); !errors.Is(err, os.ErrClosed) {
				fail("device", err)
			}
		}
		for _, c := range slices.Concat(p.conns, p.sending) {
			c.Close()
		}
		for _, q := range p.more {
			for _, c := range slices.Concat(q.Rx, q.Tx) {
				c.Close()
			}
		}
		if p.kernel != nil {
			fail("kernel", p.kernel.Close())
		}
		if p.envWritten && !n.keeps() {
			if err := RemoveSubnetEnv(n.cfg.subnetFile); err != nil {
				errs = append(errs, err) // says what it is about
			}
		}
		if p.lock != nil {
			fail("run directory", p.lock.Release())
		}
		n.events.close()
		n.enter(phaseStopped)
		n.stopErr = errors.Join(errs...)
		close(n.ended)
	})
}
