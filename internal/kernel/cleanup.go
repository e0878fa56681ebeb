package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
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

// Cleanup removes everything that carries our marks, for when no daemon runs
// any more: every route with RouteProtocol, in all tables and both families,
// and the device dev if it is a TUN device with DeviceAlias. It returns what
// was removed, in words, also along with an error.
func (k *Kernel) Cleanup(dev string) ([]string, error) {
	if err := k.lock(); err != nil {
		return nil, err
	}
	defer k.mu.Unlock()

	removed, err := k.removeRoutes(func(route) bool { return true })
	l, lerr := k.link(dev)
	switch {
	case errors.Is(lerr, ErrNoInterface):
		return removed, err
	case lerr != nil:
		return removed, errors.Join(err, lerr)
	case !isTUN(l) || l.Attrs().Alias != DeviceAlias:
		return removed, err
	}
	derr := k.h.LinkDel(l)
	switch {
	case derr == nil:
		removed = append(removed, "TUN device "+dev)
	case !errors.Is(derr, unix.ENODEV):
		err = errors.Join(err, deviceError(dev, "removing it", derr))
	}
	return removed, err
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
