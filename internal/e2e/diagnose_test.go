package e2e_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// TestDiagnosis starts daemons on hosts that would eat the overlay's packets:
// each says so in its status and its log, with a cure.
func TestDiagnosis(t *testing.T) {
	t.Parallel()
	_, _, nodes := cluster(t, 5)
	for i, tc := range []struct {
		name  string
		spoil func(n *node) error
		says  [][]string // each in one warning
	}{
		{"Nothing", func(*node) error { return nil }, nil},
		{"ForwardingOff", func(n *node) error {
			if err := n.Sysctl("net/ipv4/ip_forward", "0"); err != nil {
				return err
			}
			return n.Sysctl("net/ipv6/conf/all/forwarding", "0")
		}, [][]string{
			{"IPv4 forwarding is off", "sysctl -w net.ipv4.ip_forward=1"},
			{"IPv6 forwarding is off", "sysctl -w net.ipv6.conf.all.forwarding=1"},
		}},
		{"ForwardPolicy", func(n *node) error { return n.ForwardPolicyDrop() }, [][]string{
			{"the firewall's chain forward", "lab_policy", "drops forwarded packets by its policy", "nft insert rule inet lab_policy forward iifname"},
		}},
		{"StrictReversePath", func(n *node) error { return n.Sysctl("net/ipv4/conf/eth0/rp_filter", "1") }, [][]string{
			{"strict reverse-path filtering on eth0", "sysctl -w net.ipv4.conf.eth0.rp_filter=2"},
		}},
		{"CoveringRoute", func(n *node) error {
			return n.AddRoute(netip.MustParsePrefix("100.64.0.0/10"), netip.MustParseAddr("192.0.2.1"))
		}, [][]string{
			{"100.96.0.0/16", "100.64.0.0/10", "choose another overlay network"},
		}},
	} {
		n := nodes[i]
		t.Run(tc.name, func(t *testing.T) {
			must(t, tc.spoil(n))
			n.start(t)
			n.lease(t)
			var warnings []string
			labtest.Eventually(t, 5*time.Second, func() error {
				warnings = n.status(t).Node.Warnings
				if len(warnings) != len(tc.says) {
					return fmt.Errorf("%d warnings: %q, want %d", len(warnings), warnings, len(tc.says))
				}
				return nil
			})
			for _, parts := range tc.says {
				if !slices.ContainsFunc(warnings, func(w string) bool { return holdsAll(w, parts) }) {
					t.Errorf("no warning holds %q: %q", parts, warnings)
				}
				if tc.name != "CoveringRoute" { // which is told by the status alone
					n.awaitLog(t, 5*time.Second, 0, append([]string{"level=WARN", "msg=warning"}, parts[0])...)
				}
			}
			stdout, _, _ := n.overlaydCommand(t, "status")
			if got := strings.Contains(stdout, "warnings"); got != (len(tc.says) > 0) {
				t.Errorf("overlayd status tells of warnings: %v\n%s", got, stdout)
			}
		})
	}
}

func holdsAll(text string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return false
		}
	}
	return true
}

// TestDiagnosisIsRight shows that what is warned of does happen: behind a
// policy of drop containers get no answer, and with it gone they do.
func TestDiagnosisIsRight(t *testing.T) {
	t.Parallel()
	_, _, nodes := seeded(t, 2)
	a, b := nodes[0], nodes[1]
	must(t, b.ForwardPolicyDrop())
	for _, dst := range b.container.Addrs() {
		if res := pingOnce(t, a.container.Namespace, dst); res.Received != 0 {
			t.Errorf("%v answers behind a forward policy of drop", dst)
		}
	}
	b.stop(t)
	b.start(t, "--join", a.Addr4().String())
	b.lease(t)
	labtest.Eventually(t, 5*time.Second, func() error {
		if w := b.status(t).Node.Warnings; len(w) != 1 || !holdsAll(w[0], []string{"policy", "lab_policy"}) {
			return fmt.Errorf("warnings %q, want one about the forward policy", w)
		}
		return nil
	})
	must(t, b.ForwardPolicyAccept())
	awaitMesh(t, nodes...)
	for _, dst := range b.container.Addrs() {
		pingAll(t, a.container.Namespace, lab.PingConfig{Dst: dst})
	}
}
