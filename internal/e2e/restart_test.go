package e2e_test

import (
	"slices"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// TestRestart restarts daemons in every way: each keeps its subnet and uses it
// at once, without waiting for anybody.
func TestRestart(t *testing.T) {
	t.Parallel()
	_, _, nodes := seeded(t, 3)
	seed := nodes[0].Addr4().String()
	held := make(map[*node]lab.SubnetEnv)
	for _, n := range nodes {
		held[n] = n.env
	}
	// resumed waits for subnets and demands that they are the old ones, sooner
	// than a new lease could be had.
	resumed := func(t *testing.T, began time.Time, nodes ...*node) {
		t.Helper()
		for _, n := range nodes {
			n.lease(t)
			if n.env != held[n] {
				t.Errorf("%s had %+v and has %+v", n, held[n], n.env)
			}
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("it took %v to use the old subnets", took)
		}
	}
	talk := func(t *testing.T, nodes ...*node) {
		t.Helper()
		awaitMesh(t, nodes...)
		for _, a := range nodes {
			for _, b := range nodes {
				if a != b {
					pingAll(t, a.container.Namespace, lab.PingConfig{Dst: b.container.Addr4(), Count: 3})
					pingAll(t, a.container.Namespace, lab.PingConfig{Dst: b.container.Addr6(), Count: 3})
				}
			}
		}
	}

	t.Run("Stopped", func(t *testing.T) {
		nodes[1].stop(t)
		began := time.Now()
		nodes[1].start(t, "--join", seed)
		resumed(t, began, nodes[1])
		talk(t, nodes...)
	})
	t.Run("StoppedFirstNode", func(t *testing.T) {
		nodes[0].stop(t)
		began := time.Now()
		nodes[0].start(t) // no seeds, but it remembers its peers
		resumed(t, began, nodes[0])
		talk(t, nodes...)
		agree(t, nodes)
	})
	t.Run("Killed", func(t *testing.T) {
		nodes[2].daemon.Kill()
		began := time.Now()
		nodes[2].start(t, "--join", seed) // without a cleanup
		resumed(t, began, nodes[2])
		talk(t, nodes...)
	})
	t.Run("AllKilledAtOnce", func(t *testing.T) {
		for _, n := range nodes {
			n.daemon.Kill()
		}
		began := time.Now()
		nodes[0].start(t)
		nodes[1].start(t, "--join", seed)
		nodes[2].start(t, "--join", seed)
		resumed(t, began, nodes...)
		talk(t, nodes...)
		agree(t, nodes)
	})
	t.Run("SeedsDead", func(t *testing.T) {
		nodes[0].stop(t)
		nodes[1].daemon.Kill()
		began := time.Now()
		nodes[1].start(t, "--join", seed)
		resumed(t, began, nodes[1])
		talk(t, nodes[1:]...)
		// Also with nobody left.
		nodes[2].daemon.Kill()
		nodes[1].stop(t)
		began = time.Now()
		nodes[2].start(t, "--join", seed)
		resumed(t, began, nodes[2])
		if p := nodes[2].status(t).Node; !slices.Contains(p.Subnets, held[nodes[2]].Subnet4.Masked()) {
			t.Errorf("it has %v", p.Subnets)
		}
		nodes[0].start(t)
		nodes[1].start(t, "--join", seed)
		resumed(t, time.Now(), nodes[0], nodes[1])
		talk(t, nodes...)
	})
}
