package e2e_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// TestSixAtOnce starts six hosts at the same time with one and the same list of
// seeds, as a deployment tool does.
func TestSixAtOnce(t *testing.T) {
	t.Parallel()
	for name, seeds := range map[string]func(all []string) []string{
		"ListOfAll": func(all []string) []string { return all },
		"ListOfOne": func(all []string) []string { return all[2:3] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, nodes := cluster(t, 6)
			var all []string
			for _, n := range nodes {
				all = append(all, n.Addr4().String())
			}
			for _, n := range nodes {
				n.start(t, "--join", strings.Join(seeds(all), ","))
			}
			for _, n := range nodes {
				n.lease(t)
			}
			awaitMesh(t, nodes...)
			agree(t, nodes)
			for _, a := range nodes {
				for _, b := range nodes {
					if a != b {
						pingAll(t, a.Namespace, lab.PingConfig{Dst: b.own4(), Count: 3})
						pingAll(t, a.Namespace, lab.PingConfig{Dst: b.own6(), Count: 3})
					}
				}
			}
			// All at once also die and come back.
			held := make(map[*node]lab.SubnetEnv)
			for _, n := range nodes {
				held[n] = n.env
				n.daemon.Kill()
			}
			for _, n := range nodes {
				n.start(t, "--join", strings.Join(seeds(all), ","))
			}
			for _, n := range nodes {
				if n.lease(t); n.env != held[n] {
					t.Errorf("%s had %+v and has %+v", n, held[n], n.env)
				}
			}
			awaitMesh(t, nodes...)
			agree(t, nodes)
		})
	}
}

// agree checks that no two nodes hold overlapping subnets, and that each says
// of all others what they say of themselves.
func agree(t *testing.T, nodes []*node) {
	t.Helper()
	var taken []netip.Prefix
	for _, n := range nodes {
		mine := n.status(t).Node.Subnets
		for _, p := range mine {
			if slices.ContainsFunc(taken, p.Overlaps) {
				t.Errorf("%s holds %v, and another node too", n, p)
			}
		}
		taken = append(taken, mine...)
		for _, other := range nodes {
			if other == n {
				continue
			}
			p, err := other.status(t).peer(n)
			must(t, err)
			if !slices.Equal(p.Subnets, mine) {
				t.Errorf("%s holds %v, and %s says %v", n, mine, other, p.Subnets)
			}
		}
	}
}
