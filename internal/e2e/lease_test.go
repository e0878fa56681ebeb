package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// healLimit is how soon a cluster is one again after its cables are back.
const healLimit = 15 * time.Second

// TestLeasesThroughAPartition cuts six hosts into three and three for 25 s; a new
// host joins on each side. When the cables are back all are one cluster again, no
// held subnet has moved, and no two are alike.
func TestLeasesThroughAPartition(t *testing.T) {
	t.Parallel()
	l, _, nodes := cluster(t, 8)
	old, left, right := nodes[:6], []*node{nodes[0], nodes[1], nodes[2], nodes[6]}, []*node{nodes[3], nodes[4], nodes[5], nodes[7]}
	var seeds []string
	for _, n := range old {
		seeds = append(seeds, n.Addr4().String())
	}
	list := strings.Join(seeds, ",")
	for _, n := range old {
		n.start(t, "--join", list)
	}
	for _, n := range old {
		n.lease(t)
	}
	awaitMesh(t, old...)
	held := make(map[*node]lab.SubnetEnv)
	for _, n := range old {
		held[n] = n.env
	}

	hosts := func(nodes []*node) (out []*lab.Host) {
		for _, n := range nodes {
			out = append(out, n.Host)
		}
		return out
	}
	must(t, l.Partition(hosts(left), hosts(right)))
	cut := time.Now()
	for _, n := range nodes[6:] {
		n.start(t, "--join", list)
	}
	for _, n := range nodes[6:] {
		n.lease(t)
		held[n] = n.env
	}
	if d := time.Since(cut); d > 25*time.Second {
		t.Errorf("the new hosts had their subnets only after %v", d)
	}
	labtest.Eventually(t, 40*time.Second, func() error { // the cut lasts its time
		if left := 25*time.Second - time.Since(cut); left > 0 {
			return errNotYet
		}
		return nil
	})
	for _, a := range left {
		for _, b := range right {
			if p, err := a.status(t).peer(b); err == nil && reachable(p) {
				t.Errorf("%s says that it reaches %s", a, b)
			}
		}
	}
	must(t, l.Heal())
	healed := time.Now()
	// All have their subnets: a newcomer may have had to take another one, if one
	// of the other side has the same by an earlier claim.
	labtest.Eventually(t, healLimit, func() error {
		for _, a := range nodes {
			s, err := a.ask()
			if err != nil {
				return err
			}
			if len(s.Node.Subnets) != 2 {
				return errNotYet
			}
			for _, b := range nodes {
				if a == b {
					continue
				}
				if p, err := s.peer(b); err != nil {
					return err
				} else if !reachable(p) {
					return errNotYet
				}
			}
		}
		return nil
	})
	t.Logf("one cluster again after %v", time.Since(healed))
	agree(t, nodes)
	for _, n := range old {
		s := n.status(t)
		if want := []netip.Prefix{held[n].Subnet4.Masked(), held[n].Subnet6.Masked()}; !slices.Equal(s.Node.Subnets, want) {
			t.Errorf("%s held %v and holds %v", n, want, s.Node.Subnets)
		}
		if strings.Contains(n.log(t), "lease-lost") {
			t.Errorf("%s says that it has lost a lease", n)
		}
	}
	for _, a := range nodes {
		a.lease(t)
		for _, b := range nodes {
			if a != b {
				b.lease(t)
				pingAll(t, a.Namespace, lab.PingConfig{Dst: b.own4(), Count: 3})
				pingAll(t, a.Namespace, lab.PingConfig{Dst: b.own6(), Count: 3})
			}
		}
	}
}

// leases is what "overlayd lease list --json" prints, as far as it is looked at.
type leases struct {
	Leases []struct {
		Prefix     netip.Prefix `json:"prefix"`
		Owner      string       `json:"owner"`
		OwnerState string       `json:"owner_state"`
		State      string       `json:"state"`
		Wins       bool         `json:"wins"`
		Why        string       `json:"why"`
		Renewed    *time.Time   `json:"renewed"`
		Expires    time.Time    `json:"expires"`
		Gen        uint64       `json:"gen"`
	} `json:"leases"`
}

func (n *node) leases(t *testing.T) leases {
	t.Helper()
	out, errs, code := n.overlaydCommand(t, "lease", "list", "--json")
	if code != 0 {
		t.Fatalf("lease list: %s", errs)
	}
	var l leases
	must(t, json.Unmarshal([]byte(out), &l))
	return l
}

// TestLeases: what happens to leases of hosts that die, are copied, or lose their
// notes.
func TestLeases(t *testing.T) {
	t.Parallel()
	_, _, nodes := cluster(t, 5)
	seed := nodes[0].Addr4().String()
	nodes[0].start(t)
	for _, n := range nodes[1:4] {
		n.start(t, "--join", seed)
	}
	for _, n := range nodes[:4] {
		n.lease(t)
	}
	awaitMesh(t, nodes[:4]...)

	t.Run("Listed", func(t *testing.T) {
		if said := strings.Count(nodes[1].log(t), "no key is given"); said != 1 {
			t.Errorf("that it has no key is said %d times", said)
		}
		// The change from tentative to held may be on its way.
		labtest.Eventually(t, 10*time.Second, func() error {
			held := 0
			for _, c := range nodes[1].leases(t).Leases {
				// Two that wanted the same at once leave a trace of that.
				if c.State == "released" {
					continue
				}
				if !c.Wins || c.Gen > 2 {
					return fmt.Errorf("%+v", c)
				}
				if c.State != "held" {
					return errNotYet
				}
				held++
				if c.Renewed == nil || time.Since(*c.Renewed).Abs() > time.Minute {
					t.Fatalf("%+v", c)
				}
				if left := time.Until(c.Expires); left < 8*24*time.Hour-time.Minute || left > 8*24*time.Hour {
					t.Fatalf("%v expires in %v", c.Prefix, left)
				}
			}
			if held != 8 {
				return fmt.Errorf("%d leases are held", held)
			}
			return nil
		})
	})

	t.Run("LostLeaseFile", func(t *testing.T) {
		n := nodes[2]
		before := n.env
		n.stop(t)
		path := filepath.Join(n.stateDir(), "lease.json")
		must(t, os.WriteFile(path, []byte("{garbage"), 0o600))
		n.start(t, "--join", seed)
		n.lease(t)
		if n.env != before {
			t.Errorf("it had %+v and has %+v", before, n.env)
		}
		if b, err := os.ReadFile(path + ".corrupt"); err != nil || string(b) != "{garbage" {
			t.Errorf("kept aside: %q, %v", b, err)
		}
		n.awaitLog(t, time.Second, 0, "level=WARN", path+".corrupt")
		awaitMesh(t, nodes[:4]...)
	})

	t.Run("Evicted", func(t *testing.T) {
		dead, asked := nodes[3], nodes[1]
		subnet := dead.env.Subnet4.Masked()
		refused := func(prefix, want string, wantCode int) {
			t.Helper()
			out, errs, code := asked.overlaydCommand(t, "lease", "evict", prefix)
			if code != wantCode || out != "" || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, want) {
				t.Errorf("evict %s: code %d, %q, %q", prefix, code, out, errs)
			}
		}
		refused(subnet.String(), "is alive", 1)
		refused(asked.env.Subnet4.Masked().String(), "this node's own", 1)
		refused("100.97.1.0/24", "not a subnet", 1)
		refused("100.96.1.1/24", "did you mean 100.96.1.0/24?", 2)
		refused("nonsense", "not a subnet such as", 2)
		dead.daemon.Kill()
		asked.awaitPeer(t, 60*time.Second, dead, "dead", func(p peer) bool { return p.State == "dead" })
		began := time.Now()
		out, errs, code := asked.overlaydCommand(t, "lease", "evict", subnet.String())
		if code != 0 || !strings.Contains(out, subnet.String()) {
			t.Fatalf("code %d, %q, %q", code, out, errs)
		}
		t.Logf("evicted in %v", time.Since(began))
		refused(subnet.String(), "nobody owns it", 1)
		for _, n := range nodes[:3] { // before its owner can hear of the claim alone, and refute it
			labtest.Eventually(t, 10*time.Second, func() error {
				for _, c := range n.leases(t).Leases {
					if c.Prefix == subnet && c.Owner == dead.Name() && !c.Wins && strings.Contains(c.Why, "gave up a later generation") {
						return nil
					}
				}
				return errNotYet
			})
		}
		// It comes back, has to give its old subnet up, and gets one again.
		dead.start(t, "--join", seed)
		dead.awaitLog(t, 30*time.Second, 0, "lease-lost", subnet.String(), "gave it up again")
		labtest.Eventually(t, leaseLimit, func() error { // the status follows the log
			if s, err := dead.ask(); err != nil || slices.Contains(s.Node.Subnets, subnet) {
				return errNotYet
			}
			return nil
		})
		dead.lease(t)
		awaitMesh(t, nodes[:4]...)
		agree(t, nodes[:4])
	})

	t.Run("Cloned", func(t *testing.T) {
		original, clone := nodes[2], nodes[4]
		before := original.env
		id := original.status(t).Node.ID
		must(t, os.MkdirAll(clone.stateDir(), 0o700))
		for _, name := range []string{"node.json", "lease.json", "peers.json"} {
			b, err := os.ReadFile(filepath.Join(original.stateDir(), name))
			must(t, err)
			must(t, os.WriteFile(filepath.Join(clone.stateDir(), name), b, 0o600))
		}
		clone.start(t, "--join", seed)
		clone.awaitLog(t, 30*time.Second, 0, "starting again with a new identity", original.Addr4().String())
		labtest.Eventually(t, leaseLimit, func() error {
			s, err := clone.ask()
			if err != nil {
				return err
			}
			if s.Node.ID == id || len(s.Node.Subnets) != 2 {
				return errNotYet
			}
			return nil
		})
		clone.lease(t)
		awaitMesh(t, nodes...)
		agree(t, nodes)
		if s := original.status(t).Node; s.ID != id || s.Subnets[0] != before.Subnet4.Masked() || strings.Contains(original.log(t), "lease-lost") {
			t.Errorf("the original has %v", s)
		}
		for _, n := range nodes[:4] {
			pingAll(t, n.Namespace, lab.PingConfig{Dst: clone.own4(), Count: 3})
		}
	})
}
