package e2e_test

import (
	"flag"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// away is for how long TestDaemonAway leaves a host without its daemon.
var away = flag.Duration("away", 12*time.Second, "how long TestDaemonAway leaves a host without its daemon")

// TestDaemonAway: what goes by kernel paths goes on while a daemon is dead, or has been
// stopped to be upgraded, and when it is back: nothing is lost.
func TestDaemonAway(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"kernel-vxlan", "direct"} {
		for _, tt := range []struct {
			name string
			args []string
			end  func(t *testing.T, n *node)
		}{
			{"killed", nil, func(_ *testing.T, n *node) { n.daemon.Kill() }},
			{"keep-paths", []string{"--keep-paths"}, func(t *testing.T, n *node) { n.stop(t) }},
		} {
			t.Run(kind+" "+tt.name, func(t *testing.T) {
				t.Parallel()
				_, _, nodes := fast(t, 2, kind, tt.args...)
				a, b := nodes[0], nodes[1]
				before := fastState(t, b)
				flows := []*flow{
					startFlow(t, a, b, b.container.Addr4(), 500), startFlow(t, a, b, b.container.Addr6(), 500),
					startFlow(t, b, a, a.container.Addr4(), 500), startFlow(t, b, a, a.container.Addr6(), 500),
				}
				tt.end(t, b)
				gone := time.Now()
				if env, err := lab.ReadSubnetEnv(b.runDir() + "/subnet.env"); err != nil || env.Subnet4 != b.env.Subnet4 {
					t.Errorf("subnet.env is %+v, %v", env, err)
				}
				a.awaitPeer(t, 10*time.Second, b, "kept although the daemon is silent", func(p peer) bool {
					return strings.Contains(p.PathReason, "its kernel answers: is its daemon dead?")
				})
				labtest.Eventually(t, *away+5*time.Second, func() error {
					if p := a.awaitPath(t, 5*time.Second, b, kind); time.Since(gone) < *away {
						return fmt.Errorf("%s after %v", p.Path, time.Since(gone))
					}
					return nil
				})
				b.start(t, append(tt.args, "--fast-path", kind)...) // no seeds: it remembers its peers
				b.lease(t)
				b.awaitPath(t, 20*time.Second, a, kind)
				a.awaitPeer(t, 20*time.Second, b, "proven again", func(p peer) bool {
					return p.Path == kind && p.State == "alive" && strings.Contains(p.PathReason, "bytes are answered")
				})
				labtest.Eventually(t, 15*time.Second, func() error { // what it need not keep goes later
					if now := fastState(t, b); difference(before, now) != "" {
						return fmt.Errorf("the host's state differs: %s", difference(before, now))
					}
					return nil
				})
				for _, f := range flows {
					f.endWhole(t)
				}
				for _, n := range nodes {
					if log := n.log(t); strings.Contains(log, "msg=path") && strings.Count(log, "msg=path ") > 2 {
						t.Errorf("%s: the path has changed:\n%s", n, log)
					}
				}
			})
		}
	}
}

// TestCleanupOfPaths: what a dead daemon has left is removed by the command.
func TestCleanupOfPaths(t *testing.T) {
	t.Parallel()
	_, _, nodes := cluster(t, 2)
	a, b := nodes[0], nodes[1]
	clean := b.state(t)
	a.start(t, "--fast-path", "auto")
	b.start(t, "--fast-path", "auto", "--join", a.Addr4().String())
	for _, n := range nodes {
		n.lease(t)
	}
	awaitMesh(t, nodes...)
	b.awaitPath(t, proofLimit, a, "direct")
	must(t, b.daemon.Signal(syscall.SIGKILL))
	<-b.daemon.Done()
	left := 0
	for _, line := range b.state(t) {
		if strings.Contains(line, "overlay") || strings.Contains(line, "proto 96") {
			left++
		}
	}
	if left < 5 {
		t.Errorf("only %d traces of the dead daemon", left)
	}
	out, code := b.inside(t, exec.Command(overlayd, "cleanup", "--run-dir", b.runDir()))
	if code != 0 || !strings.Contains(out, "overlay0-v4") || !strings.Contains(out, "overlayd-overlay0") {
		t.Errorf("cleanup: exit code %d: %s", code, out)
	}
	b.checkTraceless(t, clean)
}
