package kernel

import (
	"errors"
	"fmt"
	"net/netip"
)

// Release takes back what one node has put into the kernel, for an orderly
// stop: our routes that lead to dev or whose destination lies in one of
// networks, and our addresses on dev. The device itself goes when whoever
// opened it closes it. It returns what was removed, in words, also along with
// an error.
func (k *Kernel) Release(dev string, networks []netip.Prefix) ([]string, error) {
	if err := k.lock(); err != nil {
		return nil, err
	}
	defer k.mu.Unlock()

	index := -1
	l, err := k.tun(dev)
	if err == nil {
		index = l.Attrs().Index
	}
	removed, err := k.removeRoutes(func(r route) bool {
		for _, n := range networks {
			if inside(r.dst, n) {
				return true
			}
		}
		return r.link == index
	})
	if index >= 0 {
		err = errors.Join(err, k.setAddrs(l, nil))
	}
	return removed, err
}

// Cleanup removes what a daemon left behind that is gone: every route with
// RouteProtocol, in all tables and both families, except for those of a daemon
// that lives, on whatever device: it has a route to its TUN. It returns what was
// removed, in words, also along with an error.
//
// The device dev needs no removing: a TUN is gone with the process that made
// it. If it is there and carries DeviceAlias, its daemon lives, and the error is
// ErrHeld; nothing has been removed then.
func (k *Kernel) Cleanup(dev string) ([]string, error) {
	if err := k.lock(); err != nil {
		return nil, err
	}
	defer k.mu.Unlock()

	switch l, err := k.link(dev); {
	case errors.Is(err, ErrNoInterface):
	case err != nil:
		return nil, err
	case isTUN(l) && l.Attrs().Alias == DeviceAlias:
		return nil, fmt.Errorf("device %s: %w: stop that daemon first", dev, ErrHeld)
	}
	all, err := k.routes()
	if err != nil {
		return nil, err
	}
	links, err := k.links()
	if err != nil {
		return nil, err
	}
	living := make(map[netip.Prefix]bool) // destinations of living daemons
	for _, r := range all {
		if r.ours() && r.otherTUN(links, -1) {
			living[r.dst] = true
		}
	}
	return k.removeRoutes(func(r route) bool { return !living[r.dst] })
}

// removeRoutes removes those of our routes for which also holds, the TUN's
// before the unreachable ones behind them. The caller holds k.mu.
func (k *Kernel) removeRoutes(also func(route) bool) (removed []string, err error) {
	all, err := k.routes()
	if err != nil {
		return nil, err
	}
	links, err := k.links()
	if err != nil {
		return nil, err
	}
	for _, refusing := range []bool{false, true} {
		for _, r := range all {
			if !r.ours() || r.refuses() != refusing || !also(r) {
				continue
			}
			if derr := k.deleteRoute(r); derr != nil {
				err = errors.Join(err, fmt.Errorf("removing the %s: %w", r.describe(links), derr))
				continue
			}
			removed = append(removed, r.describe(links))
		}
	}
	return removed, err
}
