package forward

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// How many ICMP errors are sent: per second and at once, over all and to one
// destination. RFC 4443 section 2.4(f) asks for a limit and names 10/s for a
// small node; Linux allows 1000/s over all and 1/s to one (icmp(7)).
const (
	icmpInterval     = time.Second / 100
	icmpBurst        = 50
	icmpDestInterval = time.Second / 20
	icmpDestBurst    = 10
)

// bucket is a token bucket in one word: the time, in nanoseconds of any clock,
// at which it would be full again (the "theoretical arrival time" of GCRA,
// ITU-T I.371). The zero value is full.
type bucket struct{ tat atomic.Int64 }

// allow takes a token if there is one at time now.
func (b *bucket) allow(now int64, interval time.Duration, burst int) bool {
	for {
		old := b.tat.Load()
		t := max(old, now)
		if t-now > int64(interval)*int64(burst-1) {
			return false
		}
		if b.tat.CompareAndSwap(old, t+int64(interval)) {
			return true
		}
	}
}

// icmpLimiter limits ICMP errors over all and per destination, so that one
// noisy container cannot use up what others need. Destinations share a fixed
// number of buckets by a keyed hash.
type icmpLimiter struct {
	all  bucket
	seed maphash.Seed
	dest [256]bucket
}

func (l *icmpLimiter) allow(now int64, dst netip.Addr) bool {
	d := &l.dest[maphash.Comparable(l.seed, dst)%uint64(len(l.dest))]
	return d.allow(now, icmpDestInterval, icmpDestBurst) && l.all.allow(now, icmpInterval, icmpBurst)
}
