package kernel

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
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

// Cleanup removes what daemons left behind that are gone: every route with
// RouteProtocol, in all tables and both families, our policy rules, the VXLAN
// devices that carry DeviceAlias, and then the guards that stood before those and
// before dev, and their masquerades and accept rules. Not what a daemon that lives has, on whatever
// device: it has a route to its TUN, and all of its other routes lie inside that
// one's network. It returns what was removed, in words, also along with an error.
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
	var living []netip.Prefix // networks of living daemons
	for _, r := range all {
		if r.ours() && r.otherTUN(links, -1) {
			living = append(living, r.dst)
		}
	}
	removed, err := k.removeRoutes(func(r route) bool { return !insideAny(r.dst, living) })
	rules, rerr := k.removeRules(links)
	devices, owners, derr := k.removeVTEPs(links)
	removed = slices.Concat(removed, rules, devices)
	err = errors.Join(err, rerr, derr)
	for _, owner := range append(owners, dev) {
		guard, gerr := k.removeGuard(owner)
		masq, merr := k.removeMasquerade(owner)
		rules, ferr := k.removeForwardRules(owner)
		removed = slices.Concat(removed, guard, masq, rules)
		err = errors.Join(err, gerr, merr, ferr)
	}
	return removed, err
}

// removeRules removes those policy rules of ours that lead to no route of ours and
// to no VXLAN device of a living daemon. The caller holds k.mu.
func (k *Kernel) removeRules(links map[int]netlink.Link) (removed []string, err error) {
	rules, err := k.ourRules()
	if err != nil {
		return nil, err
	}
	all, err := k.routes()
	if err != nil {
		return nil, err
	}
	for _, rule := range rules {
		used := slices.ContainsFunc(all, func(r route) bool { return r.ours() && r.table == rule.Table })
		for _, l := range links {
			used = used || l.Attrs().Name == rule.OifName && isVTEP(l) && ownerLives(l, links)
		}
		if used {
			continue
		}
		if derr := k.deleteRule(rule); derr != nil {
			err = errors.Join(err, fmt.Errorf("removing the %s: %w", ruleName(rule), permission(derr)))
			continue
		}
		removed = append(removed, ruleName(rule))
	}
	return removed, err
}

// removeVTEPs removes the VXLAN devices of daemons that are gone, and returns also
// the names of the TUN devices that those had. One that somebody has renamed could
// be any daemon's, and stays while one lives. The caller holds k.mu.
func (k *Kernel) removeVTEPs(links map[int]netlink.Link) (removed, owners []string, err error) {
	anyLives := false
	for _, l := range links {
		anyLives = anyLives || isTUN(l) && l.Attrs().Alias == DeviceAlias
	}
	for _, index := range slices.Sorted(maps.Keys(links)) {
		l := links[index]
		name := l.Attrs().Name
		if !isVTEP(l) || ownerLives(l, links) {
			continue
		}
		owner, named := vtepOwner(name)
		if !named && anyLives {
			continue
		}
		if derr := k.deleteLink(index); derr != nil {
			err = errors.Join(err, deviceError(name, "removing it", derr))
			continue
		}
		removed = append(removed, "device "+name)
		if named && !slices.Contains(owners, owner) {
			owners = append(owners, owner)
		}
	}
	return removed, owners, err
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
