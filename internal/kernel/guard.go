package kernel

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// ErrNoGuard: the guard does not stand as it was wanted, because nftables is not
// there, or refuses it, or this process lacks the right. The text says which.
var ErrNoGuard = errors.New("no guard for the kernel paths")

// Guard is what may come in by the kernel's paths, which do not look at who
// sends: a table of nftables. It counts what passes, too.
type Guard struct {
	// Device is the TUN's name; the table is inet "overlayd-"+Device.
	Device string
	// VXLANs are the names of our VXLAN devices.
	VXLANs []string
	// Underlays are the interfaces that have our endpoints: what comes in by
	// another one is no outer packet of a peer, unless its source is routed there.
	Underlays []string
	// Locals are our endpoints, where VXLAN may be sent to.
	Locals []netip.Addr
	// VNI and Port are the kernel VXLAN's. Other networks on that port are left
	// alone.
	VNI  uint32
	Port uint16
	// Ports are all of the cluster's overlay data ports: udp encap, userspace
	// VXLAN, kernel VXLAN. Port is taken for one of them.
	Ports []uint16
	// Networks are the overlay's, at most one per family.
	Networks []netip.Prefix
	// Own are our subnets. None: nothing is let in.
	Own []netip.Prefix
	// Inside are interfaces behind which our containers are: what comes in by them
	// with a source in Own need not be asked where it comes from.
	Inside []string
	// Len4 and Len6 are the lengths that subnets of the cluster usually have, by
	// family; 0: there is none. They make no difference but in speed.
	Len4, Len6 int
	// Indexes are those of interfaces that are named here, as far as they are known. They
	// make no difference but in speed.
	Indexes map[string]uint32
	// Peers are those that may send. Nobody else may.
	Peers []GuardPeer
}

// GuardPeer is what one peer may send, and from where.
type GuardPeer struct {
	ID [16]byte
	// Outer are its underlay addresses, from which VXLAN of it comes.
	Outer []netip.Addr
	// Inner are the sources of packets that it may send: its subnets, its own
	// underlay addresses (hosts answer containers), its allowed sources. They may
	// overlap, each other's and another peer's.
	Inner []netip.Prefix
	// Prefixes are its subnets: what goes there is counted as sent to it.
	Prefixes []netip.Prefix
	// Direct is from where it may send plain packets. None: from nowhere.
	Direct []DirectSender
}

// DirectSender is a neighbour on a link.
type DirectSender struct {
	Link string
	MAC  [6]byte
}

// guardState is what SetGuard has put into the kernel, and what is known of it.
// Kernel.mu guards it.
type guardState struct {
	device string
	vxlans []string
	// fixed is the part of the guard that the rules are made of.
	fixed string
	// elements stand in the sets: whose each is.
	elements map[guardKey][16]byte
	// kept are elements of a dead daemon's guard, which are in elements too.
	kept []guardElement
	// marks are the numbers of the outer addresses.
	marks map[netip.Addr]uint32
	next  uint32
	// generation is the last one of which it is known that everything stands; 0:
	// of none.
	generation uint32
	// table is how the kernel shows the rules right after they were made.
	table string
	// counts are what counted, and the kernel's counters as they were last read.
	counts GuardCounts
	read   map[guardKey]PathCounts
	drops  map[string]uint64
}

// guardTries is how often something is tried because somebody else changed
// nftables meanwhile.
const guardTries = 5

// The marks of packets between the two steps of the guard are numbers in a range
// that is unlikely to be used for anything else, and never 0, which a packet has
// without anybody's doing.
const (
	markBase  = 0x6f000000
	markRange = 1 << 24
)

// guardTable is the name of the table for a device.
func guardTable(device string) string { return "overlayd-" + device }

// SetGuard makes the guard g, in one transaction: at every moment either the
// guard before or this one stands as a whole. A call that changes only peers
// changes only their elements; otherwise, and when anything of it is not as this
// process has left it, the table is made anew, along with whatever somebody else
// has put into it. While a Kernel has a guard, it takes none for another device.
//
// keep tells that the first guard of this process shall not take away what a
// daemon that is gone has let in: elements of its guard for peers that are not in
// g stay, until their peer is in g or keep is false.
//
// Receive offload is switched off on those of g.VXLANs that exist: where it is
// on, the guard can be fooled.
//
// The error is ErrNoGuard if the guard does not stand as wanted; what stood
// before stands as it was. Any other error names peers and what of them was left
// out; the rest stands.
func (k *Kernel) SetGuard(g Guard, keep bool) error {
	if err := k.lock(); err != nil {
		return err
	}
	defer k.mu.Unlock()
	err := g.check()
	if err == nil && k.guard != nil && k.guard.device != g.Device {
		err = fmt.Errorf("there is one for the device %s already", k.guard.device)
	}
	if err != nil {
		return fmt.Errorf("kernel: %w: %w", ErrNoGuard, err)
	}
	elements, left := g.elements()
	st := k.guard
	if st == nil {
		st = &guardState{device: g.Device, next: rand.Uint32N(markRange),
			read: make(map[guardKey]PathCounts), drops: make(map[string]uint64)}
		st.counts = newGuardCounts()
	}
	err = k.inNamespace(func() error {
		c, err := openNF()
		if err != nil {
			return err
		}
		defer c.close()
		if err := joinNothing(g.VXLANs); err != nil {
			return err
		}
		return st.set(c, k.log, &g, elements, keep, k.guard == nil)
	})
	if err != nil {
		return fmt.Errorf("kernel: %w: %w", ErrNoGuard, guardCause(err))
	}
	k.guard = st
	return left
}

// guardCause says in plain words what an error of nftables means.
func guardCause(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return ErrPermission
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("this kernel's nftables lacks something that the guard needs (CONFIG_NF_TABLES_INET, CONFIG_NFT_FIB_INET or another): %w", err)
	}
	return err
}

// check tells whether rules can be made of g, apart from its peers.
func (g *Guard) check() error {
	names := slices.Concat([]string{g.Device}, g.VXLANs, g.Underlays, g.Inside)
	if i := slices.IndexFunc(names, func(s string) bool { return !isIfName(s) }); i >= 0 {
		return fmt.Errorf("%q is no name of an interface", names[i])
	}
	if g.Len4 < 0 || g.Len4 > 32 || g.Len6 < 0 || g.Len6 > 128 {
		return fmt.Errorf("subnet lengths %d and %d", g.Len4, g.Len6)
	}
	if g.VNI >= 1<<24 { // RFC 7348 section 5
		return fmt.Errorf("VNI %d has more than 24 bits", g.VNI)
	}
	if g.Port == 0 || slices.Contains(g.Ports, 0) {
		return errors.New("a port is 0")
	}
	for _, a := range g.Locals {
		if why := badPeerAddr(a); why != "" || a.Is4In6() {
			return fmt.Errorf("endpoint %v: not an address of a host", a)
		}
	}
	for _, p := range slices.Concat(g.Networks, g.Own) {
		if why := badPrefix(p); why != "" {
			return fmt.Errorf("network %v: %s", p, why)
		}
	}
	return nil
}

// set brings the kernel to g with these elements. first tells that this process
// has made no guard yet.
//
// Transactions are bound to the generation that was looked at, so that what is
// there afterwards is known without another look. Where somebody else changes
// nftables all the time, the last try is not, and CheckGuard looks again.
func (st *guardState) set(c *nfConn, log *slog.Logger, g *Guard, elements []guardElement, keep, first bool) error {
	for try := 1; ; try++ {
		last := try == guardTries
		gen, err := c.generation()
		if err != nil {
			return err
		}
		stands := false
		if first {
			if st.kept = nil; keep {
				st.adopt(c)
			}
		} else if stands, err = st.stands(c, gen); err != nil && !errors.Is(err, errNFChanged) {
			return err
		}
		kept := g.keep(st.kept, elements, keep)
		want := allElements(elements, kept)
		marks := st.number(want)

		var batch []nfMessage
		fixed := g.fixed()
		anew, deletes := !stands || fixed != st.fixed, false
		if !anew {
			batch, deletes = st.change(want, marks)
		}
		if anew || deletes {
			// Counters go. Where they cannot be read, they are gone already.
			if err := st.count(c); err != nil && !errors.Is(err, unix.ENOENT) {
				log.Debug("the guard's counters were not read before they went", "err", err)
			}
		}
		if !anew {
			if err = c.commit(bound(gen, last), batch); err != nil && !errors.Is(err, errNFChanged) {
				log.Warn("the guard is made anew, because a change was refused", "err", err)
				anew = true
			}
		}
		if anew {
			if batch, err = g.build(want, marks); err != nil {
				return err
			}
			if gen, err = c.generation(); err != nil { // that was a while ago
				return err
			}
			err = c.commit(bound(gen, last), batch)
		}
		if errors.Is(err, errNFChanged) {
			continue
		}
		if err != nil {
			return err
		}
		st.done(want, marks, anew)
		st.fixed, st.kept, st.vxlans = fixed, kept, slices.Clone(g.VXLANs)
		switch {
		case last:
			st.generation = 0
		case len(batch) > 0:
			st.generation = nextGeneration(gen)
		}
		if !anew {
			return nil
		}
		// How the kernel shows the new rules is how they have to look from now on.
		first, st.table = false, ""
		table, err := c.readTable(guardTable(st.device))
		if err == nil && !last {
			if gen, err = c.generation(); err == nil && gen != st.generation {
				err = errNFChanged
			}
		}
		if err == nil {
			st.table = table
			return nil
		}
		st.generation = 0
		if last || !errors.Is(err, errNFChanged) && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
}

// bound is the generation to which a transaction is bound.
func bound(gen uint32, last bool) uint32 {
	if last {
		return 0
	}
	return gen
}

// allElements are those that have to stand.
func allElements(elements, kept []guardElement) map[guardKey][16]byte {
	want := make(map[guardKey][16]byte, len(elements)+len(kept))
	for _, e := range kept {
		want[e.guardKey] = e.peer
	}
	for _, e := range elements {
		want[e.guardKey] = e.peer
	}
	return want
}

// keep is what stays of a dead daemon's elements: those of other peers, as far
// as they do not contradict what g wants.
func (g *Guard) keep(old, elements []guardElement, keep bool) (kept []guardElement) {
	if !keep {
		return nil
	}
	known := make(map[[16]byte]bool, len(g.Peers))
	for _, p := range g.Peers {
		known[p.ID] = true
	}
	outer := make(map[netip.Addr]bool) // that have a number
	for _, e := range elements {
		if e.set.isMap() {
			outer[e.from] = true
		}
	}
	for _, e := range old { // the maps come first
		if known[e.peer] || overlapping(e, elements) {
			continue
		}
		if e.set.isMap() {
			outer[e.from] = true
		}
		if e.set.marked() {
			if a, ok := netip.AddrFromSlice([]byte(e.head)); !ok || !outer[a] {
				continue
			}
		}
		kept = append(kept, e)
	}
	return kept
}

// number gives each outer address that is wanted a number, and leaves those that
// have one what they have. Numbers are not used again before all others were: a
// packet that was marked must not turn into another peer's.
func (st *guardState) number(want map[guardKey][16]byte) map[netip.Addr]uint32 {
	marks := make(map[netip.Addr]uint32)
	used := make(map[uint32]bool)
	for key := range want {
		if n, ok := st.marks[key.from]; ok && key.set.isMap() {
			marks[key.from] = n
			used[n] = true
		}
	}
	for key := range want {
		if !key.set.isMap() || marks[key.from] != 0 {
			continue
		}
		for n := uint32(0); n == 0; {
			st.next = (st.next + 1) % markRange
			if n = markBase | st.next; used[n] {
				n = 0
			} else {
				marks[key.from] = n
				used[n] = true
			}
		}
	}
	return marks
}

// change is the transaction from the elements that stand to the wanted ones, and
// whether it deletes any.
func (st *guardState) change(want map[guardKey][16]byte, marks map[netip.Addr]uint32) (batch []nfMessage, deletes bool) {
	table := guardTable(st.device)
	var gone, fresh [guardSets][]guardElement
	for key, peer := range st.elements {
		if now, ok := want[key]; !ok || now != peer {
			gone[key.set] = append(gone[key.set], guardElement{guardKey: key, peer: peer})
		}
	}
	for key, peer := range want {
		if now, ok := st.elements[key]; !ok || now != peer {
			fresh[key.set] = append(fresh[key.set], guardElement{guardKey: key, peer: peer})
		}
	}
	for s := range guardSets {
		deletes = deletes || len(gone[s]) > 0
		batch = append(batch, s.elementMessages(unix.NFT_MSG_DELSETELEM, table, gone[s], st.marks)...)
		batch = append(batch, s.elementMessages(unix.NFT_MSG_NEWSETELEM, table, fresh[s], marks)...)
	}
	return batch, deletes
}

// done takes over what a transaction has made.
func (st *guardState) done(want map[guardKey][16]byte, marks map[netip.Addr]uint32, anew bool) {
	if anew {
		clear(st.read)
		clear(st.drops)
	} else {
		for key, peer := range st.elements {
			if now, ok := want[key]; !ok || now != peer {
				delete(st.read, key)
			}
		}
	}
	st.elements, st.marks = want, marks
}

// fixed is everything of g that the rules are made of, to be compared.
func (g *Guard) fixed() string {
	f := *g
	f.Peers = nil
	return fmt.Sprintf("%+v", f)
}

// build is the transaction that puts the table in place of one that may be
// there.
func (g *Guard) build(want map[guardKey][16]byte, marks map[netip.Addr]uint32) ([]nfMessage, error) {
	table := guardTable(g.Device)
	batch := emptyTable(table)
	for _, r := range guardReasons {
		b := nfString(nil, unix.NFTA_OBJ_TABLE, table)
		b = nfString(b, unix.NFTA_OBJ_NAME, r)
		b = nfUint32(b, unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
		batch = append(batch, nfMessage{kind: unix.NFT_MSG_NEWOBJ, flags: unix.NLM_F_CREATE,
			attrs: nfNested(b, unix.NFTA_OBJ_DATA, nil), what: "adding the counter " + r})
	}
	var sorted [guardSets][]guardElement
	for _, key := range slices.SortedFunc(maps.Keys(want), guardKey.compare) {
		sorted[key.set] = append(sorted[key.set], guardElement{guardKey: key, peer: want[key]})
	}
	for s := range guardSets {
		m, err := s.declaration(table)
		if err != nil {
			return nil, err
		}
		batch = append(append(batch, m), s.elementMessages(unix.NFT_MSG_NEWSETELEM, table, sorted[s], marks)...)
	}
	chains, err := chainMessages(table, g.chains())
	return append(batch, chains...), err
}

// RemoveGuard removes the guard for a device, whoever has made it, and returns
// what was removed, in words. It is no error if there is none, or no nftables.
// The routes and links that it guards have to be gone.
func (k *Kernel) RemoveGuard(device string) (removed []string, err error) {
	if err := k.lock(); err != nil {
		return nil, err
	}
	defer k.mu.Unlock()
	return k.removeGuard(device)
}

// removeGuard does what RemoveGuard says. The caller holds k.mu.
func (k *Kernel) removeGuard(device string) (removed []string, err error) {
	found, err := k.removeTable(guardTable(device))
	if found {
		removed = append(removed, "nftables table inet "+guardTable(device))
	}
	if err != nil {
		return removed, fmt.Errorf("kernel: removing the guard for %s: %w", device, err)
	}
	if k.guard != nil && k.guard.device == device {
		k.guard = nil
	}
	return removed, nil
}
