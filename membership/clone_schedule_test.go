//go:build !race

package membership

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// How many random schedules of clones are run:
//
//	go test ./membership -run TestScheduleClones -clones 10000 -timeout 2h
var cloneSchedules = flag.Int("clones", 100, "how many schedules TestScheduleClones runs")

// TestScheduleClones copies a node of a cluster once or twice, at any time, with
// the state that it has, or an older one, or a part of it, over a network that
// loses, while the original answers or does not. A copy that ends is started
// again, as the daemon does. In the end all have subnets of their own and agree,
// and neither the original nor anybody else has lost one.
func TestScheduleClones(t *testing.T) {
	for seed := range *cloneSchedules {
		synctest.Test(t, func(t *testing.T) { cloneSchedule(t, uint64(seed)) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func cloneSchedule(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 77))
	ms := func(most int) time.Duration { return time.Duration(rng.IntN(most+1)) * time.Millisecond }
	faults := lan
	faults.Loss = []float64{0, 0.01, 0.05}[rng.IntN(3)]
	c := newCluster(t, seed, faults)
	defer c.stopAll()
	var story []string
	tell := func(format string, args ...any) { story = append(story, fmt.Sprintf(format, args...)) }
	defer func() {
		if t.Failed() {
			t.Logf("seed %d: loss %v, %q", seed, faults.Loss, story)
		}
	}()

	original := c.three()
	before := map[*node]string{}
	for _, n := range c.nodes {
		before[n] = fmt.Sprint(n.View().Held)
	}
	type copied struct {
		n     *node
		start time.Time
	}
	var copies []copied
	for range 1 + rng.IntN(2) {
		n := c.add([]func(*Config){seedsOf(1, 2, 3), seedsOf(1, 3), nil}[rng.IntN(3)])
		copyState(t, n, original)
		change := func(file string, f func([]byte) []byte) {
			path := filepath.Join(n.cfg.StateDir, file)
			b, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, f(b), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		what := rng.IntN(5)
		switch what {
		case 1: // of a time at which it had another subnet, which is nobody's now
			change(leaseFile, func(b []byte) []byte {
				return bytes.ReplaceAll(b, []byte(original.View().Held[0].String()), []byte(c.free()))
			})
		case 2: // of an earlier stamp and generation
			change(leaseFile, func(b []byte) []byte {
				return bytes.ReplaceAll(b, []byte(`"version": `), []byte(`"version": 9`))
			})
		case 3:
			os.Remove(filepath.Join(n.cfg.StateDir, leaseFile))
		case 4:
			if len(n.cfg.Seeds) > 0 { // or it would know nobody, and begin a cluster of its own
				os.Remove(filepath.Join(n.cfg.StateDir, peersFile))
			}
		}
		in := ms(20000)
		copies = append(copies, copied{n, time.Now().Add(in)})
		tell("copy %s of kind %d with %d seeds in %v", n.cfg.Name, what, len(n.cfg.Seeds), in)
	}
	from, for_ := time.Now().Add(ms(20000)), ms(15000)
	if rng.IntN(2) == 0 {
		for_ = 0
	}
	tell("the original is away from %v for %v", time.Until(from), for_)

	at := original.cfg.Gossip
	cut := false
	ended := map[*node]time.Time{}
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		synctest.Wait()
		now := time.Now()
		if away := !now.Before(from) && now.Before(from.Add(for_)); away != cut {
			cut = away
			if cut {
				c.net.Partition(func(from, to netip.AddrPort) bool { return from == at || to == at })
			} else {
				c.net.Partition(nil)
			}
		}
		for _, k := range copies {
			switch {
			case k.n.Member == nil:
				if !now.Before(k.start) {
					c.start(k.n)
				}
			case k.n.ended() && ended[k.n].IsZero():
				if !errors.Is(k.n.Err(), ErrCloned) {
					t.Fatalf("%s ended with %v", k.n.cfg.Name, k.n.Err())
				}
				ended[k.n] = now
				k.n.Stop(t.Context())
				k.n.events = nil // what it lost was not its own
				c.start(k.n)
			}
		}
	}
	if !allHeld(c.nodes) || !agree(c.nodes) {
		t.Fatal("they do not agree")
	}
	distinct(t, c.nodes)
	for n, held := range before {
		if n.ended() || fmt.Sprint(n.View().Held) != held || slices.ContainsFunc(n.events, func(e Event) bool { return e.Kind == LeaseLost }) {
			t.Errorf("%s ended %v, held %s and holds %v: %v", n.cfg.Name, n.ended(), held, n.View().Held, n.events)
		}
	}
	ids := map[NodeID]bool{}
	for _, n := range c.nodes {
		if ids[n.ID()] {
			t.Errorf("two have the identity %v", n.ID())
		}
		ids[n.ID()] = true
	}
}
