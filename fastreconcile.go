package overlayd

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// reconcile puts back what somebody else has taken or changed. It reports whether the
// peers are to be looked at again, and whether anything may have changed in the kernel.
func (f *fastPaths) reconcile(held []netip.Prefix, now time.Time) (again, changed bool) {
	if f == nil || f.fast == nil {
		return false, false
	}
	switch {
	case f.guard == nil:
		again = now.Sub(f.triedAt) >= mendEvery
	default:
		if stands, err := f.k.CheckGuard(); !stands {
			f.guard = nil // setGuard sets it again, and finds out whether that is possible
			what := "somebody has changed it"
			if err != nil {
				what = err.Error()
			}
			f.say("the guard of the kernel paths is set again", what)
			f.setGuard(held, f.keeping(now))
			again = true
		}
	}
	if f.leftForGood(now) {
		again = true
	}
	if f.rule(held, now) {
		again = true
	}
	if !f.syncedAt.IsZero() && f.adopted != nil && !f.keeping(now) {
		again = true // what is left of a dead daemon goes
	}
	for a, h := range f.hops {
		if h.Asking { // the kernel may have been told by now
			delete(f.hops, a)
			again = true
		}
	}
	broken := f.upErr != nil || f.result.Err != nil || len(f.result.Peers) > 0
	if !f.noticed.Swap(false) && now.Sub(f.readAt) < readAllEvery && !(broken && now.Sub(f.triedAt) >= mendEvery) {
		return again, false
	}
	f.readAt, f.triedAt = now, now
	f.hopsOld = true
	repaired, res := f.fast.Check()
	f.settle(res)
	if f.upErr != nil && f.guard != nil {
		f.setUp(true)
	}
	if n := len(repaired); n > 0 {
		what := strings.Join(repaired[:min(n, 3)], "; ")
		if n > 3 {
			what += fmt.Sprintf("; and %d things more", n-3)
		}
		f.say("kernel paths were changed by somebody else, and are put back", what)
	}
	f.setLinks(held)
	return true, true
}

// say logs what somebody else is at fault for, each thing at most once a minute.
func (f *fastPaths) say(text, what string) {
	now := time.Now()
	if now.Sub(f.said[what]) < time.Minute {
		return
	}
	if len(f.said) > 1000 {
		clear(f.said)
	}
	f.said[what] = now
	f.n.log.Warn(text, "what", what)
}
