package membership

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// The protocol step by step: single leasers driven by hand, then named
// schedules of the simulation. Random ones are in schedule_test.go.

// driven is a leaser with a hand on its clock.
type driven struct {
	*leaser
	t   *testing.T
	now time.Time
}

func drive(t *testing.T, id NodeID, s Settings, static []netip.Prefix, resume ...Claim) *driven {
	return &driven{newLeaser(id, s, static, newStore(), simSpread, resume, simEpoch), t, simEpoch}
}

// steps lets the leaser work until it waits for something and returns what it
// wanted done.
func (d *driven) steps() (todo []effect) {
	d.t.Helper()
	for range 10 {
		got, next := d.step(d.now)
		todo = append(todo, got...)
		if next.IsZero() || next.After(d.now) {
			return todo
		}
	}
	d.t.Fatalf("it runs in circles: %v", todo)
	return nil
}

func (d *driven) wait(by time.Duration) []effect {
	d.t.Helper()
	d.now = d.now.Add(by)
	return d.steps()
}

// hears merges a record of the network.
func (d *driven) hears(c Claim) {
	d.t.Helper()
	if _, err := d.merge(c, d.now); err != nil {
		d.t.Fatal(err)
	}
}

func (d *driven) record(k Key) Claim { return d.store.claims[k] }

// heldClaim brings a joiner to a held lease of a single IPv4 network.
func (d *driven) heldClaim() Claim {
	d.t.Helper()
	d.others(true)
	d.fullSync(d.now, true)
	d.steps()
	d.wait(simSpread)
	d.syncStarted()
	d.fullSync(d.now, true)
	d.syncEnded(true)
	d.steps()
	if len(d.held()) != 1 {
		d.t.Fatalf("no lease: %v", d.store.owners())
	}
	return d.held()[0]
}

func kinds(todo []effect) string {
	names := []string{"publish", "persist", "sync", "held", "lost", "fatal", "full", "evicted"}
	var out []string
	for _, e := range todo {
		out = append(out, names[e.kind])
	}
	return strings.Join(out, " ")
}

var oneNetwork = testSettings("100.96.0.0/16")

// TestLeaseWaitsForItsTurn: a claim that gossip has not sent on as often as it should
// is not held yet, but does not wait for ever.
func TestLeaseWaitsForItsTurn(t *testing.T) {
	for _, ends := range []bool{true, false} {
		d := drive(t, testID(1), oneNetwork, nil)
		waiting := true
		d.spreading = func(k Key) bool { return waiting && k == d.slots[0].claim.Key }
		d.others(true)
		d.fullSync(d.now, true)
		d.steps()
		began := d.now
		if got := kinds(d.wait(2*simSpread - 1)); got != "" {
			t.Fatalf("while gossip is behind: %q", got)
		}
		if ends {
			waiting = false
			if got := kinds(d.wait(1)); got != "sync" {
				t.Errorf("its turn has come: %q", got)
			}
			continue
		}
		if got := kinds(d.wait(began.Add(maxSpreads*simSpread - 1).Sub(d.now))); got != "" {
			t.Fatalf("before the end of its patience: %q", got)
		}
		if got := kinds(d.wait(1)); got != "sync" {
			t.Errorf("at the end of its patience: %q", got)
		}
	}
}

// TestLeaseSteps walks through the life of a joiner's claim.
func TestLeaseSteps(t *testing.T) {
	d := drive(t, testID(1), oneNetwork, nil)
	want := func(what string, todo []effect, effects string) {
		t.Helper()
		if got := kinds(todo); got != effects {
			t.Fatalf("%s: %q, want %q", what, got, effects)
		}
	}
	d.others(true)
	want("before it is synced", d.wait(time.Hour), "")
	d.fullSync(d.now, true)
	want("synced", d.steps(), "publish")
	owners := d.store.owners()
	if len(owners) != 1 || owners[0].State != Tentative || owners[0].Gen != 1 || owners[0].Version != 1 || owners[0].Solo || owners[0].Stamp != 0 {
		t.Fatalf("tentative claim: %+v", owners)
	}
	key := owners[0].Key
	want("before it has spread", d.wait(simSpread-1), "")
	d.syncStarted()
	d.fullSync(d.now, true) // a full merge before the spreading time is none
	d.syncEnded(true)
	want("after an early merge", d.steps(), "")
	want("when it has spread", d.wait(1), "sync")
	want("when nobody could be asked", d.steps(), "sync")
	d.syncStarted()
	want("while it is asked", d.steps(), "")
	d.syncEnded(false)
	want("after a merge that failed", d.steps(), "sync")
	d.syncStarted()
	d.fullSync(d.now, true)
	d.syncEnded(true)
	want("after the merge", d.steps(), "persist publish held")
	held := d.held()
	if len(held) != 1 || held[0].Key != key || held[0] != d.record(key) || held[0].Version != 2 || held[0].Stamp != stampOf(d.now) || held[0].Gen != 1 {
		t.Fatalf("held: %+v", held)
	}
	want("then nothing happens", d.wait(4*time.Hour), "")
	d.others(false)
	want("alone neither", d.wait(20*time.Minute), "")
	want("leaving", d.leave(d.now), "publish persist")
	if c := d.record(key); c.State != Released || c.Version != 3 || c.Expiry != uint64(d.now.Add(8*24*time.Hour).Unix()) || len(d.held()) != 0 {
		t.Errorf("after leaving: %+v", c)
	}
	want("and does not come back", d.wait(time.Minute), "")
}

func TestLeaseOfALoneFirstNode(t *testing.T) {
	d := drive(t, testID(1), testSettings("100.96.0.0/16", "fd96::/48"), nil)
	d.others(false)
	d.fullSync(d.now, false)
	if got := kinds(d.steps()); got != "publish publish persist publish held publish held" {
		t.Errorf("effects: %q", got)
	}
	if len(d.held()) != 2 {
		t.Fatalf("%v", d.held())
	}
	for _, c := range d.held() {
		if !c.Solo {
			t.Errorf("%v is not solo", c.Prefix)
		}
	}
	t.Run("a full merge with nobody clears nothing", func(t *testing.T) {
		d.fullSync(d.now, false)
		if got := kinds(d.steps()); got != "" || !d.held()[0].Solo {
			t.Errorf("effects: %q", got)
		}
	})
	t.Run("a full merge with another clears solo of what stands", func(t *testing.T) {
		before := d.held()
		other := before[1]
		other.Owner, other.Solo, other.Stamp = testID(2), false, other.Stamp+1
		d.others(true)
		d.hears(other) // beats the second one, which is solo
		d.fullSync(d.now, true)
		if got := kinds(d.steps()); got != "persist publish" {
			t.Errorf("effects: %q", got)
		}
		after := d.held()
		if len(after) != 2 {
			t.Fatalf("held: %v", after)
		}
		if after[0].Solo || after[0].Version != before[0].Version+1 || after[0].Stamp != before[0].Stamp || after[0] != d.record(after[0].Key) {
			t.Errorf("the one that stands: %+v", after[0])
		}
		if after[1] != before[1] {
			t.Errorf("the beaten one: %+v", after[1])
		}
	})
}

// TestLeaseTentativeBeaten: the loser of two tentative claims releases its own
// at once and takes another subnet; the winner sees nothing of it.
func TestLeaseTentativeBeaten(t *testing.T) {
	d := drive(t, testID(1), oneNetwork, nil)
	d.others(true)
	d.fullSync(d.now, true)
	d.steps()
	mine := d.store.owners()[0].Claim
	rival := mine
	for i := 2; compareClaims(rival, mine) >= 0; i++ {
		rival.Owner = testID(i)
	}
	d.hears(rival)
	if got := kinds(d.steps()); got != "publish publish" {
		t.Errorf("effects: %q", got)
	}
	if c := d.record(mine.Key); c.State != Released || c.Version != 2 {
		t.Errorf("the beaten claim: %+v", c)
	}
	next := d.slots[0].claim
	if next.Prefix == mine.Prefix || next.State != Tentative {
		t.Errorf("the next claim: %+v", next)
	}
	// The next one has to wait anew.
	if got := kinds(d.wait(simSpread - 1)); got != "" {
		t.Errorf("effects: %q", got)
	}
}

func TestLeaseBeatenForAWhile(t *testing.T) {
	d := drive(t, testID(1), oneNetwork, nil)
	mine := d.heldClaim()
	rival := mine
	rival.Owner, rival.Stamp = testID(2), mine.Stamp-1
	gone := rival
	gone.Version, gone.State, gone.Expiry = rival.Version+1, Released, uint64(d.now.Add(time.Hour).Unix())

	d.hears(rival)
	if got := kinds(d.steps()) + kinds(d.wait(simSpread-1)); got != "" {
		t.Fatalf("it gives way too soon: %q", got)
	}
	d.hears(gone)
	if got := kinds(d.wait(time.Hour)); got != "" || d.held()[0] != mine {
		t.Fatalf("the rival gave up, and yet: %q, %+v", got, d.held())
	}
	// A second defeat has to stand for the whole time again.
	rival.Version = gone.Version + 1
	d.hears(rival)
	if got := kinds(d.steps()) + kinds(d.wait(simSpread-1)); got != "" {
		t.Fatalf("it gives way too soon the second time: %q", got)
	}
	todo := d.wait(1)
	if got := kinds(todo); got != "lost publish persist publish" {
		t.Fatalf("effects: %q", got)
	}
	if e := todo[0]; e.prefix != mine.Prefix || !strings.Contains(e.reason, rival.Owner.String()) {
		t.Errorf("the event: %+v", e)
	}
	if c := d.record(mine.Key); c.State != Released || c.Version <= mine.Version || len(d.held()) != 0 {
		t.Errorf("the beaten claim: %+v", c)
	}
	if c := d.slots[0].claim; c.State != Tentative || c.Prefix == mine.Prefix {
		t.Errorf("the next claim: %+v", c)
	}
}

// TestLeaseOwnRecords: what others hold under our name is our past, a backup's
// or a clone's. The truth is published above it.
func TestLeaseOwnRecords(t *testing.T) {
	self := testID(1)
	fresh := seconds(simEpoch) + 8*24*3600
	mine := Claim{Key: Key{pfx("100.96.7.0/24"), self}, Version: 5, State: Held, Gen: 2, Stamp: stampOf(simEpoch) - 7, Expiry: fresh}
	change := func(f func(*Claim)) Claim { c := mine; f(&c); return c }
	for _, tc := range []struct {
		name  string
		heard Claim
		want  Claim  // the record afterwards
		todo  string // effects
	}{
		{"its echo", mine, mine, ""},
		{"an older one", change(func(c *Claim) { c.Version, c.State, c.Stamp = 4, Tentative, 0 }), mine, ""},
		{"the same version, smaller bytes", change(func(c *Claim) { c.Stamp-- }), mine, ""},
		{"the same version, larger bytes", change(func(c *Claim) { c.Stamp++ }), change(func(c *Claim) { c.Version = 6 }), "persist publish"},
		{"a newer held one", change(func(c *Claim) { c.Version, c.Stamp = 9, c.Stamp+1 }), change(func(c *Claim) { c.Version = 10 }), "persist publish"},
		{"a later one that says the same", change(func(c *Claim) { c.Version, c.Expiry = 9, c.Expiry-7 }), change(func(c *Claim) { c.Version, c.Expiry = 9, c.Expiry-7 }), "persist"},
		{"a void one", change(func(c *Claim) { c.Version, c.Gen, c.Expiry = 9, 3, uint64(simEpoch.Unix()) }), mine, ""},
		{"a newer released one", change(func(c *Claim) { c.Version, c.State, c.Expiry = 9, Released, uint64(simEpoch.Unix())+9 }), change(func(c *Claim) { c.Version = 10 }), "persist publish"},
		{"held, unknown here",
			Claim{Key: Key{pfx("100.96.8.0/24"), self}, Version: 7, State: Held, Gen: 1, Stamp: 3, Expiry: fresh + 5},
			Claim{Key: Key{pfx("100.96.8.0/24"), self}, Version: 7, State: Held, Gen: 1, Stamp: 3, Expiry: fresh + 5}, ""}, // for a while
		{"the same one, by a stronger claim", change(func(c *Claim) { c.Version, c.Gen = 2, 9 }), mine, ""},
		{"a newer one, by a stronger claim", change(func(c *Claim) { c.Version, c.Gen, c.Stamp = 9, 3, c.Stamp-1 }), change(func(c *Claim) { c.Version, c.Gen, c.Stamp = 10, 3, c.Stamp-1 }), "persist publish"},
		{"tentative, unknown here",
			Claim{Key: Key{pfx("100.96.8.0/24"), self}, Version: 1, State: Tentative, Gen: 1, Expiry: fresh - 5},
			Claim{Key: Key{pfx("100.96.8.0/24"), self}, Version: 2, State: Released, Gen: 1, Expiry: fresh}, "publish"},
		{"released, unknown here",
			Claim{Key: Key{pfx("100.96.8.0/24"), self}, Version: 7, State: Released, Gen: 1, Expiry: uint64(simEpoch.Unix()) + 9},
			Claim{Key: Key{pfx("100.96.8.0/24"), self}, Version: 7, State: Released, Gen: 1, Expiry: uint64(simEpoch.Unix()) + 9}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := drive(t, self, oneNetwork, nil, mine)
			if got := kinds(d.steps()); got != "publish held" {
				t.Fatalf("at the start: %q", got)
			}
			d.others(true)
			changed, err := d.merge(tc.heard, d.now)
			if err != nil || changed != (tc.want != mine) {
				t.Errorf("changed %v, %v", changed, err)
			}
			if got := kinds(d.steps()); got != tc.todo {
				t.Errorf("effects: %q", got)
			}
			if got := d.record(tc.want.Key); got != tc.want {
				t.Errorf("record: %+v\nwant:   %+v", got, tc.want)
			}
			held := d.held()
			if len(held) != 1 || held[0] != d.record(mine.Key) || held[0].Stamp > mine.Stamp || held[0].Gen < mine.Gen {
				t.Errorf("held: %+v", held)
			}
			if changed, _ := d.merge(tc.heard, d.now); changed {
				t.Error("the same record changes something a second time")
			}
		})
	}
}

// TestLeaseResume: what is taken up of the last run and what is given back.
func TestLeaseResume(t *testing.T) {
	self := testID(1)
	claim := func(p string, static bool) Claim {
		return Claim{Key: Key{pfx(p), self}, Version: 5, State: Held, Static: static, Gen: 1, Stamp: 9, Expiry: seconds(simEpoch) + 8*24*3600}
	}
	both := testSettings("100.96.0.0/16", "fd96::/48")
	for _, tc := range []struct {
		name     string
		settings Settings
		static   []netip.Prefix
		resume   []Claim
		held     []string
		released []string
	}{
		{"both families", both, nil, []Claim{claim("100.96.1.0/24", false), claim("fd96::/64", false)}, []string{"100.96.1.0/24", "fd96::/64"}, nil},
		{"a static one", oneNetwork, []netip.Prefix{pfx("100.96.2.0/28")}, []Claim{claim("100.96.2.0/28", true)}, []string{"100.96.2.0/28"}, nil},
		{"static is wanted now", oneNetwork, []netip.Prefix{pfx("100.96.1.0/24")}, []Claim{claim("100.96.1.0/24", false)}, nil, []string{"100.96.1.0/24"}},
		{"another static one is wanted now", oneNetwork, []netip.Prefix{pfx("100.96.3.0/24")}, []Claim{claim("100.96.2.0/24", true)}, nil, []string{"100.96.2.0/24"}},
		{"static is not wanted any more", oneNetwork, nil, []Claim{claim("100.96.1.0/24", true)}, nil, []string{"100.96.1.0/24"}},
		{"two of one family", oneNetwork, nil, []Claim{claim("100.96.1.0/24", false), claim("100.96.2.0/24", false)}, []string{"100.96.1.0/24"}, []string{"100.96.2.0/24"}},
		{"outside the networks", oneNetwork, nil, []Claim{claim("10.0.1.0/24", false)}, nil, nil},
		{"of another node", oneNetwork, nil, []Claim{{Key: Key{pfx("100.96.1.0/24"), testID(2)}, Version: 5, State: Held, Gen: 1, Stamp: 9}}, nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := drive(t, self, tc.settings, tc.static, tc.resume...)
			todo := d.steps()
			var held, released, events []string
			for _, c := range d.held() {
				held = append(held, c.Prefix.String())
			}
			for _, c := range d.store.owners() {
				if c.State == Released {
					released = append(released, c.Prefix.String())
					if c.Version != 6 {
						t.Errorf("released as version %d", c.Version)
					}
				}
			}
			for _, e := range todo {
				if e.kind == effectHeld {
					events = append(events, e.prefix.String())
				}
			}
			if !slices.Equal(held, tc.held) || !slices.Equal(events, tc.held) || !slices.Equal(released, tc.released) {
				t.Errorf("held %v, events %v, released %v", held, events, released)
			}
			// What was given back must not be taken up by the next start.
			if persisted := strings.Contains(kinds(todo), "persist"); len(tc.released) > 0 && !persisted {
				t.Error("what was released stays on disk")
			}
		})
	}
}

// TestLeaseGen: a claim on a prefix with a past goes above it.
func TestLeaseGen(t *testing.T) {
	s := Settings{[]netip.Prefix{pfx("100.96.1.0/24")}, []int{24}, 24 * time.Hour} // one subnet
	for _, gens := range [][]uint64{nil, {1}, {7}, {3, 9, 4}, {maxCounter}} {
		d := drive(t, testID(1), s, nil)
		want := uint64(1)
		for i, g := range gens {
			d.hears(Claim{Key: Key{s.Networks[0], testID(10 + i)}, Version: 3, State: Released, Gen: g, Expiry: uint64(simEpoch.Unix()) + 1000})
			want = min(max(want, g+1), maxCounter)
		}
		if c := d.heldClaim(); c.Gen != want || c.check() != nil {
			t.Errorf("after gens %v: %+v", gens, c)
		}
	}
}

// TestLeaseShareFull: a node whose share of everybody's store is full of its own
// tombstones still gets a subnet: it claims anew what it once released.
func TestLeaseShareFull(t *testing.T) {
	d := drive(t, testID(1), oneNetwork, nil)
	sp := space{oneNetwork.Networks[0], 24}
	for i := range uint64(maxRecordsPerOwner) {
		d.hears(Claim{Key: Key{sp.at(i), testID(1)}, Version: 3, State: Released, Gen: 2, Expiry: uint64(simEpoch.Add(time.Hour).Unix())})
		if i < maxRecordsPerOwner-2 { // others have most of them now
			d.hears(Claim{Key: Key{sp.at(i), testID(2 + int(i))}, Version: 3, State: Held, Gen: 3, Stamp: 1, Expiry: d.freshExpiry(d.now)})
		}
	}
	c := d.heldClaim()
	if c.Version <= 3 || c.Gen != 3 || len(d.store.claims) != 2*maxRecordsPerOwner-2 {
		t.Errorf("%+v among %d claims", c, len(d.store.claims))
	}
	// With none of them free it waits, and does not run in circles.
	for i := range uint64(2) {
		rival := Claim{Key: Key{sp.at(maxRecordsPerOwner - 1 - i), testID(1000)}, Version: 3, State: Held, Gen: 9, Stamp: 1, Expiry: d.freshExpiry(d.now)}
		d.hears(rival)
	}
	d.steps()
	if got := kinds(d.wait(simSpread)); got != "lost publish persist full" {
		t.Errorf("effects: %q", got)
	}
}

func TestLeaseRefusesWhatLiesOutside(t *testing.T) {
	d := drive(t, testID(1), oneNetwork, nil)
	for _, p := range []string{"10.0.0.0/24", "100.96.0.0/25", "100.96.0.0/16", "fd96::/64", "0.0.0.0/1"} {
		if _, err := d.merge(Claim{Key: Key{pfx(p), testID(2)}, Version: 1, State: Held, Gen: 1, Stamp: 1}, d.now); err != errRecordNetwork {
			t.Errorf("%s: %v", p, err)
		}
	}
	if len(d.store.claims) != 0 {
		t.Errorf("%v", d.store.claims)
	}
}
