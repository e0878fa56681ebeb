package membership

import (
	"bytes"
	"hash/fnv"
	"time"
)

const (
	// maxRecords bounds the claims that a node keeps: a /8 of /24s, for both
	// families.
	maxRecords = 1 << 17
	// maxRecordsPerOwner bounds what a single broken node can fill. A healthy
	// one has one held claim per family and a few tombstones.
	maxRecordsPerOwner = 64
)

// store is the merged set of claims. It is not safe for concurrent use.
//
// Merging is a join: per key the higher version wins, of equal versions the
// larger bytes. So the result depends neither on order nor on repetition.
type store struct {
	claims   map[Key]Claim
	perOwner map[NodeID]int
	// digest is the exclusive or of the hashes of all records: equal for equal
	// stores, however they came to be.
	digest uint64
	// judged caches the owner function's verdict on claims. The slice is never
	// changed, so that views share it; a change of claims makes a new one.
	judged []ClaimInfo
}

func newStore() *store {
	return &store{claims: make(map[Key]Claim), perOwner: make(map[NodeID]int)}
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

// merge takes a claim in and reports whether it changed anything. The only
// error is errRecordFull.
func (s *store) merge(c Claim, now time.Time) (changed bool, err error) {
	if c.expired(now) {
		return false, nil
	}
	old, known := s.claims[c.Key]
	if known {
		if !newer(c, old) {
			return false, nil
		}
		s.digest ^= claimHash(old)
	} else {
		if len(s.claims) >= maxRecords || s.perOwner[c.Owner] >= maxRecordsPerOwner {
			return false, errRecordFull
		}
		s.perOwner[c.Owner]++
	}
	s.claims[c.Key] = c
	s.digest ^= claimHash(c)
	s.judged = nil
	return true, nil
}

// expire removes records that are void and reports whether there were any.
func (s *store) expire(now time.Time) bool {
	any := false
	for k, c := range s.claims {
		if c.expired(now) {
			any = true
			s.judged = nil
			s.digest ^= claimHash(c)
			delete(s.claims, k)
			if s.perOwner[k.Owner]--; s.perOwner[k.Owner] == 0 {
				delete(s.perOwner, k.Owner)
			}
		}
	}
	return any
}

func (c Claim) expired(now time.Time) bool {
	return c.Expiry != 0 && now.Unix() >= 0 && uint64(now.Unix()) >= c.Expiry
}

// owners is the owner function's verdict on all claims, sorted by prefix and
// rank. The caller does not change it.
func (s *store) owners() []ClaimInfo {
	if s.judged == nil {
		s.judged = judge(s.claims)
	}
	return s.judged
}
