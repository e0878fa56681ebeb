package probe

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/overlayd/overlayd/internal/path"
)

// RoundTripBounds are the upper bounds of the buckets in which round trips are counted,
// from those of one machine to those around the world. What takes longer is in none.
func RoundTripBounds() []time.Duration { return slices.Clone(roundTripBounds[:]) }

var roundTripBounds = [...]time.Duration{
	50 * time.Microsecond, 100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond,
	50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second,
}

// RoundTrips is how long probes by one kind of path took to be answered.
type RoundTrips struct {
	Kind  path.Kind
	Count uint64
	Sum   time.Duration
	// Buckets has, for each of RoundTripBounds, how many took at most as long.
	Buckets []uint64
}

// roundTrips counts answered probes by kind of path: those of userspace each, those of
// kernel paths by rounds. The zero value is ready.
type roundTrips [path.Direct + 1]struct {
	sum atomic.Int64
	// in has how many fell between a bound and the one before; the last is beyond all.
	in [len(roundTripBounds) + 1]atomic.Uint64
}

func (r *roundTrips) observe(k path.Kind, rtt time.Duration) {
	i, _ := slices.BinarySearch(roundTripBounds[:], rtt)
	r[k].in[i].Add(1)
	r[k].sum.Add(int64(rtt))
}

// RoundTrips returns how long answered probes took, by path.Kind.
func (p *Prober) RoundTrips() []RoundTrips {
	out := make([]RoundTrips, len(p.trips))
	for k := range p.trips {
		t := &p.trips[k]
		o := &out[k]
		o.Kind, o.Sum = path.Kind(k), time.Duration(t.sum.Load())
		for i := range t.in {
			o.Count += t.in[i].Load()
			if i < len(roundTripBounds) {
				o.Buckets = append(o.Buckets, o.Count)
			}
		}
	}
	return out
}
