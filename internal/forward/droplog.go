package forward

import (
	"context"
	"log/slog"
	"time"
)

// The pace of the drop log: no reason is logged more often than once per
// dropLogInterval, and above debug level no more than once per
// dropLogInfoInterval, so that steady noise does not fill a disk.
const (
	dropLogInterval     = time.Second
	dropLogInfoInterval = time.Minute
)

// logDrops reports counters that have risen until ctx ends. The loops only
// count; all that is ever logged about a packet is logged here. refresh is called
// before the counters are read.
func logDrops(ctx context.Context, d *Drops, log *slog.Logger, refresh func()) {
	var last [reasonCount]uint64
	var lastInfo [reasonCount]time.Time
	tick := time.NewTicker(dropLogInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			refresh()
			for r := None + 1; r < reasonCount; r++ {
				total := d.Count(r)
				if total == last[r] {
					continue
				}
				level := slog.LevelDebug
				// Multicast is what every kernel sends into a fresh interface:
				// nothing is wrong when it is dropped.
				noise := r == TxMulticast || r == RxMulticast
				if !noise && (lastInfo[r].IsZero() || now.Sub(lastInfo[r]) >= dropLogInfoInterval) {
					level = slog.LevelInfo
					lastInfo[r] = now
				}
				log.Log(ctx, level, "packets dropped", "reason", r.String(), "count", total-last[r], "total", total)
				last[r] = total
			}
		}
	}
}
