package probe

import (
	"slices"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/path"
)

func TestRoundTrips(t *testing.T) {
	p := New(Config{})
	for _, d := range []time.Duration{0, 50 * time.Microsecond, 51 * time.Microsecond, time.Millisecond, time.Second, time.Second + 1, time.Hour} {
		p.trips.observe(path.KernelVXLAN, d)
	}
	all := p.RoundTrips()
	if len(all) != 3 || len(RoundTripBounds()) != len(roundTripBounds) || !slices.IsSorted(RoundTripBounds()) {
		t.Fatalf("%d kinds, bounds %v", len(all), RoundTripBounds())
	}
	for _, r := range all {
		switch {
		case len(r.Buckets) != len(roundTripBounds):
			t.Errorf("%v: %d buckets", r.Kind, len(r.Buckets))
		case r.Kind != path.KernelVXLAN:
			if r.Count != 0 || r.Sum != 0 {
				t.Errorf("%v: %+v", r.Kind, r)
			}
		default:
			want := []uint64{2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5}
			if r.Count != 7 || !slices.Equal(r.Buckets, want) || r.Sum != time.Hour+2*time.Second+time.Millisecond+101*time.Microsecond+1 {
				t.Errorf("%+v, want buckets %v", r, want)
			}
		}
	}
}

func BenchmarkObserve(b *testing.B) {
	var trips roundTrips
	for b.Loop() {
		trips.observe(path.Direct, 300*time.Microsecond)
	}
}
