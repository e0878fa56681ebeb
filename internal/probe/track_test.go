package probe

import (
	"slices"
	"testing"
	"time"
)

// drive follows a track through what happens in a list of seconds: probes are
// sent when they are due and numbered from 1, answers come as told.
type drive struct {
	track track
	now   time.Duration
	sizes []int // of the probes, in order
}

func newDrive(fullSize int) *drive {
	d := &drive{}
	d.track.start(epoch, fullSize, min(fullSize, 1280))
	d.to(0)
	return d
}

// to goes on to time end.
func (d *drive) to(end time.Duration) {
	for d.now = min(d.now, end); ; d.now = d.track.wake().Sub(epoch) {
		now := epoch.Add(d.now)
		if due, _ := d.track.tick(now, interval); due {
			size := d.track.wants(now)
			d.sizes = append(d.sizes, size)
			d.track.send(now, uint64(len(d.sizes)), size)
		}
		if d.track.wake().Sub(epoch) > end {
			d.now = end
			return
		}
	}
}

// answer has probe n answered at time at.
func (d *drive) answer(at time.Duration, n int) bool {
	d.to(at)
	_, _, ok := d.track.answer(epoch.Add(at), uint64(n), d.sizes[n-1], interval)
	return ok
}

const second = time.Second

// A late answer takes back only the misses that it explains.
func TestLateAnswerKeepsYoungerMisses(t *testing.T) {
	d := newDrive(0) // probes at 0, 1, 2 s
	if !d.answer(2500*time.Millisecond, 1) {
		t.Fatal("refused")
	}
	if d.track.reach != Up || d.track.misses != 1 || !d.track.firstMiss.Equal(epoch.Add(second)) {
		t.Errorf("%v with %d misses since %v, want probe 2 to count", d.track.reach, d.track.misses, d.track.firstMiss)
	}
	d.to(4*second - 1)
	if d.track.reach != Up {
		t.Errorf("%v before the third miss", d.track.reach)
	}
	d.to(4 * second)
	if d.track.reach != Down {
		t.Errorf("%v after the third miss", d.track.reach)
	}
}

// An answer that is older than three misses does not bring a peer back.
func TestVeryLateAnswerProvesNothing(t *testing.T) {
	d := newDrive(0) // probes at 0, 1, 2, 4 s; down at 3 s
	d.to(5500 * time.Millisecond)
	if len(d.track.sent) != 4 || d.track.misses != 4 {
		t.Fatalf("%d probes, %d misses", len(d.track.sent), d.track.misses)
	}
	if !d.answer(5600*time.Millisecond, 1) || d.track.reach != Down {
		t.Errorf("probe 1 answered: %v with %d misses", d.track.reach, d.track.misses)
	}
	if !d.answer(5700*time.Millisecond, 2) || d.track.reach != Up || d.track.misses != 2 {
		t.Errorf("probe 2 answered: %v with %d misses", d.track.reach, d.track.misses)
	}
	if d.answer(5800*time.Millisecond, 2) {
		t.Error("probe 2 answered twice")
	}
}

// A probe that is lost while a younger one, here a ping, was answered is a lost
// packet, not a silent peer.
func TestMissOlderThanProofDoesNotCount(t *testing.T) {
	d := newDrive(0)
	d.to(500 * time.Millisecond)
	d.track.proof(epoch.Add(500*time.Millisecond), epoch.Add(400*time.Millisecond), second/10)
	d.to(1500 * time.Millisecond)
	if d.track.reach != Up || d.track.misses != 0 || len(d.sizes) != 2 {
		t.Errorf("%v with %d misses after %d probes", d.track.reach, d.track.misses, len(d.sizes))
	}
	// And a proof older than the last one takes nothing back.
	d.to(2500 * time.Millisecond)
	d.track.proof(epoch.Add(2500*time.Millisecond), epoch.Add(300*time.Millisecond), second)
	if d.track.misses != 1 {
		t.Errorf("%d misses after an old proof, want 1", d.track.misses)
	}
}

func TestFullSizeProbes(t *testing.T) {
	check := func(t *testing.T, d *drive, want ...int) {
		t.Helper()
		if !slices.Equal(d.sizes, want) {
			t.Fatalf("sizes %v, want %v", d.sizes, want)
		}
	}
	const ms = time.Millisecond
	t.Run("silent", func(t *testing.T) {
		d := newDrive(1400)
		d.to(20 * second) // not even where the next full-size one is due
		check(t, d, 1400, 72, 72, 72, 72, 72, 72, 72, 72, 72, 72, 72)
		d.answer(20100*ms, 12)
		if d.track.size.misses != 0 {
			t.Errorf("%d confirmed losses of full size", d.track.size.misses)
		}
		d.to(22 * second)
		check(t, d, 1400, 72, 72, 72, 72, 72, 72, 72, 72, 72, 72, 72, 1400)
	})
	t.Run("lost, small ones pass", func(t *testing.T) {
		d := newDrive(1400)
		for n := range 3 {
			at := time.Duration(n) * 1100 * ms // full at 0, lost; small at 1 s; full at 1.1 s
			if d.track.size.searching() {
				t.Errorf("searching after %d losses", n)
			}
			d.answer(at+1100*ms, 2*n+2)
		}
		if d.track.size.mtu != 1280 || d.track.reach != Up {
			t.Errorf("MTU %d, %v", d.track.size.mtu, d.track.reach)
		}
		d.to(3300 * ms)
		check(t, d, 1400, 72, 1400, 72, 1400, 72, 1340)
	})
	t.Run("lost because an older small one was lost too", func(t *testing.T) {
		d := newDrive(1400)
		d.to(2 * second) // full lost, small lost, small sent
		d.answer(2100*ms, 3)
		check(t, d, 1400, 72, 72)
		if d.track.size.misses != 0 || d.track.reach != Up {
			t.Errorf("%d confirmed losses, %v", d.track.size.misses, d.track.reach)
		}
		d.to(4 * second) // nothing was learned: once more
		check(t, d, 1400, 72, 72, 1400)
	})
	t.Run("the small one is answered late", func(t *testing.T) {
		d := newDrive(1400)
		d.answer(2500*ms, 2) // a second small one is under way
		if d.track.size.misses != 1 {
			t.Errorf("%d confirmed losses", d.track.size.misses)
		}
	})
	t.Run("lost, a ping passes meanwhile", func(t *testing.T) {
		d := newDrive(1400)
		d.track.proof(epoch.Add(500*ms), epoch.Add(400*ms), second/10)
		d.to(second)
		if d.track.size.misses != 1 || d.track.misses != 0 {
			t.Errorf("%d confirmed losses, %d misses", d.track.size.misses, d.track.misses)
		}
	})
	t.Run("answered late, before the small one", func(t *testing.T) {
		d := newDrive(1400)
		d.answer(1050*ms, 1)
		d.answer(1100*ms, 2)
		if d.track.size.misses != 0 {
			t.Errorf("%d confirmed losses", d.track.size.misses)
		}
	})
	t.Run("answered late", func(t *testing.T) {
		d := newDrive(1400)
		d.answer(1100*ms, 2)
		d.answer(1200*ms, 1)
		if d.track.size.misses != 0 {
			t.Errorf("%d confirmed losses", d.track.size.misses)
		}
	})
}

// A size that was given up is proven by a late answer, also when the search is
// two steps further, and the sizes below it are tried anew.
func TestLateAnswerInSearch(t *testing.T) {
	const ms = time.Millisecond
	d := newDrive(1400)
	for n := range 5 { // 3 of full size, 2 of 1340: lost
		d.answer(time.Duration(n+1)*1100*ms, 2*n+2)
	}
	if z := &d.track.size; z.mtu != 1280 || z.target() != 1310 {
		t.Fatalf("%+v", *z)
	}
	if !d.answer(5600*ms, 9) || d.sizes[8] != 1340 {
		t.Fatalf("sizes %v", d.sizes)
	}
	if z := &d.track.size; z.mtu != 1340 || z.target() != 1370 {
		t.Errorf("after the late answer: %+v", *z)
	}
	// The one of 1310 bytes that is under way is of no interest any more.
	d.to(6600 * ms)
	if z := &d.track.size; d.sizes[10] != 1310 || d.sizes[11] != 1370 || z.misses != 0 || d.track.misses != 0 {
		t.Errorf("sizes %v, after the loss of one that is known to pass: %+v", d.sizes, *z)
	}
}

// A ping may be what confirms a loss, before or after the size probe counts as
// unanswered. Either way the change is reported.
func TestPingConfirmsLoss(t *testing.T) {
	const ms = time.Millisecond
	ping := func(d *drive, at time.Duration) (changed bool) {
		d.to(at)
		return d.track.proof(epoch.Add(at), epoch.Add(at-150*ms), 150*ms)
	}
	d := newDrive(1400)
	for _, at := range []time.Duration{500 * ms, 1500 * ms, 2500 * ms} {
		if ping(d, at) != (at == 500*ms) { // up
			t.Errorf("the ping at %v", at)
		}
	}
	d.to(3*second - 1)
	if _, changed := d.track.tick(epoch.Add(3*second), interval); !changed || d.track.size.mtu != 1280 {
		t.Errorf("at the third loss: changed %v, MTU %d, probes %v", changed, d.track.size.mtu, d.sizes)
	}

	d = newDrive(1400)
	d.answer(1200*ms, 2)
	d.answer(2300*ms, 4) // full is lost for the third time at 3.3 s
	if changed := ping(d, 3400*ms); !changed || d.track.size.mtu != 1280 {
		t.Errorf("after the third loss: changed %v, MTU %d, probes %v", changed, d.track.size.mtu, d.sizes)
	}
}
