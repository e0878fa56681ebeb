package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DeviceAlias is the interface alias (IFLA_IFALIAS, `ip link set alias`) by
// which Cleanup knows a TUN device as one that ConfigureDevice has set up, and
// by which everybody knows the VXLAN devices of Fast.
const DeviceAlias = "overlayd"

// The limits of a TUN device's MTU: MIN_MTU and MAX_MTU in
// linux/drivers/net/tun.c. IPv6 needs 1280 (RFC 8200 section 5): below
// that, the kernel takes IPv6 off the device (addrconf_notify in
// linux/net/ipv6/addrconf.c).
const (
	minMTU  = 68
	maxMTU  = 65535
	minMTU6 = 1280
)

// in6AddrGenModeNone is IN6_ADDR_GEN_MODE_NONE (linux/include/uapi/linux/if_link.h):
// no link-local address when the device comes up.
const in6AddrGenModeNone = 1

// ourAddrFlags mark an address as ours: it adds no route for its prefix.
const ourAddrFlags = unix.IFA_F_NOPREFIXROUTE

// QueueDrops returns how many packets the kernel has dropped because the queue of
// the TUN device name was full, 0 if there is no such device.
func (k *Kernel) QueueDrops(name string) uint64 {
	if k.lock() != nil {
		return 0
	}
	defer k.mu.Unlock()
	l, err := k.tun(name)
	if err != nil || l.Attrs().Statistics == nil {
		return 0
	}
	return l.Attrs().Statistics.TxDropped // tun_net_xmit in linux/drivers/net/tun.c
}

// ConfigureDevice makes the TUN device name, which the caller has opened, ready
// for use: alias, no link-local address of its own, loose reverse-path
// filtering and accept_local for this device alone, MTU, up, and addrs as
// SetAddrs sets them. ipv6 tells that the overlay has IPv6, also while there are
// no addresses: then it is switched on for this device if need be.
// It may be called again. Forwarding is left as it is.
//
// The error is ErrNoInterface or ErrNotTUN when name is not a TUN device.
func (k *Kernel) ConfigureDevice(name string, mtu int, ipv6 bool, addrs []netip.Addr) error {
	if err := k.lock(); err != nil {
		return err
	}
	defer k.mu.Unlock()

	has6 := ipv6
	for _, a := range addrs {
		has6 = has6 || a.Is6()
	}
	if mtu < minMTU || mtu > maxMTU {
		return fmt.Errorf("device %s: MTU %d is not in %d to %d", name, mtu, minMTU, maxMTU)
	}
	if has6 && mtu < minMTU6 {
		return fmt.Errorf("device %s: MTU %d is too small for IPv6, which needs %d", name, mtu, minMTU6)
	}
	l, err := k.tun(name)
	if err != nil {
		return err
	}
	if err := k.h.LinkSetAlias(l, DeviceAlias); err != nil {
		return deviceError(name, "setting its alias", err)
	}
	if err := k.prepareIPv6(l, has6); err != nil {
		return err
	}
	k.loosen(name)
	k.acceptLocal(name)
	if err := k.h.LinkSetMTU(l, mtu); err != nil {
		return deviceError(name, fmt.Sprintf("setting its MTU to %d", mtu), err)
	}
	if err := k.h.LinkSetUp(l); err != nil {
		return deviceError(name, "setting it up", err)
	}
	return k.setAddrs(l, addrs)
}

// SetAddrs gives the TUN device dev exactly the addresses addrs, as /32 and
// /128, without a route for their prefix and, for IPv6, without duplicate
// address detection. Earlier ones of ours are removed after the new ones stand;
// addresses that somebody else has put on the device stay.
//
// With an IPv4 address the kernel removes the routes that have it as source
// (fib_sync_down_addr in linux/net/ipv4/fib_semantics.c): call SetRoutes
// with the new sources before the old addresses go.
func (k *Kernel) SetAddrs(dev string, addrs []netip.Addr) error {
	if err := k.lock(); err != nil {
		return err
	}
	defer k.mu.Unlock()
	l, err := k.tun(dev)
	if err != nil {
		return err
	}
	return k.setAddrs(l, addrs)
}

// setAddrs does what SetAddrs says. The caller holds k.mu.
func (k *Kernel) setAddrs(l netlink.Link, addrs []netip.Addr) error {
	name := l.Attrs().Name
	want := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		a = a.Unmap()
		want[a] = true
		flags := ourAddrFlags
		if a.Is6() {
			// Nobody else is on this link, and an address under detection
			// can be no route's source.
			flags |= unix.IFA_F_NODAD
		}
		err := k.h.AddrAdd(l, &netlink.Addr{IPNet: hostNet(a), Flags: flags})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return deviceError(name, "adding the address "+a.String(), err)
		}
	}
	have, err := k.addrs(l)
	if err != nil {
		return err
	}
	for _, a := range have {
		p := addrPrefix(a)
		if a.Flags&ourAddrFlags == 0 || !p.IsSingleIP() || want[p.Addr()] {
			continue
		}
		if err := k.h.AddrDel(l, &netlink.Addr{IPNet: a.IPNet}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return deviceError(name, "removing the address "+p.Addr().String(), err)
		}
	}
	return nil
}

// tun finds a TUN device by its name. The caller holds k.mu.
func (k *Kernel) tun(name string) (netlink.Link, error) {
	l, err := k.link(name)
	if err != nil {
		return nil, err
	}
	if !isTUN(l) {
		return nil, fmt.Errorf("device %s: %w, but %s: choose another device name", name, ErrNotTUN, l.Type())
	}
	return l, nil
}

// isTUN tells TUN devices from all others, TAP devices among them.
func isTUN(l netlink.Link) bool {
	t, ok := l.(*netlink.Tuntap)
	return ok && t.Mode == netlink.TUNTAP_MODE_TUN
}

// prepareIPv6 keeps the kernel from giving the device a link-local address, and
// removes the one that it has if it was up before. With need, IPv6 is switched
// on for this device where net.ipv6.conf.default has it off. The caller holds
// k.mu.
func (k *Kernel) prepareIPv6(l netlink.Link, need bool) error {
	name := l.Attrs().Name
	if off, ok := k.sysctlGet(sysctlNoIPv6Dev(name)); need && ok && off != 0 {
		if err := k.sysctlSet(sysctlNoIPv6Dev(name), 0); err != nil {
			return deviceError(name, fmt.Sprintf("switching IPv6 on (sysctl -w %s=0)", sysctlNoIPv6Dev(name)), err)
		}
	} else if need && !ok {
		return fmt.Errorf("device %s: the overlay has IPv6, but this kernel has no IPv6: use an IPv4 overlay network only", name)
	}
	err := k.h.LinkSetIP6AddrGenMode(l, in6AddrGenModeNone)
	// EAFNOSUPPORT: no IPv6 on this device, hence no link-local address.
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return deviceError(name, "switching off its link-local address", err)
	}
	have, err := k.addrs(l)
	if err != nil {
		return err
	}
	for _, a := range have {
		if p := addrPrefix(a); p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			if err := k.h.AddrDel(l, &netlink.Addr{IPNet: a.IPNet}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return deviceError(name, "removing its link-local address", err)
			}
		}
	}
	return nil
}

// loosen sets loose reverse-path filtering on the device: a packet may arrive
// on another path than the answer leaves by. Where it cannot be set and the
// filter is strict, Diagnose says so to the user. The caller holds k.mu.
func (k *Kernel) loosen(dev string) {
	if err := k.sysctlSet(sysctlRPDev(dev), rpLoose); err != nil {
		k.log.Warn("loose reverse-path filtering could not be set", "sysctl", sysctlRPDev(dev).String(), "err", err)
	}
}

// acceptLocal lets the device deliver IPv4 packets whose source is an address of
// this host (accept_local in linux/Documentation/networking/ip-sysctl.rst): that
// is what the node's own ICMP errors look like when they come out of the TUN.
// Whoever writes to the TUN lets no peer use such a source. The caller holds
// k.mu.
func (k *Kernel) acceptLocal(dev string) {
	if err := k.sysctlSet(sysctlAcceptLocal(dev), 1); err != nil {
		k.log.Warn("the node's own ICMP errors will not be delivered", "sysctl", sysctlAcceptLocal(dev).String(), "err", err)
	}
}

// deviceError names the device and what was tried, and the missing privilege if
// that is the reason.
func deviceError(name, what string, err error) error {
	if errors.Is(err, unix.EPERM) {
		err = ErrPermission
	}
	return fmt.Errorf("device %s: %s: %w", name, what, err)
}

// hostNet is a as /32 or /128.
func hostNet(a netip.Addr) *net.IPNet {
	return ipNet(single(a))
}

// ipNet is p as netlink wants it: 4 bytes for IPv4, 16 for IPv6.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
