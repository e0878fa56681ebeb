package kernel_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
)

func forwardRules() kernel.ForwardRules {
	return kernel.ForwardRules{Device: "overlay0", Devices: []string{"overlay0", "overlay0-v4", "overlay0-v6", "eth0"}, Networks: overlay, Own: ownNets}
}

// chainsOf lists the rules of all tables by chain, "ours" or "foreign" each.
func (x *host) chainsOf() map[string][]string {
	x.Helper()
	conn, err := nftables.New() // on this thread: in this namespace
	x.ok(err)
	chains, err := conn.ListChains()
	x.ok(err)
	all := make(map[string][]string)
	for _, c := range chains {
		rules, err := conn.GetRules(c.Table, c)
		x.ok(err)
		name := fmt.Sprintf("%d %s %s", c.Table.Family, c.Table.Name, c.Name)
		all[name] = nil
		for _, r := range rules {
			whose := "foreign"
			if bytes.Contains(r.UserData, []byte("overlayd-overlay0\x00")) {
				whose = "ours"
			}
			all[name] = append(all[name], whose)
		}
	}
	return all
}

// setRules expects that so many things are done, and nothing the second time.
func (x *host) setRules(f kernel.ForwardRules, want int) {
	x.Helper()
	done, err := x.k.SetForwardRules(f)
	x.ok(err)
	if len(done) != want {
		x.Errorf("%d things done, want %d: %q", len(done), want, done)
	}
	gen, err := x.k.RulesetGeneration()
	x.ok(err)
	done, err = x.k.SetForwardRules(f)
	x.ok(err)
	if now, err := x.k.RulesetGeneration(); err != nil || now != gen || len(done) > 0 {
		x.Errorf("the second time: %q, generation %d, then %d, %v", done, gen, now, err)
	}
}

func (x *host) chainIs(name string, want ...string) {
	x.Helper()
	if got := x.chainsOf()[name]; !slices.Equal(got, want) {
		x.Errorf("the chain %s has %q, want %q", name, got, want)
	}
}

const (
	forward4 = "2 filter FORWARD" // NFPROTO_IPV4
	forward6 = "10 filter FORWARD"
	user4    = "2 filter DOCKER-USER"
)

func TestForwardRulesPolicy(t *testing.T) {
	x := healthy(t)
	x.setRules(forwardRules(), 0) // no firewall at all
	var firewalls []*firewall
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		f := x.firewall(family, "filter")
		c := f.forward("FORWARD", nftables.ChainPolicyDrop)
		f.rule(c, established(), accept)
		f.rule(c, iif("docker0"), notOif("docker0"), accept)
		f.flush()
		firewalls = append(firewalls, f)
	}
	before := x.chainsOf()
	x.setRules(forwardRules(), 2)
	x.chainIs(forward4, "ours", "ours", "foreign", "foreign")
	x.chainIs(forward6, "ours", "ours", "foreign", "foreign")
	x.expect(diagnosis)

	// What somebody else does to them is put right.
	f := firewalls[0]
	chain := &nftables.Chain{Table: f.table, Name: "FORWARD"}
	f.conn.FlushChain(chain)
	f.flush()
	x.setRules(forwardRules(), 1)
	x.chainIs(forward4, "ours", "ours")
	f.conn.InsertRule(&nftables.Rule{Table: f.table, Chain: chain, Exprs: drop})
	f.flush()
	x.setRules(forwardRules(), 1)
	x.chainIs(forward4, "ours", "ours", "foreign")
	rules, err := f.conn.GetRules(f.table, chain)
	x.ok(err)
	x.ok(f.conn.DelRule(rules[0]))
	x.ok(f.conn.DelRule(rules[2]))
	f.flush()
	x.setRules(forwardRules(), 1)
	x.chainIs(forward4, "ours", "ours")

	// A new daemon does not trust what it finds.
	x.ok(x.k.Close())
	x.k, err = kernel.Open(kernel.Config{})
	x.ok(err)
	t.Cleanup(func() { x.k.Close() })
	x.setRules(forwardRules(), 2)
	x.chainIs(forward6, "ours", "ours", "foreign", "foreign")

	// One family alone, and the other one's again.
	only6 := forwardRules()
	only6.Networks, only6.Own = overlay[1:], ownNets[1:]
	x.setRules(only6, 2)
	x.chainIs(forward4)
	x.setRules(forwardRules(), 2)

	// The firewall lets everything pass now.
	f.forward("FORWARD", nftables.ChainPolicyAccept)
	f.flush()
	x.setRules(forwardRules(), 1)
	x.chainIs(forward4)

	removed, err := x.k.RemoveForwardRules("overlay0")
	if err != nil || len(removed) != 2 || !strings.Contains(removed[0], "FORWARD") {
		t.Errorf("removed %q, %v", removed, err)
	}
	if got := x.chainsOf(); !slices.Equal(got[forward6], before[forward6]) {
		t.Errorf("left is %q, was %q", got, before)
	}
	x.setRules(forwardRules(), 1)
	removed, err = x.k.Cleanup("overlay1")
	if err != nil || len(removed) != 0 {
		t.Errorf("a cleanup of another device removes %q, %v", removed, err)
	}
	x.chainIs(forward6, "ours", "ours", "foreign", "foreign")
}

func TestForwardRulesDocker(t *testing.T) {
	x := healthy(t)
	f := x.firewall(nftables.TableFamilyIPv4, "filter")
	c := f.forward("FORWARD", nftables.ChainPolicyDrop)
	f.chain("DOCKER-USER")
	f.rule(&nftables.Chain{Table: f.table, Name: "DOCKER-USER"}, verdict(expr.VerdictReturn))
	f.rule(c, jump("DOCKER-USER"))
	f.rule(c, oif("docker0"), established(), accept)
	f.flush()
	x.setRules(forwardRules(), 1)
	x.chainIs(user4, "ours", "ours", "foreign")
	x.chainIs(forward4, "foreign", "foreign")
	x.expect(diagnosis)

	// Something refuses before Docker asks its users.
	f.conn.InsertRule(&nftables.Rule{Table: f.table, Chain: c, Exprs: drop})
	f.flush()
	x.setRules(forwardRules(), 1)
	x.chainIs(user4, "foreign")
	x.chainIs(forward4, "ours", "ours", "foreign", "foreign", "foreign")

	// Docker makes its chains anew.
	f.conn.DelTable(f.table)
	f.flush()
	x.setRules(forwardRules(), 0)
}

// iptables-restore makes a match of a comment: the rules are ours all the same.
func TestForwardRulesRestored(t *testing.T) {
	x := healthy(t)
	f := x.firewall(nftables.TableFamilyIPv4, "filter")
	c := f.forward("FORWARD", nftables.ChainPolicyDrop)
	comment := func(s string) []expr.Any {
		text := xt.Comment(s)
		return []expr.Any{&expr.Match{Name: "comment", Info: &text}}
	}
	for _, offset := range []uint32{12, 16} {
		f.rule(c, address(offset, []byte{100, 96}, nil), comment("overlayd-overlay0"), accept)
	}
	f.rule(c, comment("overlayd-overlay01"), iif("docker0"), accept)
	if err := f.conn.Flush(); errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		t.Logf("this kernel has no matches of iptables: %v", err)
		return
	} else {
		x.ok(err)
	}
	x.setRules(forwardRules(), 1) // those of a dead daemon are made anew
	x.chainIs(forward4, "ours", "ours", "foreign")
}

// Firewalls of others are left to them, and so is what lets the overlay pass.
func TestForwardRulesLeft(t *testing.T) {
	for _, tt := range []struct {
		name  string
		make  func(*host)
		world bool
		want  int
	}{
		{"a table of nftables' own", func(x *host) {
			f := x.firewall(nftables.TableFamilyINet, "filter")
			f.forward("FORWARD", nftables.ChainPolicyDrop)
			f.flush()
		}, true, 0},
		{"a chain of another name", func(x *host) {
			f := x.firewall(nftables.TableFamilyIPv4, "filter")
			f.forward("forward", nftables.ChainPolicyDrop)
			f.flush()
		}, true, 0},
		{"another table", func(x *host) {
			f := x.firewall(nftables.TableFamilyIPv4, "firewalld")
			f.forward("FORWARD", nftables.ChainPolicyDrop)
			f.flush()
		}, true, 0},
		{"the cure", func(x *host) { addCure(x) }, false, 0},
		{"the cure, which does not let containers out", func(x *host) { addCure(x) }, true, 1},
		{"what containers begin, and the answers", func(x *host) { addWayOut(x, established()) }, true, 0},
		{"no answers", func(x *host) { addWayOut(x, ofState(expr.CtStateBitRELATED)) }, true, 1},
		{"no answers but by another way", func(x *host) { addWayOut(x, iif("eth1"), established()) }, true, 1},
		{"a reject at the end", func(x *host) {
			f := x.firewall(nftables.TableFamilyIPv4, "filter")
			c := f.forward("FORWARD", nftables.ChainPolicyAccept)
			f.rule(c, established(), accept)
			f.rule(c, []expr.Any{&expr.Reject{Type: 0, Code: 13}})
			f.flush()
		}, false, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x := healthy(t)
			tt.make(x)
			f := forwardRules()
			f.World, f.Devices = tt.world, []string{"overlay0"}
			x.setRules(f, tt.want)
		})
	}
}

// addWayOut lets containers also begin connections by eth0, and the answers in as far as
// they match.
func addWayOut(x *host, answers ...[]expr.Any) {
	x.Helper()
	addCure(x)
	f := x.firewall(nftables.TableFamilyIPv4, "filter")
	c := &nftables.Chain{Table: f.table, Name: "FORWARD"}
	f.rule(c, append(answers, accept)...)
	f.rule(c, iif("cni0"), oif("eth0"), accept)
	f.flush()
}

// A bridge that comes later may be one that the firewall is against.
func TestForwardRulesBridge(t *testing.T) {
	x := healthy(t)
	f := x.firewall(nftables.TableFamilyIPv4, "filter")
	c := f.forward("FORWARD", nftables.ChainPolicyAccept)
	f.rule(c, oif("virbr0"), drop)
	f.flush()
	rules := forwardRules()
	rules.Inside = x.k.Inside("overlay0", ownNets)
	x.setRules(rules, 0)
	x.ok(x.h.LinkDel(x.link("cni0")))
	x.veth("virbr0", "100.96.1.1/24")
	rules.Inside = x.k.Inside("overlay0", ownNets)
	x.setRules(rules, 1)
	x.chainIs(forward4, "ours", "ours", "foreign")
}

// addCure is a firewall that has been told to let the overlay pass.
func addCure(x *host) {
	x.Helper()
	f := x.firewall(nftables.TableFamilyIPv4, "filter")
	c := f.forward("FORWARD", nftables.ChainPolicyDrop)
	f.rule(c, iif("overlay+"), accept)
	f.rule(c, oif("overlay+"), accept)
	f.flush()
}
