package kernel

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DropBridgeAddrs removes from a bridge the addresses that lie in networks and in
// none of own, and returns them. There need be no bridge of that name; a device of
// another kind is left alone.
func (k *Kernel) DropBridgeAddrs(name string, networks, own []netip.Prefix) (dropped []netip.Prefix, err error) {
	if err := k.lock(); err != nil {
		return nil, err
	}
	defer k.mu.Unlock()
	l, err := k.link(name)
	if errors.Is(err, ErrNoInterface) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if l.Type() != "bridge" {
		return nil, nil
	}
	have, err := k.addrs(l)
	if err != nil {
		return nil, err
	}
	for _, a := range have {
		p := addrPrefix(a)
		if !p.IsValid() || !insideAny(single(p.Addr()), networks) || insideAny(single(p.Addr()), own) {
			continue
		}
		// The address that goes may be another's to remove, too.
		if err := k.h.AddrDel(l, &netlink.Addr{IPNet: a.IPNet}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return dropped, deviceError(name, "removing the address "+p.String(), err)
		}
		dropped = append(dropped, p)
	}
	return dropped, nil
}
