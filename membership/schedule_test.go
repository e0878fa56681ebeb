package membership

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Random schedules of faults over the simulation. 10,000 of each kind are run by
//
//	go test ./membership -run 'TestSchedule' -rapid.checks=10000
//
// and a failing one is run again by the command that its report names.

// drawSim draws a cluster: how many nodes, how much room, what network, whose
// clock is wrong by how much. Nobody is started.
func drawSim(t *rapid.T, losses ...float64) *sim {
	n := rapid.IntRange(2, 7).Draw(t, "nodes")
	room := rapid.IntRange(1, 5).Draw(t, "log2 of the subnets")
	var set Settings
	switch rapid.IntRange(0, 2).Draw(t, "families") {
	case 0:
		set = Settings{[]netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("100.96.0.0"), 24-room)}, []int{24}, 24 * time.Hour}
	case 1:
		set = Settings{[]netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("fd96::"), 64-room)}, []int{64}, 24 * time.Hour}
	default:
		set = Settings{[]netip.Prefix{pfx("100.96.0.0/16"), netip.PrefixFrom(netip.MustParseAddr("fd96::"), 64-room)}, []int{24, 64}, 24 * time.Hour}
	}
	// A short lease time lets renewals, reuse and expiry happen within a schedule;
	// it is only for clusters whose clocks are right.
	short := rapid.Bool().Draw(t, "short leases")
	if short {
		set.LeaseTime = time.Minute
	}
	s := newSim(t, rapid.Uint64().Draw(t, "seed"), set)
	s.loss = rapid.SampledFrom(losses).Draw(t, "loss")
	s.dup = rapid.SampledFrom([]float64{0, 0.3}).Draw(t, "duplication")
	s.maxDelay = rapid.SampledFrom([]time.Duration{2, 50, 500}).Draw(t, "delay") * time.Millisecond
	if short {
		for range n {
			s.add().ahead = time.Duration(rapid.IntRange(-2, 2).Draw(t, "clock ahead")) * time.Second
		}
		return s
	}
	broken := rapid.IntRange(0, (n-1)/2).Draw(t, "broken clocks")
	for i := range n {
		node := s.add()
		if i < broken { // identities do not sort by index, so that it can be anybody
			node.ahead = rapid.SampledFrom([]time.Duration{simEpoch1970, 1000 * time.Hour, 10 * 365 * 24 * time.Hour, -50 * time.Hour}).Draw(t, "clock far ahead")
		} else {
			node.ahead = time.Duration(rapid.IntRange(-6, 6).Draw(t, "clock ahead")) * time.Hour
		}
	}
	// Who starts first may have the broken one, or not.
	rng := s.rng
	rng.Shuffle(n, func(i, j int) { s.nodes[i].ahead, s.nodes[j].ahead = s.nodes[j].ahead, s.nodes[i].ahead })
	return s
}

// simEpoch1970 is how far ahead a clock is that was never set.
var simEpoch1970 = -simEpoch.Sub(time.Unix(1000, 0))

// drawStarts starts the nodes, all at once or one by one. The first may be one
// without seeds, if it is there before all others.
func drawStarts(t *rapid.T, s *sim) {
	lone := rapid.Bool().Draw(t, "a lone first node")
	apart := rapid.SampledFrom([]int{0, 1, 20}).Draw(t, "seconds apart, at most")
	for i, n := range s.nodes {
		n.lone = lone && i == 0
		n.listed = !lone && (i < 2 || rapid.Bool().Draw(t, "listed"))
		at := time.Duration(rapid.IntRange(0, 1000*apart).Draw(t, "start, ms")) * time.Millisecond
		if i == 0 {
			at = 0
		}
		s.after(at, n.start)
	}
}

// drawStatics gives some nodes static subnets, of the leased length and others.
func drawStatics(t *rapid.T, s *sim) {
	for _, n := range s.nodes {
		if rapid.IntRange(0, 2).Draw(t, "static") > 0 {
			continue
		}
		k := rapid.IntRange(0, len(s.settings.Networks)-1).Draw(t, "network")
		network := s.settings.Networks[k]
		sp := space{network, s.settings.SubnetLens[k]}
		p := sp.at(rapid.Uint64Max(sp.size()-1).Draw(t, "static subnet"))
		length := max(sp.length+rapid.IntRange(-1, 2).Draw(t, "longer"), network.Bits())
		n.static = []netip.Prefix{netip.PrefixFrom(p.Addr(), length).Masked()}
	}
}

// drawFaults lets nodes crash, restart, pause, leave and lose each other, and
// returns when the last of it is over.
func drawFaults(t *rapid.T, s *sim) (over time.Duration) {
	side := func() uint64 { return rapid.Uint64Range(1, 1<<len(s.nodes)-2).Draw(t, "side") }
	for range rapid.IntRange(1, 6).Draw(t, "faults") {
		at := time.Duration(rapid.IntRange(0, 60000).Draw(t, "at, ms")) * time.Millisecond
		d := time.Duration(rapid.IntRange(0, 40000).Draw(t, "for, ms")) * time.Millisecond
		over = max(over, at+d)
		n := s.nodes[rapid.IntRange(0, len(s.nodes)-1).Draw(t, "node")]
		switch rapid.SampledFrom([]string{"crash", "crash soon", "crash all", "pause", "cut", "backup", "leave", "gone", "lost lease", "lost disk", "evict", "clock set"}).Draw(t, "fault") {
		case "crash":
			s.after(at, n.crash)
			s.after(at+d, n.start)
		case "crash soon":
			k := rapid.IntRange(1, 8).Draw(t, "effects")
			s.after(at, func() { n.crashSoon(k) })
			s.after(at+d, func() { n.crashSoon(0); n.start() })
		case "crash all":
			for _, n := range s.nodes {
				s.after(at, n.crash)
				s.after(at+d, n.start)
			}
		case "pause":
			s.after(at, n.pause)
			s.after(at+d, n.resume)
		case "cut":
			cut := side()
			s.after(at, func() { s.partition(cut) })
			s.after(at+d, func() { s.heal(cut) })
		case "backup":
			var saved simDisk
			s.after(at, func() { saved = n.disk.clone() })
			s.after(at+d, func() {
				n.crash()
				if n.life > 0 {
					n.disk = saved
				}
				n.start()
			})
		case "leave":
			s.after(at, n.leave)
			s.after(at+d, n.start)
		case "gone":
			s.after(at, n.crash)
		case "lost lease":
			s.after(at, n.crash)
			s.after(at+d, func() { n.loseLease(); n.start() })
		case "lost disk":
			s.after(at, n.crash)
			s.after(at+d, func() { n.loseDisk(); n.start() })
		case "evict":
			k := rapid.IntRange(0, 100).Draw(t, "which")
			s.after(at, func() { n.evictSome(k) })
		case "clock set":
			// Between two lives: within one, timers go by the monotonic clock, which
			// nobody sets.
			s.after(at, n.crash)
			s.after(at+d, n.setClock)
			s.after(at+d, n.start)
		}
	}
	return over
}

// TestScheduleCalm: nodes start at any time, over a network that loses,
// delays, doubles and reorders; nothing worse. No held subnet moves, except for
// static ones, and no two nodes ever use the same one.
//
// The loss is what gossip can make up for: among fewer than ten nodes a new
// claim is sent 8 times by its owner, so that at a loss of 0.1 it reaches nobody
// in one of 1e8 cases. At 0.3 that is one of 15,000, and two nodes then hold one
// subnet for some seconds, until the digests have found it.
func TestScheduleCalm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSim(t, 0, 0.01, 0.1)
		drawStarts(t, s)
		if rapid.Bool().Draw(t, "statics") {
			drawStatics(t, s)
		}
		for range rapid.IntRange(0, 2).Draw(t, "leaves") {
			n := s.nodes[rapid.IntRange(0, len(s.nodes)-1).Draw(t, "who leaves")]
			s.after(time.Duration(rapid.IntRange(0, 60000).Draw(t, "leaves at, ms"))*time.Millisecond, n.leave)
		}
		s.run(60*time.Second + simSettle)
		s.settled()
	})
}

// TestScheduleFaults: crashes, restarts, backups, pauses, partitions, in any
// mixture. Once they are over the cluster settles.
func TestScheduleFaults(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSim(t, 0, 0.01, 0.1, 0.3)
		drawStarts(t, s)
		if rapid.Bool().Draw(t, "statics") {
			drawStatics(t, s)
		}
		over := max(drawFaults(t, s), 20*time.Second)
		// Sometimes as long as it takes to forget those that are gone.
		later := rapid.SampledFrom([]time.Duration{0, 0, 0, 12 * time.Minute}).Draw(t, "later")
		s.run(over + later + simSettle)
		s.settled()
	})
}
