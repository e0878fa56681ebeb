package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
)

// switchBridge is the bridge inside a switch's namespace.
const switchBridge = "br0"

// autoNets are given to switches that name no networks, in turn: the three
// documentation networks of RFC 5737, then slices of the benchmarking network
// of RFC 2544. The IPv6 ones are slices of 2001:db8::/32 (RFC 3849).
func autoNets(i int) (v4, v6 netip.Prefix) {
	doc := [...][3]byte{{192, 0, 2}, {198, 51, 100}, {203, 0, 113}}
	b := [3]byte{198, 18, byte(i)}
	if i < len(doc) {
		b = doc[i]
	}
	a6 := [16]byte{0x20, 0x01, 0x0d, 0xb8, 6: byte(i >> 8), 7: byte(i)}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{b[0], b[1], b[2], 0}), 24),
		netip.PrefixFrom(netip.AddrFrom16(a6), 64)
}

// SwitchConfig describes a switch.
type SwitchConfig struct {
	// Net4 and Net6 are the networks from which ports get their addresses when
	// they name none. Zero: 192.0.2.0/24 and 2001:db8::/64 for the first switch,
	// other documentation networks for further ones.
	Net4, Net6 netip.Prefix
}

// Switch is an Ethernet switch: a bridge in a namespace of its own, with no
// address and no spanning tree, on which every port forwards at once.
type Switch struct {
	*Namespace
	cfg SwitchConfig

	mu    sync.Mutex
	ports []*Port
	next  int // host number that the next port gets
}

// Switch adds a switch.
func (l *Lab) Switch(name string, cfg SwitchConfig) (*Switch, error) {
	l.mu.Lock()
	v4, v6 := autoNets(len(l.switches))
	l.mu.Unlock()
	if !cfg.Net4.IsValid() {
		cfg.Net4 = v4
	}
	if !cfg.Net6.IsValid() {
		cfg.Net6 = v6
	}
	ns, err := l.add(name, map[string]string{
		// A switch has no addresses, not even link-local ones.
		"net/ipv6/conf/all/disable_ipv6":     "1",
		"net/ipv6/conf/default/disable_ipv6": "1",
	})
	if err != nil {
		return nil, err
	}
	off := false
	br := &netlink.Bridge{LinkAttrs: linkAttrs(switchBridge), MulticastSnooping: &off}
	if err := ns.nl.LinkAdd(br); err != nil {
		return nil, fmt.Errorf("lab: switch %s: %w", name, err)
	}
	if err := ns.setUp(switchBridge); err != nil {
		return nil, err
	}
	s := &Switch{Namespace: ns, cfg: cfg, next: 1}
	l.mu.Lock()
	l.switches = append(l.switches, s)
	l.mu.Unlock()
	return s, nil
}

// Net4 and Net6 are the networks of the switch.
func (s *Switch) Net4() netip.Prefix { return s.cfg.Net4 }

// Net6 is the IPv6 network of the switch.
func (s *Switch) Net6() netip.Prefix { return s.cfg.Net6 }

// PortConfig describes the link between a host and a switch.
type PortConfig struct {
	// Addrs are the host's addresses on the link. Nil: the next free address of
	// each of the switch's networks; empty but not nil: none.
	Addrs []netip.Prefix
	// MTU of both ends. Zero: 1500. A switch drops a larger frame in silence.
	MTU int
}

// Port is one end of a link at a switch and the other at a host.
type Port struct {
	sw    *Switch
	host  *Host
	name  string // the interface in the switch's namespace
	iface string // the interface in the host's namespace
	addrs []netip.Prefix
}

// Iface is the name of the host's interface: eth0 for its first port.
func (p *Port) Iface() string { return p.iface }

// Addrs are the host's addresses on the link.
func (p *Port) Addrs() []netip.Prefix { return slices.Clone(p.addrs) }

// SetUp sets the switch's end of the link up, or down, which takes the carrier
// from the host's end like a pulled cable.
func (p *Port) SetUp(up bool) error { return p.sw.SetUp(p.name, up) }

// SetMTU sets the MTU of the switch's end of the link: longer frames for the host are
// dropped in silence. Superpackets count as what they will be cut into.
func (p *Port) SetMTU(mtu int) error { return p.sw.SetMTU(p.name, mtu) }

// connect makes the veth pair between a host and the switch, both ends where
// they belong, and gives the host's end its addresses.
func (s *Switch) connect(h *Host, iface string, cfg PortConfig) (*Port, error) {
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &Port{sw: s, host: h, iface: iface, addrs: slices.Clone(cfg.Addrs), name: s.portName(h.short)}
	if cfg.Addrs == nil {
		for _, net := range []netip.Prefix{s.cfg.Net4, s.cfg.Net6} {
			addr, err := nthAddr(net, s.next)
			if err != nil {
				return nil, fmt.Errorf("lab: switch %s: %w", s.short, err)
			}
			p.addrs = append(p.addrs, netip.PrefixFrom(addr, net.Bits()))
		}
		s.next++
	}
	err := addVeth(s.Namespace, p.name, h.Namespace, iface, cfg.MTU)
	if err != nil {
		return nil, err
	}
	br, err := s.nl.LinkByName(switchBridge)
	if err != nil {
		return nil, fmt.Errorf("lab: switch %s: %w", s.short, err)
	}
	if err := s.enslave(p.name, br); err != nil {
		return nil, err
	}
	if err := h.addAddrs(iface, p.addrs); err != nil {
		return nil, err
	}
	s.ports = append(s.ports, p)
	s.lab.log.Debug("link made", "switch", s.short, "port", p.name, "host", h.short, "iface", iface, "addrs", p.addrs)
	return p, nil
}

// portName is the host's name where that is a good and free interface name.
func (s *Switch) portName(host string) string {
	taken := func(n string) bool {
		return n == switchBridge || n == "lo" || slices.ContainsFunc(s.ports, func(p *Port) bool { return p.name == n })
	}
	// 15 characters fit in IFNAMSIZ (linux/include/uapi/linux/if.h).
	if len(host) <= 15 && !taken(host) {
		return host
	}
	for i := len(s.ports); ; i++ {
		if n := fmt.Sprintf("port%d", i); !taken(n) {
			return n
		}
	}
}

// nthAddr returns the n-th address of a network, 1 being the first usable one.
func nthAddr(net netip.Prefix, n int) (netip.Addr, error) {
	a := net.Masked().Addr()
	for range n {
		a = a.Next()
	}
	if !a.IsValid() || !net.Contains(a) || a.Is4() && !net.Contains(a.Next()) {
		return netip.Addr{}, fmt.Errorf("no address left in %v", net)
	}
	return a, nil
}

// linkAttrs are the attributes of a link with the kernel's defaults but for
// its name.
func linkAttrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

// addVeth makes a pair of virtual Ethernet links, each end in its namespace
// from the first moment on, and sets both up.
func addVeth(a *Namespace, aName string, b *Namespace, bName string, mtu int) error {
	attrs := linkAttrs(aName)
	attrs.MTU = mtu
	veth := &netlink.Veth{
		LinkAttrs:     attrs,
		PeerName:      bName,
		PeerMTU:       uint32(mtu),
		PeerNamespace: netlink.NsFd(b.file.Fd()),
	}
	if err := a.nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("lab: link %s %s to %s %s: %w", a.short, aName, b.short, bName, err)
	}
	if err := errors.Join(a.setUp(aName), b.setUp(bName)); err != nil {
		return err
	}
	return errors.Join(a.awaitUp(aName), b.awaitUp(bName))
}

// upLimit is how long awaitUp waits.
const upLimit = 5 * time.Second

// awaitUp waits until a link that was set up is usable. The kernel tells the
// carrier to the rest of itself by a work queue (linux/net/core/link_watch.c),
// which may take a while; until then a bridge does not forward to it, and what
// it sends is dropped.
func (n *Namespace) awaitUp(link string) error {
	limit := time.Now().Add(upLimit)
	for {
		l, err := n.nl.LinkByName(link)
		if err != nil {
			return fmt.Errorf("lab: %s: link %s: %w", n.short, link, err)
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("lab: %s: link %s does not come up", n.short, link)
		}
		time.Sleep(time.Millisecond)
	}
}

// enslave makes a link a port of a bridge.
func (n *Namespace) enslave(port string, bridge netlink.Link) error {
	l, err := n.nl.LinkByName(port)
	if err == nil {
		err = n.nl.LinkSetMaster(l, bridge)
	}
	if err != nil {
		return fmt.Errorf("lab: %s: make %s a port: %w", n.short, port, err)
	}
	return nil
}

// LAN adds a switch and n hosts on it, called host1, host2 and so on.
func (l *Lab) LAN(name string, n int) (*Switch, []*Host, error) {
	sw, err := l.Switch(name, SwitchConfig{})
	if err != nil {
		return nil, nil, err
	}
	hosts := make([]*Host, n)
	for i := range hosts {
		if hosts[i], err = sw.Host(fmt.Sprintf("host%d", i+1), PortConfig{}); err != nil {
			return nil, nil, err
		}
	}
	return sw, hosts, nil
}
