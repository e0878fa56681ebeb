//go:build !race

package membership

import (
	"flag"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Real memberlist code over the in-memory network, in virtual time, with 1% loss.
// A cluster of 1000 nodes takes more than an hour of two processors and 12 GB:
//
//	go test ./membership -run TestScale -scale 1000 -settled 10m -v -timeout 3h
var (
	scale        = flag.Int("scale", 100, "how many nodes TestScale runs")
	scaleSettled = flag.Duration("settled", time.Minute, "for how long TestScale lets a cluster settle before it measures, in virtual time")
	scaleClaims  = flag.Int("claims", 200, "how many claims TestScale times")
)

// TestScale reports, and holds to the limits, how soon all nodes that start at
// once have a subnet, how soon a new claim is known to all, and how much gossip a
// settled node sends.
func TestScale(t *testing.T) {
	n := *scale
	startLimit, spreadLimit, claims, settled := 30*time.Second, 2*time.Second, *scaleClaims, *scaleSettled
	network := "100.96.0.0/16" // 256 subnets
	if n > 150 {
		network, startLimit, spreadLimit = "100.64.0.0/10", 2*time.Minute, 4*time.Second
	}
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1, lan)
		defer c.stopAll()
		for range n {
			c.add(func(cfg *Config) {
				seedsOf(1, 2, 3)(cfg)
				cfg.Settings = testSettings(network)
			})
		}
		for _, n := range c.nodes {
			c.start(n)
		}
		took := c.wait("all leases", 3*startLimit, func() bool {
			return !slices.ContainsFunc(c.nodes, func(n *node) bool { return n.held() != 1 })
		})
		t.Logf("%d nodes started at once: all hold a subnet after %v", n, took)
		if took > startLimit {
			t.Errorf("want at most %v", startLimit)
		}
		distinct(t, c.nodes)
		took = c.wait("agreement", 5*time.Minute, func() bool {
			digest := c.nodes[0].digest.Load().digests
			return !slices.ContainsFunc(c.nodes, func(n *node) bool { return n.digest.Load().digests != digest })
		})
		t.Logf("all know all leases %v later", took)

		gossip(c, settled)
		if sent := gossip(c, min(settled, 5*time.Minute)); sent > 50 {
			t.Errorf("%.1f kbit/s of gossip from each node, %v after the start; want at most 50", sent, settled)
		}

		if claims > 0 {
			times := spread(c, claims, spreadLimit/4, spreadLimit)
			slices.Sort(times)
			p99 := times[len(times)*99/100]
			t.Logf("a new claim is known to all %d nodes after %v (median), %v (99th percentile), %v (slowest of %d)", n, times[len(times)/2], p99, times[len(times)-1], claims)
			if p99 > spreadLimit {
				t.Errorf("want at most %v", spreadLimit)
			}
		}
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		t.Logf("heap of the whole cluster: %.0f MB", float64(mem.HeapAlloc)/1e6)
	})
}

// gossip returns how many kbit/s each node sends on average in the time, and logs
// each minute of it.
func gossip(c *cluster, d time.Duration) (mean float64) {
	for at := time.Duration(0); at < d; at += time.Minute {
		before, began := c.net.Stats(), time.Now()
		time.Sleep(min(d-at, time.Minute))
		after, took := c.net.Stats(), time.Since(began)
		scale := 8 / took.Seconds() / float64(len(c.nodes)) / 1000
		packets, streams := float64(after.PacketBytes-before.PacketBytes)*scale, float64(after.StreamBytes-before.StreamBytes)*scale
		c.t.Logf("gossip of a settled cluster: %.1f kbit/s sent by each node, %.1f of it in packets", packets+streams, packets)
		mean += (packets + streams) * took.Seconds() / d.Seconds()
	}
	c.t.Logf("on average %.1f kbit/s", mean)
	return mean
}

// spread has some node learn a new claim each interval, as if a new node had told it,
// and returns how long each took to be known to all. Slow ones are logged.
func spread(c *cluster, claims int, interval, slow time.Duration) []time.Duration {
	type pending struct {
		key     Key
		at      time.Time
		missing []*node
		last    *node // to know
	}
	var (
		rng   = rand.New(rand.NewPCG(1, 1))
		open  []*pending
		times []time.Duration
		next  = time.Now()
		limit = time.Duration(claims)*interval + time.Minute
	)
	c.wait("all claims known to all", limit, func() bool {
		if told := len(times) + len(open); told < claims && !time.Now().Before(next) {
			key := Key{netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 96, byte(told), 0}), 24), testID(told)}
			claim := Claim{Key: key, Version: 1, State: Tentative, Gen: 1, Expiry: seconds(time.Now()) + 24*3600}
			c.nodes[rng.IntN(len(c.nodes))].inbox.put(gossipMsg{appendClaim(nil, claim)})
			open = append(open, &pending{key, time.Now(), slices.Clone(c.nodes), nil})
			next = next.Add(interval)
		}
		open = slices.DeleteFunc(open, func(p *pending) bool {
			p.missing = slices.DeleteFunc(p.missing, func(n *node) bool { return knows(n, p.key) })
			if len(p.missing) == 0 {
				times = append(times, time.Since(p.at))
				if took := time.Since(p.at); took > slow {
					c.t.Logf("claim %d, for node %s, is known to all only after %v", p.key.Prefix.Addr().As4()[2], p.last.cfg.Name, took)
				}
			} else {
				p.last = p.missing[0]
			}
			return len(p.missing) == 0
		})
		return len(times) == claims
	})
	return times
}

func knows(n *node, key Key) bool {
	groups := n.View().groups
	i, ok := slices.BinarySearchFunc(groups, key.Prefix, (*group).compare)
	return ok && slices.ContainsFunc(groups[i].claims, func(c ClaimInfo) bool { return c.Owner == key.Owner })
}
