package membership

import (
	"strings"
	"testing"
	"time"
)

// TestMemberClocks: what a Member makes of the clocks it hears of.
func TestMemberClocks(t *testing.T) {
	newMember := func(others int) (*Member, *[]Event) {
		m := benchMember(t, 0)
		events := new([]Event)
		m.cfg.OnEvent = func(e Event) { *events = append(*events, e) }
		for i := range others {
			m.members[testID(i)] = &member{life: life{boot: 7}}
		}
		return m, events
	}
	hear := func(m *Member, i int, ahead time.Duration, now time.Time) {
		m.heardTime(gossipName(testID(i), 7), now.Add(ahead), now)
		m.nextSkew = time.Time{}
		m.compareClocks(now)
	}
	const h = time.Hour
	now := simEpoch

	t.Run("a joiner takes the cluster's", func(t *testing.T) {
		m, events := newMember(4)
		m.heardClock(clockReading{testID(1), now.Add(5 * h), now.Add(3 * h)}, now)
		if m.leaser.skew != 3*h || len(*events) != 1 || !strings.Contains((*events)[0].Reason, "3h0m0s behind the cluster's") {
			t.Errorf("skew %v, %v", m.leaser.skew, *events)
		}
		m.leaser.synced = true
		m.heardClock(clockReading{testID(1), now, now}, now)
		if m.leaser.skew != 3*h {
			t.Errorf("one node's word moves it: %v", m.leaser.skew)
		}
		for i := range 4 { // it is set right
			hear(m, i, 0, now)
		}
		if e := *events; len(e) != 2 || e[0].About != AboutClock || e[1] != (Event{Kind: Warning, About: AboutClock}) {
			t.Errorf("that the clock is right is not told: %+v", e)
		}
	})
	t.Run("the majority", func(t *testing.T) {
		m, _ := newMember(4)
		m.leaser.synced = true
		for i, want := range []time.Duration{0, 0, 2 * h, 2 * h} {
			if hear(m, i, 2*h, now); m.leaser.skew != want {
				t.Errorf("after %d: %v", i+1, m.leaser.skew)
			}
		}
		// The dead have no say, and what their clocks showed is forgotten.
		for i := range 3 {
			m.members[testID(i)].state = StateDead
		}
		if hear(m, 3, time.Second, now); m.leaser.skew != 0 {
			t.Errorf("of two that agree: %v", m.leaser.skew)
		}
	})
	t.Run("an earlier boot says nothing", func(t *testing.T) {
		m, _ := newMember(1)
		m.leaser.synced = true
		m.heardTime(gossipName(testID(0), 6), now.Add(h), now)
		m.heardTime("nonsense", now.Add(h), now)
		if m.compareClocks(now); m.leaser.skew != 0 {
			t.Errorf("%v", m.leaser.skew)
		}
	})
	t.Run("clocks go on", func(t *testing.T) {
		m, _ := newMember(2)
		m.leaser.synced = true
		hear(m, 0, h, now)
		hear(m, 1, h, now.Add(40*time.Minute)) // the first has gone on since
		if m.leaser.skew != h {
			t.Errorf("%v", m.leaser.skew)
		}
	})
	t.Run("delays are no skew", func(t *testing.T) {
		m, events := newMember(1)
		m.leaser.synced = true
		hear(m, 0, 50*time.Second, now)
		if m.leaser.skew != 0 || len(*events) != 0 {
			t.Errorf("%v", m.leaser.skew)
		}
	})
}

// TestExplainJoin holds the texts of memberlist that are told apart; that they
// are what it says is tested in TestKeysAndClusterKeepStrangersOut.
func TestExplainJoin(t *testing.T) {
	if why := explainJoin(errStateText("failed to join 10.0.0.1: dial tcp: connection refused")); why != "" {
		t.Errorf("a host that is down: %q", why)
	}
}

type errStateText string

func (e errStateText) Error() string { return string(e) }
