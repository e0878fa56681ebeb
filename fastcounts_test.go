package overlayd

import (
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/path"
)

// TestArrivals: a frame of ours that the guard has counted and we have not yet is never
// told as data, and what is told never becomes less.
func TestArrivals(t *testing.T) {
	var a arrivals
	var sum pathCounts
	now := time.Unix(1000, 0)
	for i, tt := range []struct {
		after time.Duration
		read  uint64 // by VXLAN: the guard's, less our frames
		want  uint64
	}{
		{0, 5, 0},                              // five, of which nothing is known before
		{settleTime, 5, 5},                     // they are still there
		{settleTime, 6, 5},                     // data, or a frame of ours?
		{settleTime, 5, 5},                     // it was a frame
		{settleTime, 8, 5},                     //
		{settleTime / 2, 9, 5},                 // too soon to tell
		{settleTime / 2, 9, 8},                 // the three were data
		{settleTime, 7, 8},                     // one too few, for a moment: counters do not go back
		{settleTime, 9, 8},                     //
		{settleTime, 9, 9},                     //
		{10 * settleTime, 1 << 40, 9},          // a long silence, and then much
		{settleTime, 1<<40 + 1, 1 << 40},       //
		{settleTime, 1<<40 + 1, 1<<40 + 1},     //
		{settleTime, 0, 1<<40 + 1},             // a guard that was set up anew
		{settleTime, 1<<40 + 2, 1<<40 + 1},     //
		{settleTime, 1<<40 + 2, 1<<40 + 2},     //
		{settleTime - 1, 1<<40 + 3, 1<<40 + 2}, //
		{settleTime - 1, 1<<40 + 3, 1<<40 + 2}, // the least since the last time that was settled
		{2 * settleTime, 1<<40 + 3, 1<<40 + 3}, //
	} {
		now = now.Add(tt.after)
		var read pathCounts
		read[path.KernelVXLAN].RxPackets, read[path.KernelVXLAN].RxBytes = tt.read, 100*tt.read
		a.take(now, &read, &sum)
		if got := sum[path.KernelVXLAN]; got.RxPackets != tt.want || got.RxBytes != 100*tt.want || sum[path.Direct].RxPackets != 0 {
			t.Errorf("step %d: %+v, want %d packets", i, got, tt.want)
		}
	}
}
