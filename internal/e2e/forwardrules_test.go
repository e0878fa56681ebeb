package e2e_test

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// firewallOf are a host's rules.
func firewallOf(t testing.TB, n *node) []string {
	t.Helper()
	rules, err := n.FirewallRules()
	must(t, err)
	return rules
}

// ourRules counts those that an overlayd has made.
func ourRules(rules []string) (count int) {
	for _, r := range rules {
		if strings.Contains(r, "overlayd-overlay0") {
			count++
		}
	}
	return count
}

// TestForwardRules: behind the firewall that Docker makes the overlay works by every
// path, and so does the way beyond it, as long as a daemon is there; nothing of it
// stays.
func TestForwardRules(t *testing.T) {
	t.Parallel()
	_, sw, nodes := cluster(t, 2)
	outside, err := sw.Host("outside", lab.PortConfig{})
	must(t, err)
	a, b := nodes[0], nodes[1]
	must(t, b.DockerFirewall())
	before := firewallOf(t, b)
	a.start(t, "--fast-path", "auto")
	b.start(t, "--fast-path", "auto", "--ip-masq", "--join", a.Addr4().String())
	for _, n := range nodes {
		n.lease(t)
		n.attach(t)
	}
	awaitMesh(t, nodes...)
	works := func() {
		t.Helper()
		for _, of := range bothFamilies {
			seenAs(t, a.container.Namespace, b.container.Namespace, of(b.container), of(a.container))
			seenAs(t, b.container.Namespace, a.container.Namespace, of(a.container), of(b.container))
			seenAs(t, b.container.Namespace, outside.Namespace, of(outside), of(b))
		}
	}
	for _, path := range []string{"userspace", "kernel-vxlan", "direct"} {
		a.setPath(t, b, path)
		b.setPath(t, a, path)
		works()
	}
	rules := firewallOf(t, b)
	for _, want := range []string{"family 2 DOCKER-USER overlayd-overlay0", "family 10 FORWARD overlayd-overlay0"} {
		if !slices.Contains(rules, want) {
			t.Errorf("no %q in %q", want, rules)
		}
	}
	if w := b.status(t).Node.Warnings; len(w) > 0 {
		t.Errorf("it warns of %q", w)
	}

	must(t, b.DockerFirewall()) // it is started anew
	labtest.Eventually(t, repairLimit, func() error {
		if now := firewallOf(t, b); !slices.Equal(now, rules) {
			return fmt.Errorf("the rules are %q, were %q", now, rules)
		}
		return nil
	})
	works()
	b.stop(t)
	if after := firewallOf(t, b); !slices.Equal(after, before) {
		t.Errorf("the rules are %q, were %q", after, before)
	}
}

// TestForwardRulesOff: who does not want his firewall changed is warned, and what was
// left by a daemon that was to change it goes.
func TestForwardRulesOff(t *testing.T) {
	t.Parallel()
	_, _, nodes := cluster(t, 1)
	n := nodes[0]
	must(t, n.DockerFirewall())
	n.start(t)
	n.lease(t)
	if c := ourRules(firewallOf(t, n)); c != 4 {
		t.Errorf("%d rules of ours", c)
	}
	n.daemon.Kill()
	n.start(t, "--forward-rules", "off", "--ip-masq")
	n.lease(t)
	if c := ourRules(firewallOf(t, n)); c != 0 {
		t.Errorf("%d rules of ours with --forward-rules off", c)
	}
	labtest.Eventually(t, 5*time.Second, func() error {
		if w := strings.Join(n.status(t).Node.Warnings, "\n"); !holdsAll(w, []string{"iptables -I DOCKER-USER -i overlay+ -j ACCEPT", "ip6tables -I FORWARD", "the world", "iptables -I DOCKER-USER -s "}) {
			return fmt.Errorf("it warns of %q", w)
		}
		return nil
	})
	n.stop(t)
	n.start(t)
	n.lease(t)
	n.daemon.Kill()
	out, code := n.inside(t, exec.Command(overlayd, "cleanup", "--run-dir", n.runDir()))
	if c := ourRules(firewallOf(t, n)); code != 0 || c != 0 || !strings.Contains(out, "DOCKER-USER") {
		t.Errorf("cleanup: exit code %d, leaves %d rules: %s", code, c, out)
	}
}
