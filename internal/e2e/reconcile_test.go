package e2e_test

import (
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// repairLimit is how soon what somebody else has broken works again.
const repairLimit = 2 * time.Second

// TestReconcile: whatever somebody else does to the kernel paths of a node is
// repaired, and the traffic goes by them again; it never stops for long.
func TestReconcile(t *testing.T) {
	t.Parallel()
	_, _, nodes := fast(t, 2, "kernel-vxlan")
	a, b := nodes[0], nodes[1]
	const device = "overlay0-v4"
	for _, tt := range []struct {
		name string
		harm func() error
	}{
		{"device deleted", func() error { return a.DeleteLink(device) }},
		{"device renamed", func() error { return a.RenameLink(device, "other0") }},
		{"device down", func() error { return a.SetUp(device, false) }},
		{"device with another MAC", func() error { return a.SetMAC(device, net.HardwareAddr{2, 0, 0, 0, 0, 9}) }},
		{"device with another MTU", func() error { return a.SetMTU(device, 1300) }},
		{"FDB flushed", func() error { return a.FlushFDB(device) }},
		{"neighbours flushed", func() error { return a.FlushNeighbours(device) }},
		{"routes flushed", func() error { return a.FlushRoutes(96) }},
		{"policy rules flushed", func() error { return a.FlushRules() }},
		{"guard flushed", func() error { return a.FlushRuleset("overlayd-") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := fastState(t, a)
			there := startFlow(t, a, b, b.container.Addr4(), 500)
			back := startFlow(t, b, a, a.container.Addr6(), 500)
			began := time.Now()
			must(t, tt.harm())
			labtest.Eventually(t, repairLimit, func() error {
				if now := fastState(t, a); !slices.Equal(now, before) {
					return fmt.Errorf("the host's state differs: %s", difference(before, now))
				}
				return nil
			})
			t.Logf("repaired after %v", time.Since(began).Round(10*time.Millisecond))
			labtest.Eventually(t, 20*time.Second, func() error { // what it had to leave is held down
				for _, pair := range [][2]*node{{a, b}, {b, a}} {
					if p, err := pair[0].status(t).peer(pair[1]); err != nil || p.Path != "kernel-vxlan" {
						return fmt.Errorf("%s says of %s: %+v, %v", pair[0], pair[1], p, err)
					}
				}
				return nil
			})
			pingAll(t, a.container.Namespace, lab.PingConfig{Dst: b.container.Addr4(), Size: a.env.MTU, DontFragment: true})
			pingAll(t, b.container.Namespace, lab.PingConfig{Dst: a.container.Addr6(), Size: a.env.MTU, DontFragment: true})
			for _, f := range []*flow{there, back} {
				res := f.end(t)
				if res.Gap > repairLimit || res.Duplicates > 0 {
					t.Errorf("%s: %+v", f.name, res)
				}
				t.Logf("%s: %d of %d lost, the longest gap %v", f.name, res.Lost(), res.Sent, res.Gap.Round(time.Millisecond))
			}
		})
	}
}

// probeTable is the number of a routing table for probes, which is made of a device's
// index: a new device has another.
var probeTable = regexp.MustCompile(`table 96\d\d+`)

// fastState is a host's state without such numbers.
func fastState(t testing.TB, n *node) []string {
	lines := n.state(t)
	for i, line := range lines {
		lines[i] = probeTable.ReplaceAllString(line, "table of probes")
	}
	slices.Sort(lines)
	return lines
}

// difference lists the lines that only one of two states has.
func difference(before, after []string) string {
	var out []string
	for _, line := range before {
		if !slices.Contains(after, line) {
			out = append(out, "- "+line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			out = append(out, "+ "+line)
		}
	}
	return strings.Join(out, "\n")
}
