package membership

import (
	"testing"
	"time"
)

func TestElector(t *testing.T) {
	const wait = 5 * time.Second
	low, self, high := testID(1), testID(2), testID(3)
	after := func(d time.Duration) time.Time { return simEpoch.Add(d) }
	for _, tc := range []struct {
		name   string
		lone   bool
		listed bool
		at     time.Duration // since the start
		others []candidate
		first  bool
		next   time.Duration // since the start
	}{
		{"lone, at once", true, false, 0, nil, true, -1},
		{"lone, another is there", true, false, 0, []candidate{{low, false, true}}, true, -1},
		{"listed, alone, at once", false, true, 0, nil, false, wait},
		{"listed, alone, not yet", false, true, wait - 1, nil, false, wait},
		{"listed, alone, in the end", false, true, wait, nil, true, -1},
		{"not listed, alone", false, false, wait, nil, false, 2 * wait},
		{"not listed, the others neither", false, false, 3 * wait, []candidate{{high, false, false}}, false, 4 * wait},
		{"listed, the lowest", false, true, wait, []candidate{{high, false, true}}, true, -1},
		{"listed, the lowest, not yet", false, true, wait - 1, []candidate{{high, false, true}}, false, wait},
		{"listed, not the lowest", false, true, wait, []candidate{{high, false, true}, {low, false, true}}, false, wait + wait/5},
		{"listed, the lowest is not listed", false, true, wait, []candidate{{low, false, false}}, true, -1},
		{"somebody holds the settings", false, true, wait, []candidate{{high, true, false}}, false, 2 * wait},
		{"somebody among others holds the settings", false, true, 10 * wait, []candidate{{low, false, true}, {high, true, true}}, false, 11 * wait},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := elector{id: self, wait: wait, lone: tc.lone, started: simEpoch}
			first, next := e.decide(after(tc.at), tc.listed, tc.others)
			if first != tc.first {
				t.Errorf("first %v", first)
			}
			if want := after(tc.next); tc.next < 0 && !next.IsZero() || tc.next >= 0 && !next.Equal(want) {
				t.Errorf("next at %v, want %v", next.Sub(simEpoch), tc.next)
			}
		})
	}
	t.Run("without seeds, back after it left", func(t *testing.T) {
		for _, tc := range []struct {
			at     time.Duration
			others []candidate
			first  bool
		}{
			{wait - 1, []candidate{{high, false, false}}, false},
			{wait, []candidate{{high, false, false}}, true},
			{wait, []candidate{{low, false, false}}, true},
			{wait, []candidate{{low, false, true}}, false},
			{wait, []candidate{{high, true, false}}, false},
			{100 * wait, nil, false}, // its peers may be behind a cut
		} {
			e := elector{id: self, wait: wait, beside: true, started: simEpoch}
			if first, next := e.decide(after(tc.at), true, tc.others); first != tc.first || !first && !next.After(after(tc.at)) {
				t.Errorf("beside %v after %v: first %v, next %v", tc.others, tc.at, first, next.Sub(simEpoch))
			}
		}
		e := elector{id: self, wait: wait, beside: true, resumes: true, started: simEpoch}
		if first, _ := e.decide(after(wait), true, nil); !first {
			t.Error("with a lease of its own it begins alone")
		}
	})
	t.Run("the holder goes: the wait begins anew", func(t *testing.T) {
		e := elector{id: self, wait: wait, started: simEpoch}
		if first, _ := e.decide(after(3*wait), true, []candidate{{high, true, true}}); first {
			t.Error("first beside a holder")
		}
		if first, next := e.decide(after(4*wait-1), true, nil); first || !next.Equal(after(4*wait)) {
			t.Errorf("first %v, next %v", first, next.Sub(simEpoch))
		}
		if first, _ := e.decide(after(4*wait), true, nil); !first {
			t.Error("nobody begins")
		}
	})
}
