package overlayd

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// What is left out of a network is all but the range: compared with going through
// the subnets one by one.
func TestSubnetRange(t *testing.T) {
	network, length := netip.MustParsePrefix("100.96.0.0/20"), 24
	for first := range 16 {
		for last := first; last < 16; last++ {
			at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{100, 96, byte(i), 0}) }
			out := without(network, SubnetRange{at(first), at(last)}, length)
			for i := range 16 {
				p := netip.PrefixFrom(at(i), length)
				if got, want := slices.ContainsFunc(out, p.Overlaps), i < first || i > last; got != want {
					t.Errorf("%d to %d: %v is left out: %t (%v)", first, last, p, got, out)
				}
			}
		}
	}
	// As few pieces as there are bits, also where there are 2^64 subnets.
	out := without(netip.MustParsePrefix("fd96::/16"), SubnetRange{netip.MustParseAddr("fd96:0:0:1::"), netip.MustParseAddr("fd96:ffff:ffff:fffe::")}, 64)
	if len(out) != 2 || out[0].String() != "fd96::/64" || out[1].String() != "fd96:ffff:ffff:ffff::/64" {
		t.Errorf("got %v", out)
	}
}

func TestSubnetRangeErrors(t *testing.T) {
	for _, tt := range []struct {
		first, last string
		subnet      string // static
		want        string
	}{
		{"100.96.16.0", "100.96.31.0", "", ""},
		{"100.96.0.0", "100.96.255.0", "100.96.7.0/24", ""},
		{"fd96:0:0:10::", "fd96:0:0:1f::", "100.96.7.0/24", ""},
		{"100.96.16.0", "100.97.0.0", "", "does not lie inside one of the overlay networks"},
		{"100.96.16.0", "fd96:0:0:1f::", "", "does not lie inside"},
		{"100.96.16.1", "100.96.31.0", "", "no /24 begins with 100.96.16.1: did you mean 100.96.16.0?"},
		{"100.96.31.0", "100.96.16.0", "", "ends before it begins"},
		{"100.96.16.0", "100.96.31.0", "100.96.7.0/24", "the static subnet 100.96.7.0/24 lies outside"},
	} {
		cfg := soundConfig()
		cfg.SubnetRanges = []SubnetRange{{netip.MustParseAddr(tt.first), netip.MustParseAddr(tt.last)}}
		if tt.subnet != "" {
			cfg.Subnets = prefixes(tt.subnet)
		}
		_, err := New(cfg)
		if err == nil && tt.want != "" || err != nil && (tt.want == "" || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s to %s: %v, want %q", tt.first, tt.last, err, tt.want)
		}
	}
}

// Nodes take what their ranges leave them.
func TestSubnetRangeLease(t *testing.T) {
	nodes := startMesh(t, 2, func(i int, cfg *Config) {
		only := netip.AddrFrom4([4]byte{100, 96, byte(9 * i), 0})
		cfg.SubnetRanges = []SubnetRange{{only, only}}
	})
	for i, want := range []string{"100.96.9.0/24", "100.96.18.0/24"} {
		if got := nodes[i].Status().Node.Subnets; !slices.Contains(got, netip.MustParsePrefix(want)) {
			t.Errorf("node %d has %v, want %s", i, got, want)
		}
	}
}
