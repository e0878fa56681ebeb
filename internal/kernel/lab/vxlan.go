package lab

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// vxlanDevice is what KernelVXLAN calls its device on each host.
const vxlanDevice = "vxlan1"

// VXLANConfig describes an overlay of the kernel's own VXLAN devices.
type VXLANConfig struct {
	// VNI and Port are the network's number and the UDP port. Zero: 1 and 4789.
	VNI, Port int
	// MTU of the devices. It must be given: the link's, without 50 bytes.
	MTU int
	// NoChecksum6 leaves out the outer UDP checksum over IPv6.
	NoChecksum6 bool
}

// KernelVXLAN connects the containers of hosts with each other by VXLAN devices
// of the kernel, as a person would do it by hand with iproute2: learning off, and
// for each other host an FDB entry, a neighbour and a route to its bridge's
// subnets. It is what overlays are compared with. All hosts have a bridge and an
// IPv4 underlay address; their bridges' subnets are of the same families.
func KernelVXLAN(hosts []*Host, cfg VXLANConfig) error {
	macs := make([]net.HardwareAddr, len(hosts))
	for i, h := range hosts {
		if h.bridge == nil || !h.Addr4().IsValid() {
			return fmt.Errorf("lab: %s: a VXLAN needs a bridge and an IPv4 underlay address", h.short)
		}
		macs[i] = randomMAC()
		if err := h.addVXLAN(macs[i], h.Addr4(), cfg); err != nil {
			return fmt.Errorf("lab: %s: vxlan: %w", h.short, err)
		}
	}
	for _, h := range hosts {
		for i, to := range hosts {
			if to == h {
				continue
			}
			if err := h.addVXLANPeer(macs[i], to.Addr4(), to.bridge.cfg.Addrs); err != nil {
				return fmt.Errorf("lab: %s: vxlan peer %s: %w", h.short, to.short, err)
			}
		}
	}
	return nil
}

// vtepAddr is the host's address on its VXLAN device: that of the subnet.
func vtepAddr(bridge netip.Prefix) netip.Prefix {
	a := bridge.Masked().Addr()
	return netip.PrefixFrom(a, a.BitLen())
}

func (h *Host) addVXLAN(mac net.HardwareAddr, local netip.Addr, cfg VXLANConfig) error {
	cfg.VNI, cfg.Port = cmp.Or(cfg.VNI, 1), cmp.Or(cfg.Port, 4789)
	attrs := linkAttrs(vxlanDevice)
	attrs.MTU, attrs.HardwareAddr = cfg.MTU, mac
	err := h.nl.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: cfg.VNI, Port: cfg.Port, SrcAddr: local.AsSlice(), Learning: false,
		UDPCSum: true, UDP6ZeroCSumTx: cfg.NoChecksum6, UDP6ZeroCSumRx: cfg.NoChecksum6,
	})
	if err != nil {
		return err
	}
	if err := h.setUp(vxlanDevice); err != nil {
		return err
	}
	var own []netip.Prefix
	for _, p := range h.bridge.cfg.Addrs {
		own = append(own, vtepAddr(p))
	}
	return h.addAddrs(vxlanDevice, own)
}

func (h *Host) addVXLANPeer(mac net.HardwareAddr, remote netip.Addr, subnets []netip.Prefix) error {
	l, err := h.nl.LinkByName(vxlanDevice)
	if err != nil {
		return err
	}
	index := l.Attrs().Index
	errs := []error{h.nl.NeighAppend(&netlink.Neigh{
		LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
		HardwareAddr: mac, IP: remote.AsSlice(),
	})}
	for _, p := range subnets {
		// IPv6 refuses a global gateway that is not on the link.
		gw := vtepAddr(p).Addr()
		if gw.Is6() {
			gw = linkLocalOf(mac)
		}
		errs = append(errs,
			h.nl.NeighSet(&netlink.Neigh{LinkIndex: index, IP: gw.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}),
			h.nl.RouteReplace(&netlink.Route{LinkIndex: index, Dst: ipNet(p.Masked()), Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}),
		)
	}
	return errors.Join(errs...)
}

// VTEPPeer is a peer of a VTEP.
type VTEPPeer struct {
	Remote  netip.Addr // on the underlay
	Subnets []netip.Prefix
}

// VTEP gives a host with a bridge a VXLAN device of the kernel that knows of its
// peers where they are and what they have, but not their MACs: it asks for those, by
// frames to all of them, and sends what is for one MAC to all of them, too. local is
// the underlay address.
func (h *Host) VTEP(local netip.Addr, cfg VXLANConfig, peers []VTEPPeer) error {
	if h.bridge == nil {
		return fmt.Errorf("lab: %s: a VTEP needs a bridge", h.short)
	}
	if err := h.addVXLAN(randomMAC(), local, cfg); err != nil {
		return fmt.Errorf("lab: %s: vxlan: %w", h.short, err)
	}
	l, err := h.nl.LinkByName(vxlanDevice)
	if err != nil {
		return fmt.Errorf("lab: %s: %w", h.short, err)
	}
	index := l.Attrs().Index
	for _, p := range peers {
		errs := []error{h.nl.NeighAppend(&netlink.Neigh{
			LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
			HardwareAddr: make(net.HardwareAddr, 6), IP: p.Remote.AsSlice(),
		})}
		for _, s := range p.Subnets {
			gw := vtepAddr(s)
			route := &netlink.Route{LinkIndex: index, Dst: ipNet(s.Masked()), Gw: gw.Addr().AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
			if gw.Addr().Is6() { // IPv6 wants the gateway to be on the link by a route
				route.Flags = 0
				errs = append(errs, h.nl.RouteReplace(&netlink.Route{LinkIndex: index, Dst: ipNet(gw), Scope: netlink.SCOPE_LINK}))
			}
			errs = append(errs, h.nl.RouteReplace(route))
		}
		if err := errors.Join(errs...); err != nil {
			return fmt.Errorf("lab: %s: vxlan peer %v: %w", h.short, p.Remote, err)
		}
	}
	return nil
}

// linkLocalOf is the address that an interface makes of its MAC: RFC 4291
// appendix A.
func linkLocalOf(mac net.HardwareAddr) netip.Addr {
	a := [16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}
	return netip.AddrFrom16(a)
}
