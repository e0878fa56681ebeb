package probe

import (
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
	d.track.start(epoch, fullSize)
	d.to(0)
	return d
}

// to goes on to time end.
func (d *drive) to(end time.Duration) {
	for d.now = min(d.now, end); ; d.now = d.track.wake().Sub(epoch) {
		now := epoch.Add(d.now)
		if due, _ := d.track.tick(now, interval); due {
			full, size := d.track.wantsFull(now), smallProbe
			if full {
				size = d.track.fullSize
			}
			d.sizes = append(d.sizes, size)
			d.track.send(now, uint64(len(d.sizes)), size, full)
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
		if len(d.sizes) != len(want) {
			t.Fatalf("sizes %v, want %v", d.sizes, want)
		}
		for i := range want {
			if d.sizes[i] != want[i] {
				t.Fatalf("sizes %v, want %v", d.sizes, want)
			}
		}
	}
	t.Run("silent", func(t *testing.T) {
		d := newDrive(1400)
		d.to(20 * second) // not even where the next full-size one is due
		check(t, d, 1400, 72, 72, 72, 72, 72, 72, 72, 72, 72, 72, 72)
		d.answer(20100*time.Millisecond, 12)
		if d.track.fullMisses != 0 {
			t.Errorf("%d confirmed losses of full size", d.track.fullMisses)
		}
		d.to(22 * second)
		check(t, d, 1400, 72, 72, 72, 72, 72, 72, 72, 72, 72, 72, 72, 1400)
	})
	t.Run("lost, small ones pass", func(t *testing.T) {
		d := newDrive(1400)
		for n := range 3 {
			at := time.Duration(n) * 3 * second // full at 0, lost; small at 1 s; full at 3 s
			if d.track.smallOnly() {
				t.Errorf("small only after %d losses", n)
			}
			d.answer(at+1100*time.Millisecond, 2*n+2)
		}
		check(t, d, 1400, 72, 1400, 72, 1400, 72)
		if !d.track.smallOnly() || d.track.reach != Up {
			t.Errorf("small only: %v, %v", d.track.smallOnly(), d.track.reach)
		}
	})
	t.Run("lost because an older small one was lost too", func(t *testing.T) {
		d := newDrive(1400)
		d.to(2 * second) // full lost, small lost, small sent
		d.answer(2100*time.Millisecond, 3)
		check(t, d, 1400, 72, 72)
		if d.track.fullMisses != 0 || d.track.reach != Up {
			t.Errorf("%d confirmed losses, %v", d.track.fullMisses, d.track.reach)
		}
	})
}
