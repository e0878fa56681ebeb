package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// LinkHop is a neighbour that a plain route can lead to.
type LinkHop struct {
	Link string  // the interface
	MAC  [6]byte // the neighbour's there
	MTU  int     // of the interface, in bytes of an IP packet
	// Asking tells that nothing but its link-layer address is missing, which the
	// kernel has been told to ask for.
	Asking bool
}

// OnLink finds out whether addr is one hop away on an Ethernet link of this host,
// so that a plain route can lead to it. If not, or not yet, why says what is
// missing, in one line, with its cure if there is one. The link-layer address is
// what the kernel's neighbour table has; if it has none, it is told to ask.
//
// For an IPv4 address the link's reverse-path filter must not be strict: the
// peer's packets would be dropped here while ours to it take another way.
func (k *Kernel) OnLink(addr netip.Addr) (hop LinkHop, why string) {
	if err := k.lock(); err != nil {
		return LinkHop{}, err.Error()
	}
	defer k.mu.Unlock()

	addr = addr.Unmap()
	if !addr.IsValid() || addr.Zone() != "" || addr.IsLinkLocalUnicast() || addr.IsMulticast() {
		return LinkHop{}, fmt.Sprintf("%s is no address of another host", addr)
	}
	routes, err := k.h.RouteGet(addr.AsSlice())
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return LinkHop{}, fmt.Sprintf("no route to %s: %v", addr, err)
	}
	r := routes[0]
	l, err := k.h.LinkByIndex(r.LinkIndex)
	if err != nil {
		return LinkHop{}, fmt.Sprintf("the interface to %s: %v", addr, err)
	}
	name := l.Attrs().Name
	gw, _ := netip.AddrFromSlice(r.Gw)
	gw = gw.Unmap()
	switch {
	case r.Type == unix.RTN_LOCAL:
		return LinkHop{}, fmt.Sprintf("%s is this host's own address", addr)
	case r.Type != unix.RTN_UNICAST:
		return LinkHop{}, fmt.Sprintf("%s is no single host's address", addr)
	case gw.IsValid() && gw != addr:
		return LinkHop{}, fmt.Sprintf("the gateway %s is in between", gw)
	case l.Attrs().EncapType != "ether" || l.Attrs().RawFlags&unix.IFF_NOARP != 0 || isTUN(l) || isVTEP(l):
		return LinkHop{}, fmt.Sprintf("interface %s is no Ethernet link", name)
	}
	if value, ok := k.rpFilter(name); addr.Is4() && ok && value == rpStrict {
		return LinkHop{}, fmt.Sprintf("reverse-path filtering on %s is strict: sysctl -w %s=%d", name, sysctlRPDev(name), rpLoose)
	}
	mac, err := k.neighbour(r.LinkIndex, addr)
	if err != nil {
		return LinkHop{}, fmt.Sprintf("the neighbour table of %s: %v", name, err)
	}
	if mac == [6]byte{} {
		k.askFor(r.LinkIndex, addr)
		return LinkHop{Asking: true}, fmt.Sprintf("the link-layer address of %s on %s is not known yet", addr, name)
	}
	return LinkHop{Link: name, MAC: mac, MTU: l.Attrs().MTU}, ""
}

// askFor has the kernel resolve a neighbour, as if there were a packet for it
// (NTF_USE in neigh_add, linux/net/core/neighbour.c). What comes of it the next
// look will tell. The caller holds k.mu.
func (k *Kernel) askFor(index int, addr netip.Addr) {
	err := k.h.NeighSet(&netlink.Neigh{
		LinkIndex: index, Family: familyOf(addr), IP: addr.AsSlice(), State: netlink.NUD_NONE, Flags: netlink.NTF_USE,
	})
	if err != nil {
		k.log.Debug("asking for a neighbour", "addr", addr, "err", err)
	}
}

// nudValid are the states in which the kernel sends to a neighbour's link-layer
// address (NUD_VALID in linux/include/net/neighbour.h).
const nudValid = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE |
	netlink.NUD_PROBE | netlink.NUD_STALE | netlink.NUD_DELAY

// neighbour returns the link-layer address of a neighbour, zero if the kernel does
// not know it. The caller holds k.mu.
func (k *Kernel) neighbour(index int, addr netip.Addr) (mac [6]byte, err error) {
	msgs, err := k.request(unix.RTM_GETNEIGH, 0, unix.RTM_NEWNEIGH,
		&netlink.Ndmsg{Family: uint8(familyOf(addr)), Index: uint32(index)},
		nl.NewRtAttr(netlink.NDA_DST, addr.AsSlice()))
	var found []netlink.Neigh
	switch {
	case errors.Is(err, unix.ENOENT):
		return mac, nil
	case err != nil: // before Linux 5.0 one cannot ask for a single neighbour
		if found, err = k.readNeighs(index); err != nil {
			return mac, err
		}
	default:
		for _, m := range msgs {
			n, err := netlink.NeighDeserialize(m)
			if err != nil {
				return mac, err
			}
			found = append(found, *n)
		}
	}
	for _, n := range found {
		if a, _ := netip.AddrFromSlice(n.IP); a.Unmap() == addr && n.State&nudValid != 0 && len(n.HardwareAddr) == len(mac) {
			copy(mac[:], n.HardwareAddr)
		}
	}
	return mac, nil
}
