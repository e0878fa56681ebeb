package membership

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestHybridClock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c hybridClock
		var last Stamp
		now := simEpoch
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			// The wall clock goes anywhere: back, ahead, to 1970, before 1970.
			switch rapid.IntRange(0, 4).Draw(t, "clock") {
			case 0:
				now = now.Add(time.Duration(rapid.Int64Range(-int64(48*time.Hour), int64(48*time.Hour)).Draw(t, "by")))
			case 1:
				now = time.Unix(rapid.Int64Range(-10, 10).Draw(t, "at"), 0)
			}
			if rapid.Bool().Draw(t, "saw") {
				ahead := time.Duration(rapid.Int64Range(-int64(72*time.Hour), int64(72*time.Hour)).Draw(t, "ahead"))
				s := stampOf(now.Add(ahead)) + Stamp(rapid.Uint64Range(0, 1<<stampCounterBits-1).Draw(t, "counter"))
				before := c.last
				c.saw(s, now)
				if ahead <= maxStampAhead-time.Millisecond {
					last = max(last, s)
				} else if ahead > maxStampAhead && now.Unix() > 0 && c.last != before {
					t.Fatalf("a stamp %v ahead moved the clock", ahead)
				}
				if c.last < before {
					t.Fatal("the clock went back")
				}
				continue
			}
			s := c.next(now)
			if s <= last {
				t.Fatalf("stamp %x after %x", s, last)
			}
			if s < stampOf(now) {
				t.Fatalf("stamp %v is behind the wall clock %v", s.Time(), now)
			}
			last = s
		}
	})
}

func TestHybridClockCases(t *testing.T) {
	at := func(s Stamp) time.Time { return s.Time().UTC() }
	var c hybridClock
	first := c.next(simEpoch)
	if !at(first).Equal(simEpoch) {
		t.Errorf("first stamp: %v", at(first))
	}
	// A clock set back by years: stamps go on, close to where they were.
	for _, now := range []time.Time{simEpoch, simEpoch.Add(-time.Hour), time.Unix(0, 0), time.Unix(-1e6, 0), {}} {
		s := c.next(now)
		if s <= first || at(s).Sub(simEpoch) > time.Millisecond {
			t.Errorf("at %v: stamp %x after %x", now, s, first)
		}
		first = s
	}
	// 65,536 stamps in one millisecond run into the next one.
	for range 1 << stampCounterBits {
		s := c.next(simEpoch)
		if s != first+1 {
			t.Fatalf("stamp %x after %x", s, first)
		}
		first = s
	}
	if got := at(first).Sub(simEpoch); got != time.Millisecond {
		t.Errorf("after 65,536 stamps at once: %v ahead", got)
	}
	// A fresh clock at 1970: stamps are small and valid, and a node of today
	// does not drag it along; an hour's difference does.
	c = hybridClock{}
	if s := c.next(time.Unix(0, 0)); s == 0 {
		t.Error("a stamp of zero means none")
	}
	c.saw(stampOf(simEpoch), time.Unix(0, 0))
	if s := c.next(time.Unix(0, 0)); at(s).Year() != 1970 {
		t.Errorf("dragged to %v", at(s))
	}
	c = hybridClock{}
	c.saw(stampOf(simEpoch.Add(time.Hour)), simEpoch)
	if s := c.next(simEpoch); at(s).Before(simEpoch.Add(time.Hour)) {
		t.Errorf("stamp %v after one an hour ahead was seen", at(s))
	}
	// At the edge: exactly a day ahead counts, a millisecond more does not.
	c = hybridClock{}
	c.saw(stampOf(simEpoch.Add(maxStampAhead+time.Millisecond)), simEpoch)
	if c.last != 0 {
		t.Error("a stamp more than a day ahead moved the clock")
	}
	c.saw(stampOf(simEpoch.Add(maxStampAhead)), simEpoch)
	if c.last == 0 {
		t.Error("a stamp a day ahead did not move the clock")
	}
	// The largest stamp there is: it is taken in and moves nothing.
	c.saw(1<<64-1, simEpoch)
	if s := c.next(simEpoch.Add(48 * time.Hour)); at(s).Sub(simEpoch) > 49*time.Hour {
		t.Errorf("stamp %v", at(s))
	}
}
