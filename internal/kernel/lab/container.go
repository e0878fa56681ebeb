package lab

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
)

// hostBridge is the bridge that a host's containers share.
const hostBridge = "br0"

// BridgeConfig describes the network of a host's containers.
type BridgeConfig struct {
	// Addrs are the bridge's addresses with the length of the subnet, at most
	// one per family, as FLANNEL_SUBNET and FLANNEL_IPV6_SUBNET give them:
	// 100.96.1.1/24, fd96:0:0:1::1/64.
	Addrs []netip.Prefix
	// MTU of the bridge and of the containers. Zero: 1500.
	MTU int
}

// Bridge connects the containers of a host with each other and with the host.
type Bridge struct {
	host *Host
	cfg  BridgeConfig

	mu    sync.Mutex
	count int // containers made so far
}

// Container is a namespace behind the bridge of a host, with one interface,
// eth0, and default routes by way of the bridge.
type Container struct {
	*Namespace
	host  *Host
	addrs []netip.Prefix
}

// Bridge gives the host the bridge br0 for its containers. A host has one.
func (h *Host) Bridge(cfg BridgeConfig) (*Bridge, error) {
	if len(cfg.Addrs) == 0 {
		return nil, fmt.Errorf("lab: %s: a bridge needs an address", h.short)
	}
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	cfg.Addrs = slices.Clone(cfg.Addrs)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.bridge != nil {
		return nil, fmt.Errorf("lab: %s has a bridge already", h.short)
	}
	attrs := linkAttrs(hostBridge)
	attrs.MTU = cfg.MTU
	// Without an address of its own a bridge takes that of one of its ports,
	// and its neighbours would have to learn a new one whenever it changes.
	attrs.HardwareAddr = randomMAC()
	off := false
	if err := h.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}); err != nil {
		return nil, fmt.Errorf("lab: %s: bridge: %w", h.short, err)
	}
	if err := errors.Join(h.setUp(hostBridge), h.addAddrs(hostBridge, cfg.Addrs)); err != nil {
		return nil, err
	}
	h.bridge = &Bridge{host: h, cfg: cfg}
	return h.bridge, nil
}

// Container adds a container with the next free address of each of the
// bridge's subnets.
func (b *Bridge) Container(name string) (*Container, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := &Container{host: b.host}
	for _, br := range b.cfg.Addrs {
		a := br.Addr()
		for range b.count + 1 {
			a = a.Next()
		}
		if !br.Contains(a) || a.Is4() && !br.Contains(a.Next()) {
			return nil, fmt.Errorf("lab: %s: no address left in %v", b.host.short, br.Masked())
		}
		c.addrs = append(c.addrs, netip.PrefixFrom(a, br.Bits()))
	}
	ns, err := b.host.lab.add(name, nil)
	if err != nil {
		return nil, err
	}
	c.Namespace = ns
	b.count++
	port := fmt.Sprintf("veth%d", b.count)
	if err := addVeth(b.host.Namespace, port, ns, "eth0", b.cfg.MTU); err != nil {
		return nil, err
	}
	br, err := b.host.nl.LinkByName(hostBridge)
	if err != nil {
		return nil, fmt.Errorf("lab: %s: %w", b.host.short, err)
	}
	if err := b.host.enslave(port, br); err != nil {
		return nil, err
	}
	if err := b.host.awaitUp(hostBridge); err != nil { // it has a carrier with its first port
		return nil, err
	}
	if err := c.addAddrs("eth0", c.addrs); err != nil {
		return nil, err
	}
	for _, br := range b.cfg.Addrs {
		any4or6 := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if br.Addr().Is6() {
			any4or6 = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if err := c.AddRoute(any4or6, br.Addr()); err != nil {
			return nil, err
		}
	}
	ns.lab.log.Debug("container made", "name", name, "host", b.host.short, "addrs", c.addrs)
	return c, nil
}

// Host is the host that the container runs on.
func (c *Container) Host() *Host { return c.host }

// Addrs are the container's addresses, IPv4 first if the bridge's are.
func (c *Container) Addrs() []netip.Addr {
	var out []netip.Addr
	for _, a := range c.addrs {
		out = append(out, a.Addr())
	}
	return out
}

// Addr4 and Addr6 are the container's address of the family; the zero Addr if
// its subnet has none.
func (c *Container) Addr4() netip.Addr { return pick(c.addrs, netip.Addr.Is4) }

// Addr6 is the container's IPv6 address.
func (c *Container) Addr6() netip.Addr { return pick(c.addrs, netip.Addr.Is6) }

// pick returns the first address of a family.
func pick(addrs []netip.Prefix, is func(netip.Addr) bool) netip.Addr {
	for _, a := range addrs {
		if is(a.Addr()) {
			return a.Addr()
		}
	}
	return netip.Addr{}
}

// randomMAC makes a locally administered unicast address (IEEE 802, bits 1 and
// 0 of the first byte).
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	rand.Read(mac)
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}

// ipNet turns a prefix into the type that netlink takes, host bits kept.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
