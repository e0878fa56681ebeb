//go:build !race

package membership

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestSyncWithoutState: a full exchange that ended well, but whose state was not
// seen, since it was dropped or was none, lets no claim become held.
func TestSyncWithoutState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, lan)
		defer c.stopAll()
		a, b := c.add(nil), c.add(seedsOf(1))
		c.start(a)
		c.wait("the first lease", time.Minute, func() bool { return allHeld([]*node{a}) })
		c.start(b)
		c.wait("the second claim", time.Minute, func() bool { return b.leaser.slots[0].state == slotTentative })
		s := b.leaser.slots[0]
		for _, seen := range []bool{false, true} {
			// b's goroutine waits, as synctest.Wait in c.wait has seen to.
			s.wantSync = true
			b.leaser.syncStarted()
			b.syncing, b.syncFrom, b.syncSeen = true, a.ID(), seen
			b.inbox.put(syncDone{nil})
			synctest.Wait()
			if s.syncDone != seen || b.syncing {
				t.Errorf("state seen: %v; counts: %v", seen, s.syncDone)
			}
		}
	})
}
