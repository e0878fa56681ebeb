package membership

import (
	"bytes"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"
)

const (
	// maxRecords bounds the claims that a node keeps: a /8 of /24s, for both
	// families.
	maxRecords = 1 << 17
	// maxRecordsPerOwner bounds what a single broken node can fill. A healthy
	// one has one held claim per family and a few tombstones.
	maxRecordsPerOwner = 64
	// maxRecordsPerPrefix bounds what each change of one of them has to look at. A
	// prefix has one owner, and those that it had in the last lease times.
	maxRecordsPerPrefix = 256
)

// store is the merged set of claims, with the owner function's verdict on it,
// which is kept up by looking only at what a change can reach. It is not safe
// for concurrent use.
//
// Merging is a join: per key the higher version wins, of equal versions the
// larger bytes. So the result depends neither on order nor on repetition.
type store struct {
	claims map[Key]Claim
	// byOwner and byPrefix list the other half of the keys.
	byOwner  map[NodeID][]netip.Prefix
	byPrefix map[netip.Prefix][]NodeID
	// lengths counts byPrefix by prefix length, IPv4 first.
	lengths [2][129]int
	// digest is the exclusive or of the hashes of all records: equal for equal
	// stores, however they came to be.
	digest digests

	// groups is the verdict as of the last settle. Neither the slice nor what it
	// points to is ever changed: views share it.
	groups []*group
	// stale are the prefixes with changed claims since then.
	stale map[netip.Prefix]bool
	// touched are the owners whose claims or verdicts have changed since
	// takeTouched was called last.
	touched map[NodeID]bool
}

func newStore() *store {
	return &store{
		claims: make(map[Key]Claim), byOwner: make(map[NodeID][]netip.Prefix), byPrefix: make(map[netip.Prefix][]NodeID),
		stale: make(map[netip.Prefix]bool), touched: make(map[NodeID]bool),
	}
}

func claimHash(c Claim) uint64 {
	h := fnv.New64a()
	var buf [claimLen]byte
	h.Write(appendClaim(buf[:0], c))
	return h.Sum64()
}

// newer reports whether a replaces b under the same key.
func newer(a, b Claim) bool {
	if a.Version != b.Version {
		return a.Version > b.Version
	}
	var x, y [claimLen]byte
	return bytes.Compare(appendClaim(x[:0], a), appendClaim(y[:0], b)) > 0
}

// merge takes a claim in and reports whether it changed anything. wall is the
// cluster's time. The only error is errRecordFull.
func (s *store) merge(c Claim, wall time.Time) (changed bool, err error) {
	if c.expired(wall) {
		return false, nil
	}
	old, known := s.claims[c.Key]
	if known {
		if !newer(c, old) {
			return false, nil
		}
		s.digest.toggle(old)
	} else {
		if len(s.claims) >= maxRecords || len(s.byOwner[c.Owner]) >= maxRecordsPerOwner || len(s.byPrefix[c.Prefix]) >= maxRecordsPerPrefix {
			return false, errRecordFull
		}
		s.byOwner[c.Owner] = append(s.byOwner[c.Owner], c.Prefix)
		if len(s.byPrefix[c.Prefix]) == 0 {
			s.lengthsOf(c.Prefix)[c.Prefix.Bits()]++
		}
		s.byPrefix[c.Prefix] = append(s.byPrefix[c.Prefix], c.Owner)
	}
	s.claims[c.Key] = c
	s.digest.toggle(c)
	s.stale[c.Prefix] = true
	return true, nil
}

func (s *store) lengthsOf(p netip.Prefix) *[129]int {
	if p.Addr().Is4() {
		return &s.lengths[0]
	}
	return &s.lengths[1]
}

// expire removes records that are void and reports whether there were any.
func (s *store) expire(wall time.Time) bool {
	any := false
	for _, c := range s.claims {
		if c.expired(wall) {
			any = true
			s.remove(c)
		}
	}
	return any
}

func (s *store) remove(c Claim) {
	s.digest.toggle(c)
	delete(s.claims, c.Key)
	s.byOwner[c.Owner] = without(s.byOwner[c.Owner], c.Prefix)
	if len(s.byOwner[c.Owner]) == 0 {
		delete(s.byOwner, c.Owner)
	}
	s.byPrefix[c.Prefix] = without(s.byPrefix[c.Prefix], c.Owner)
	if len(s.byPrefix[c.Prefix]) == 0 {
		delete(s.byPrefix, c.Prefix)
		s.lengthsOf(c.Prefix)[c.Prefix.Bits()]--
	}
	s.stale[c.Prefix] = true
}

// without takes x out of a list without order.
func without[T comparable](list []T, x T) []T {
	if i := slices.Index(list, x); i >= 0 {
		list[i] = list[len(list)-1]
		list = list[:len(list)-1]
	}
	return list
}

func (c Claim) expired(wall time.Time) bool {
	return c.Expiry != 0 && wall.Unix() >= 0 && uint64(wall.Unix()) >= c.Expiry
}

// owners is the verdict on all claims, sorted by prefix and rank.
func (s *store) owners() []ClaimInfo {
	s.settle()
	return flatten(s.groups)
}

func flatten(groups []*group) []ClaimInfo {
	n := 0
	for _, g := range groups {
		n += len(g.claims)
	}
	out := make([]ClaimInfo, 0, n)
	for _, g := range groups {
		out = append(out, g.claims...)
	}
	return out
}

// on returns the verdict on the claims on p, the strongest first.
func (s *store) on(p netip.Prefix) []ClaimInfo {
	s.settle()
	if i, ok := slices.BinarySearchFunc(s.groups, p, (*group).compare); ok {
		return s.groups[i].claims
	}
	return nil
}

// overlapping returns the groups of all claimed prefixes that overlap p.
func (s *store) overlapping(p netip.Prefix) []*group {
	s.settle()
	var out []*group
	for q := range s.covering(p) {
		if i, ok := slices.BinarySearchFunc(s.groups, q, (*group).compare); ok {
			out = append(out, s.groups[i])
		}
	}
	lo, hi := within(s.groups, p)
	return append(out, s.groups[lo:hi]...)
}

// accepted returns the prefixes that a node owns, IPv4 first.
func (s *store) accepted(owner NodeID) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s.byOwner[owner] {
		for _, c := range s.on(p) {
			if c.Accepted { // only one of a prefix is
				if c.Owner == owner {
					out = append(out, p)
				}
				break
			}
		}
	}
	slices.SortFunc(out, comparePrefix)
	return out
}

// takeTouched returns the owners that a view has to look at again.
func (s *store) takeTouched() map[NodeID]bool {
	s.settle()
	t := s.touched
	s.touched = make(map[NodeID]bool)
	return t
}
