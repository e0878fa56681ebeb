package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// FastKind is a way by which the kernel itself takes packets to a peer.
type FastKind uint8

// The kinds.
const (
	// FastNone: the packets go to the TUN device.
	FastNone FastKind = iota
	// FastVXLAN: by a VXLAN device of the kernel.
	FastVXLAN
	// FastDirect: by a plain route to the peer's host, which is on the same link.
	FastDirect
)

// String returns the name that status shows.
func (kind FastKind) String() string {
	switch kind {
	case FastNone:
		return "none"
	case FastVXLAN:
		return "kernel-vxlan"
	case FastDirect:
		return "direct"
	}
	return fmt.Sprintf("FastKind(%d)", uint8(kind))
}

// FastConfig is what holds for the life of a node.
type FastConfig struct {
	// Device is the TUN device's name. The VXLAN devices are named after it.
	Device string
	// VNI and Port are those of the VXLAN devices.
	VNI  uint32
	Port uint16
	// MAC is the VTEP's, the same on both VXLAN devices.
	MAC [6]byte
	// MTU is the VXLAN devices', in bytes of an inner IP packet.
	MTU int
	// Locals are this node's endpoints, at most one per family. There is a VXLAN
	// device for each of them.
	Locals []netip.Addr
	// Networks are the overlay networks. By them a node knows its routes from
	// those of another node on this host.
	Networks []netip.Prefix
	// IPv6 tells that the overlay has IPv6.
	IPv6 bool
}

// FastPeer is what one peer needs in the kernel.
type FastPeer struct {
	// ID tells peers apart, Name is for people.
	ID   [16]byte
	Name string
	// Prefixes are its subnets, inside the overlay networks.
	Prefixes []netip.Prefix
	// Outer is where VXLAN for it goes, the zero Addr if it is not reached by
	// VXLAN. MAC is its VTEP's.
	Outer netip.Addr
	MAC   [6]byte
	// Hops are its addresses on a link of ours, at most one per family. None:
	// there is no direct way.
	Hops []DirectHop
	// Route says where the main table leads its prefixes. With FastDirect that
	// goes for the families that have a hop; other packets go to the TUN.
	Route FastKind
	// MTU is that of the routes in the main table, in bytes. 0: the device's.
	MTU int
}

// DirectHop is a neighbour on a link of this host.
type DirectHop struct {
	Link string
	Addr netip.Addr
}

// Result says what is not as it was asked for.
type Result struct {
	// VXLAN4 and VXLAN6 say why there is no VXLAN over an IPv4 or IPv6 underlay
	// now. Nil: there is, or it lacks nothing but SetUp.
	VXLAN4, VXLAN6 error
	// Peers says which peers' state is not as wanted, and why. A peer that is not
	// in it stands as asked.
	Peers map[[16]byte]error
	// Err is set if the kernel could not even be read, or something that is no
	// single peer's could not be set.
	Err error
}

// fail notes what is wrong with a peer. The first reason stays: others follow
// from it, or are the same for the other family.
func (r *Result) fail(id [16]byte, err error) {
	if r.Peers == nil {
		r.Peers = make(map[[16]byte]error)
	}
	if r.Peers[id] == nil {
		r.Peers[id] = err
	}
}

// Fast is one node's kernel paths: VXLAN devices with an FDB entry and
// neighbours for each peer, the routes that hand packets over to the kernel, and
// those by which probes find their way before that.
//
// A route to a peer's prefix in the main table, which is longer than the overlay
// network's to the TUN, is the hand-off. Probes go by a table of their own,
// number 9600 and the index of the link, that a policy rule `oif LINK` leads
// to: only packets of a socket that is bound to the link get there.
//
// Its methods may be called by any goroutine; they run one at a time with those
// of its Kernel.
type Fast struct {
	k       *Kernel
	cfg     FastConfig
	adopted map[netip.Prefix]FastKind
	watched atomic.Pointer[interest] // what Watch looks for

	// All of the following is under k.mu.
	vteps [2]vtep   // by family, see familyIndex
	up    power     // what SetUp was told
	wish  *fastWish // what Apply was told; nil: nothing yet
	have  *fastHave // what is in the kernel; nil: to be read
	stale bool      // have is no longer true
}

// power is what SetUp was told.
type power uint8

const (
	powerUnset power = iota // nothing: a device stays as it is found, a new one down
	powerUp
	powerDown
)

// fastWish is what the last Apply was told.
type fastWish struct {
	own   []netip.Addr
	peers []FastPeer
	keep  bool
}

// NewFast checks cfg and looks at what a dead daemon has left. It changes
// nothing.
func (k *Kernel) NewFast(cfg FastConfig) (*Fast, error) {
	f := &Fast{k: k, cfg: cfg, adopted: make(map[netip.Prefix]FastKind)}
	f.cfg.Locals, f.cfg.Networks = slices.Clone(cfg.Locals), slices.Clone(cfg.Networks)
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("kernel paths: %w", err)
	}
	if err := k.lock(); err != nil {
		return nil, err
	}
	defer k.mu.Unlock()
	links, err := k.links()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		for i := range f.vteps {
			if f.ownsDevice(i, l, links) {
				f.vteps[i].index = l.Attrs().Index
			}
		}
	}
	all, err := k.routes()
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if r.table == unix.RT_TABLE_MAIN && r.kind == unix.RTN_UNICAST && r.metric == RouteMetric && f.owns(r, links) {
			f.adopted[r.dst] = f.kindOf(r)
		}
	}
	f.watch(nil)
	return f, nil
}

// check looks at the configuration and names the devices.
func (f *Fast) check() error {
	c := &f.cfg
	switch {
	case c.VNI >= 1<<24:
		return fmt.Errorf("VNI %d does not fit into 24 bits", c.VNI)
	case c.Port == 0:
		return errors.New("no UDP port for the kernel's VXLAN")
	case !usableMAC(c.MAC):
		return fmt.Errorf("VTEP MAC %s is not that of a single station", macString(c.MAC))
	case c.MTU < minMTU || c.MTU > maxMTU:
		return fmt.Errorf("MTU %d is not in %d to %d", c.MTU, minMTU, maxMTU)
	case c.IPv6 && c.MTU < minMTU6:
		return fmt.Errorf("MTU %d is too small for IPv6, which needs %d", c.MTU, minMTU6)
	case len(c.Networks) == 0:
		return errors.New("no overlay networks")
	}
	for i := range f.vteps {
		f.vteps[i].name = vtepName(c.Device, i)
		if n := len(f.vteps[i].name); n >= unix.IFNAMSIZ {
			return fmt.Errorf("device name %s has %d bytes, its VXLAN devices' %d, and Linux allows %d: choose a --device of at most %d characters",
				c.Device, len(c.Device), n, unix.IFNAMSIZ-1, unix.IFNAMSIZ-1-len(vtepSuffixes[i]))
		}
	}
	for i, a := range c.Locals {
		a = a.Unmap()
		if !a.IsValid() || a.Zone() != "" {
			return fmt.Errorf("endpoint %v is no address without a zone", a)
		}
		v := &f.vteps[familyIndex(a)]
		if v.local.IsValid() {
			return fmt.Errorf("two endpoints of one family, %s and %s", v.local, a)
		}
		v.local, c.Locals[i] = a, a
	}
	return nil
}

// Adopted returns the routes of ours to peers' prefixes that the main table had
// at NewFast, and where each leads.
func (f *Fast) Adopted() map[netip.Prefix]FastKind {
	all := make(map[netip.Prefix]FastKind, len(f.adopted))
	for p, kind := range f.adopted {
		all[p] = kind
	}
	return all
}

// Apply makes the kernel as it must be for this node's own addresses and its
// peers. It is called for each change; what it has put in before it remembers, so
// that a change costs a few netlink requests. The first call reads all.
//
// A VXLAN device that has to be made stays down until SetUp, and so does its
// peers' traffic: no route leads to a device that is down.
//
// For each peer the way is complete before the main table's route leads to it,
// and that route goes first. A route that moves is replaced in one step. Where the
// wanted one cannot be had, none is left: the packets go to the TUN.
//
// With keep nothing is removed that was there before or belongs to a peer that
// is not among peers, unless it contradicts what is wanted: a daemon that has
// just started does not know its peers yet. Without it all of ours goes that is
// not wanted.
//
// own are the node's addresses, as on the TUN; the first of each family is the
// source of the routes. When they change, the new ones must stand on the TUN
// before, and the old ones be removed from it after.
func (f *Fast) Apply(own []netip.Addr, peers []FastPeer, keep bool) Result {
	if err := f.k.lock(); err != nil {
		return Result{Err: err}
	}
	defer f.k.mu.Unlock()
	f.wish = &fastWish{keep: keep, peers: make([]FastPeer, len(peers))}
	for _, a := range own {
		f.wish.own = append(f.wish.own, a.Unmap())
	}
	for i, p := range peers {
		p.Outer = p.Outer.Unmap()
		p.Prefixes, p.Hops = slices.Clone(p.Prefixes), slices.Clone(p.Hops)
		for j := range p.Hops {
			p.Hops[j].Addr = p.Hops[j].Addr.Unmap()
		}
		f.wish.peers[i] = p
	}
	_, res := f.settle(false)
	return res
}

// Check reads what is in the kernel and mends what is not as the last Apply
// wanted it. It returns what it has done, in words: nothing if all stands, and
// then it has changed nothing either. Before the first Apply it does nothing.
func (f *Fast) Check() (repaired []string, res Result) {
	if err := f.k.lock(); err != nil {
		return nil, Result{Err: err}
	}
	defer f.k.mu.Unlock()
	return f.settle(true)
}

// settle does what Apply and Check promise. The caller holds k.mu.
func (f *Fast) settle(read bool) (did []string, res Result) {
	if f.wish == nil {
		return nil, res
	}
	read = read || f.stale || f.have == nil
	for round := 0; ; round++ {
		if read {
			mended, err := f.look()
			did = append(did, mended...)
			if err != nil {
				return did, Result{VXLAN4: f.vteps[0].err, VXLAN6: f.vteps[1].err, Err: err}
			}
		}
		want := f.want()
		f.watch(want)
		done, failed := f.sync(want)
		did = append(did, done...)
		// What fails by memory, fails often because somebody has changed the
		// kernel under us. It is told only if it fails when that is known.
		if again := f.stale || (failed || want.missing) && !read; !again || round == maxRounds {
			return did, want.res
		}
		read = true
	}
}

// maxRounds limits how often settle begins again: once because something has
// failed, once because the kernel has taken something away with an address.
const maxRounds = 2

// SetUp sets the VXLAN devices up or down, and keeps them so. Up, the routes that
// the last Apply wanted are put in; down, the kernel removes them. That a device
// cannot be set up, as when another program has the UDP port, is an error here, and
// one of that family's VXLAN in later results.
func (f *Fast) SetUp(up bool) error {
	if err := f.k.lock(); err != nil {
		return err
	}
	defer f.k.mu.Unlock()
	was := f.up
	f.up = powerDown
	if up {
		f.up = powerUp
	}
	if f.wish == nil || f.have != nil && was == f.up && f.powered() {
		return nil
	}
	_, res := f.settle(true)
	return errors.Join(res.Err, f.vteps[0].failure(), f.vteps[1].failure())
}

// powered tells whether each device that there should be is as SetUp was told.
func (f *Fast) powered() bool {
	for i := range f.vteps {
		v := &f.vteps[i]
		if v.local.IsValid() && (v.err != nil || v.up != (f.up == powerUp)) {
			return false
		}
	}
	return true
}

// Remove takes all of this node's kernel paths out of the kernel: routes first,
// the main table's before the others, then policy rules and devices. It returns
// what was removed, in words, also along with an error. Later calls of Check
// put nothing back.
func (f *Fast) Remove() (removed []string, err error) {
	if err := f.k.lock(); err != nil {
		return nil, err
	}
	defer f.k.mu.Unlock()
	f.wish, f.have, f.up = nil, nil, powerUnset
	k := f.k
	links, err := k.links()
	if err != nil {
		return nil, err
	}
	note := func(what string, err2 error) {
		if err2 != nil {
			err = errors.Join(err, fmt.Errorf("removing the %s: %w", what, permission(err2)))
			return
		}
		removed = append(removed, what)
	}
	for i := range f.vteps {
		f.vteps[i].index, f.vteps[i].up, f.vteps[i].err = 0, false, nil
		for _, l := range links {
			if f.ownsDevice(i, l, links) {
				f.vteps[i].index = l.Attrs().Index
			}
		}
	}
	all, rerr := k.routes()
	if rerr != nil {
		return nil, rerr
	}
	mine := slices.DeleteFunc(slices.Clone(all), func(r route) bool { return !f.owns(r, links) })
	slices.SortStableFunc(mine, func(a, b route) int { return cmp.Compare(rankOf(a), rankOf(b)) })
	for _, r := range mine {
		note(r.describe(links), k.deleteRoute(r))
	}
	rules, rerr := k.ourRules()
	if rerr != nil {
		return removed, errors.Join(err, rerr)
	}
	for _, r := range rules {
		if f.ownsRule(r, all, links) {
			note(ruleName(r), k.deleteRule(r))
		}
	}
	for i := range f.vteps {
		v := &f.vteps[i]
		if l := links[v.index]; l != nil {
			note("device "+l.Attrs().Name, k.deleteLink(v.index))
			v.index = 0
		}
	}
	return removed, err
}

// rankOf puts the main table's routes before the others.
func rankOf(r route) int {
	if r.table == unix.RT_TABLE_MAIN {
		return 0
	}
	return 1
}

// owns tells whether the route is one of this node's kernel paths: not the
// overlay networks' own, which are SetRoutes', nor another node's. The caller
// holds k.mu.
func (f *Fast) owns(r route, links map[int]netlink.Link) bool {
	if !r.ours() || r.refuses() || slices.Contains(f.cfg.Networks, r.dst) {
		return false
	}
	for i := range f.vteps {
		if f.vteps[i].index != 0 && f.vteps[i].index == r.link {
			return true
		}
	}
	l := links[r.link]
	return insideAny(r.dst, f.cfg.Networks) && (l == nil || !isTUN(l) && !isVTEP(l))
}

// kindOf tells which way a route of ours goes.
func (f *Fast) kindOf(r route) FastKind {
	for i := range f.vteps {
		if f.vteps[i].index == r.link {
			return FastVXLAN
		}
	}
	return FastDirect
}

// permission puts the missing privilege's name in place of EPERM.
func permission(err error) error {
	if errors.Is(err, unix.EPERM) {
		return ErrPermission
	}
	return err
}

// gone forgives that what is to be removed is not there.
func gone(err error) error {
	for _, absent := range []error{unix.ENODEV, unix.ENOENT, unix.ESRCH, unix.EADDRNOTAVAIL} {
		if errors.Is(err, absent) {
			return nil
		}
	}
	return err
}
