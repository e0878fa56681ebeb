package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is an interface of the underlay.
type Link struct {
	Name  string
	Index int
	// MTU is the interface's, in bytes of an outer IP packet.
	MTU int
	// Addrs are the usable addresses with their on-link prefix lengths, the
	// best of each family first, IPv4 before IPv6.
	Addrs []netip.Prefix
}

// Indexes returns the indexes of those of the interfaces that exist.
func (k *Kernel) Indexes(names ...string) map[string]uint32 {
	indexes := make(map[string]uint32)
	if k.lock() != nil {
		return indexes
	}
	defer k.mu.Unlock()
	for _, name := range names {
		if l, err := k.h.LinkByName(name); err == nil {
			indexes[name] = uint32(l.Attrs().Index)
		}
	}
	return indexes
}

// Underlay describes the interface ifname. Its addresses come in this order:
// IPv4 first; then global scope before narrower ones; then by how long they
// will be good for: not deprecated, not tentative (its duplicate address
// detection still runs, as in the first second after boot), not temporary or
// secondary; then as the kernel lists them. Link-local and loopback addresses,
// and those that were found to be duplicates, are left out.
//
// The error is ErrNoInterface, naming the interfaces that exist, or
// ErrNoAddress.
func (k *Kernel) Underlay(ifname string) (Link, error) {
	if err := k.lock(); err != nil {
		return Link{}, err
	}
	defer k.mu.Unlock()

	l, err := k.link(ifname)
	if err != nil {
		return Link{}, err
	}
	a := l.Attrs()
	addrs, err := k.addrs(l)
	if err != nil {
		return Link{}, err
	}
	link := Link{Name: a.Name, Index: a.Index, MTU: a.MTU, Addrs: usable(addrs)}
	if len(link.Addrs) == 0 {
		state := ""
		if a.RawFlags&unix.IFF_UP == 0 {
			state = " and is down"
		}
		return Link{}, fmt.Errorf("interface %s: %w: it has no global IPv4 or IPv6 address%s; "+
			"give it one or name another interface", a.Name, ErrNoAddress, state)
	}
	return link, nil
}

// UnderlayByAddr describes the interface that has the address addr, which is
// then the only one in Link.Addrs. The error is ErrNoAddress, naming the
// addresses that this host has, when no interface has it or when it can be no
// endpoint (unspecified, multicast, link-local).
func (k *Kernel) UnderlayByAddr(addr netip.Addr) (Link, error) {
	if err := k.lock(); err != nil {
		return Link{}, err
	}
	defer k.mu.Unlock()

	addr = addr.Unmap()
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLinkLocalUnicast() || addr.Zone() != "" {
		return Link{}, fmt.Errorf("address %s: %w: other hosts cannot send to it", addr, ErrNoAddress)
	}
	links, err := k.links()
	if err != nil {
		return Link{}, err
	}
	all, err := k.addrs(nil)
	if err != nil {
		return Link{}, err
	}
	for _, a := range all {
		// The whole of 127.0.0.0/8 is local, not only the address on lo.
		p := addrPrefix(a)
		if p.Addr() != addr && !(addr.IsLoopback() && p.Contains(addr)) {
			continue
		}
		if l := links[a.LinkIndex]; l != nil {
			at := l.Attrs()
			return Link{Name: at.Name, Index: at.Index, MTU: at.MTU,
				Addrs: []netip.Prefix{netip.PrefixFrom(addr, p.Bits())}}, nil
		}
	}
	var have []string
	for _, p := range usable(all) {
		have = append(have, p.Addr().String())
	}
	if have == nil {
		have = []string{"none"}
	}
	return Link{}, fmt.Errorf("address %s: %w: no interface has it; this host's addresses: %s",
		addr, ErrNoAddress, strings.Join(have, ", "))
}

// link finds an interface by name. The caller holds k.mu.
func (k *Kernel) link(name string) (netlink.Link, error) {
	l, err := k.h.LinkByName(name)
	if err == nil {
		return l, nil
	}
	var notFound netlink.LinkNotFoundError
	if !errors.As(err, &notFound) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ERANGE) {
		return nil, fmt.Errorf("interface %q: %w", name, err)
	}
	links, err := k.links()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	return nil, fmt.Errorf("interface %q: %w; there are: %s", name, ErrNoInterface, strings.Join(names, ", "))
}

// links returns every interface by its index. The caller holds k.mu.
func (k *Kernel) links() (map[int]netlink.Link, error) {
	all, err := dump(k.h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	m := make(map[int]netlink.Link, len(all))
	for _, l := range all {
		m[l.Attrs().Index] = l
	}
	return m, nil
}

// addrs lists the addresses of l, or of every interface if l is nil. The caller
// holds k.mu.
func (k *Kernel) addrs(l netlink.Link) ([]netlink.Addr, error) {
	all, err := dump(func() ([]netlink.Addr, error) { return k.h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("listing addresses: %w", err)
	}
	return all, nil
}

// usable picks and orders addresses as Underlay promises.
func usable(all []netlink.Addr) []netip.Prefix {
	good := slices.DeleteFunc(slices.Clone(all), func(a netlink.Addr) bool {
		p := addrPrefix(a)
		return !p.IsValid() || !p.Addr().IsGlobalUnicast() ||
			a.Scope == unix.RT_SCOPE_LINK || a.Scope == unix.RT_SCOPE_HOST ||
			a.Flags&unix.IFA_F_DADFAILED != 0
	})
	family := func(a netlink.Addr) int { return addrPrefix(a).Addr().BitLen() }
	// Larger is worse. A temporary IPv6 address and a secondary IPv4 one have
	// the same bit (linux/include/uapi/linux/if_addr.h).
	worry := func(a netlink.Addr) int {
		n := 0
		for i, flag := range []int{unix.IFA_F_TEMPORARY, unix.IFA_F_TENTATIVE, unix.IFA_F_DEPRECATED} {
			if a.Flags&flag != 0 {
				n |= 1 << i
			}
		}
		return n
	}
	slices.SortStableFunc(good, func(a, b netlink.Addr) int {
		return cmp.Or(cmp.Compare(family(a), family(b)), cmp.Compare(a.Scope, b.Scope), cmp.Compare(worry(a), worry(b)))
	})
	out := make([]netip.Prefix, len(good))
	for i, a := range good {
		out[i] = addrPrefix(a)
	}
	return out
}

// addrPrefix is an interface's own address with its on-link prefix length. The
// zero Prefix if it is no IP address.
func addrPrefix(a netlink.Addr) netip.Prefix {
	if a.IPNet == nil {
		return netip.Prefix{}
	}
	addr, ok := netip.AddrFromSlice(a.IPNet.IP)
	if !ok {
		return netip.Prefix{}
	}
	ones, _ := a.IPNet.Mask.Size()
	return netip.PrefixFrom(addr, ones)
}
