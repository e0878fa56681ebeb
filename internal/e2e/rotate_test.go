package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// TestKeyRotation gives three running hosts another key, one command at a time,
// while every pair has traffic: nothing is lost, each mixture of old and new is
// one in which all reach each other, and in the end the old key is worth nothing.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	_, _, nodes := cluster(t, 5)
	live, late, outdated := nodes[:3], nodes[3], nodes[4]
	seed := live[0].Addr4().String()
	for i, n := range live {
		args := []string{"--key-file", n.keyFile(t, clusterKey)}
		if i > 0 {
			args = append(args, "--join", seed)
		}
		n.start(t, args...)
	}
	for _, n := range live {
		n.lease(t)
		n.attach(t)
	}
	awaitMesh(t, live...)

	skip := make(map[*node]int)
	refused := make(map[*node]uint64)
	var flows []*flow
	for i, n := range live {
		skip[n] = len(n.log(t))
		refused[n] = n.status(t).Drops["control_auth"]
		next := live[(i+1)%len(live)]
		flows = append(flows, startFlow(t, n, next, next.container.Addr4(), 200), startFlow(t, n, next, next.container.Addr6(), 200))
	}

	oldID, newID := keyID(t, clusterKey), keyID(t, otherKey)
	newKey := filepath.Join(live[0].Dir(), "new-key")
	must(t, os.WriteFile(newKey, []byte(otherKey), 0o600))

	// The key that a node sends with cannot be taken away from it.
	if _, stderr, code := live[0].overlaydCommand(t, "key", "remove", oldID); code != 1 || !oneLine(stderr) {
		t.Errorf("key remove of the key in use: exit code %d, %q", code, stderr)
	}
	for _, step := range []struct {
		command []string
		keys    []string // the ids that a node has afterwards, as its key file has them
	}{
		{[]string{"key", "add", newKey}, []string{oldID, newID}},
		{[]string{"key", "use", newID}, []string{newID, oldID}},
		{[]string{"key", "remove", oldID}, []string{newID}},
	} {
		for _, n := range live {
			if stdout, stderr, code := n.overlaydCommand(t, step.command...); code != 0 || stderr != "" {
				t.Fatalf("%s: %q: exit code %d\n%s%s", n, step.command, code, stdout, stderr)
			}
			awaitProofs(t, time.Now(), live...)
			listed, _, _ := n.overlaydCommand(t, "key", "list")
			file, err := os.ReadFile(filepath.Join(n.Dir(), "keys"))
			must(t, err)
			for what, got := range map[string][]string{"key list": keyIDs(listed), "key file": keyIDs(string(file))} {
				if !slices.Equal(got, step.keys) {
					t.Errorf("%s behind %q: the %s has %q, want %q", n, step.command, what, got, step.keys)
				}
			}
		}
	}
	for _, f := range flows {
		f.endLossless(t)
	}
	for _, n := range live {
		if got := n.status(t).Drops["control_auth"] - refused[n]; got != 0 {
			t.Errorf("%s has refused %d control frames", n, got)
		}
		if log := n.log(t)[skip[n]:]; strings.Contains(log, "msg=peer-down") {
			t.Errorf("%s has lost a peer:\n%s", n, log)
		}
	}

	// The old key opens nothing any more, and the new one everything, also for a
	// node that reads it from the file that the rotation has written.
	refusedProbes(t, live[0], live[1], otherKey, clusterKey)
	outdated.start(t, "--join", seed, "--key-file", outdated.keyFile(t, clusterKey))
	late.start(t, "--join", seed, "--key-file", late.keyFile(t, otherKey))
	late.lease(t)
	live[2].stop(t)
	live[2].start(t, "--join", seed, "--key-file", filepath.Join(live[2].Dir(), "keys"))
	live[2].lease(t)
	awaitMesh(t, append(slices.Clone(live), late)...)
	outdated.awaitLog(t, 20*time.Second, 0, "cannot join yet", "no installed keys could decrypt")
	if s := outdated.status(t); len(s.Node.Subnets) != 0 || len(s.Peers) != 0 {
		t.Errorf("with the old key %s has %v and the peers %+v", outdated, s.Node.Subnets, s.Peers)
	}
}

// awaitProofs waits until each node has had an answer to a probe from each
// other since a moment, and gossip has all of them alive.
func awaitProofs(t *testing.T, since time.Time, nodes ...*node) {
	t.Helper()
	for _, a := range nodes {
		for _, b := range nodes {
			if a == b {
				continue
			}
			labtest.Eventually(t, 10*time.Second, func() error {
				// Before the question, so that a proof is not taken for younger than it is.
				elapsed := time.Since(since)
				s, err := a.ask()
				if err != nil {
					return err
				}
				p, err := s.peer(b)
				if err == nil && (!reachable(p) || time.Duration(*p.LastProofMS+1)*time.Millisecond > elapsed) {
					err = fmt.Errorf("%s has no new proof of %s: %+v", a, b, p)
				}
				return err
			})
		}
	}
}

// keyID is the id of the first key of a key file. People compare the ids of
// nodes of different versions, so it does not change.
func keyID(t *testing.T, file string) string {
	t.Helper()
	sum := sha256.Sum256(append([]byte("overlayd key id v1\x00"), keyBytes(t, file)...))
	return hex.EncodeToString(sum[:8])
}

// keyIDs finds the ids of keys in the lines of a text, in order.
func keyIDs(text string) (ids []string) {
	for line := range strings.Lines(text) {
		for _, word := range strings.Fields(line) {
			if len(word) == 16 && strings.Trim(word, "0123456789abcdef") == "" {
				ids = append(ids, word)
			}
		}
	}
	return ids
}
