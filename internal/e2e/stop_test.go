package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
	"golang.org/x/sys/unix"
)

// TestStopLeavesNothing stops daemons in the situations in which that is hard,
// each within two seconds and without a trace.
func TestStopLeavesNothing(t *testing.T) {
	t.Parallel()
	_, sw, nodes := cluster(t, 3)
	virgin := make(map[*node][]string)
	for _, n := range nodes {
		virgin[n] = n.state(t)
	}
	// hole is a host that swallows whatever comes.
	hole, err := sw.Host("hole", lab.PortConfig{})
	must(t, err)
	must(t, hole.Block(lab.Match{}, lab.In))
	lone := nodes[2]

	t.Run("FirstNode", func(t *testing.T) {
		lone.start(t)
		lone.lease(t)
		lone.stop(t)
		lone.checkTraceless(t, virgin[lone])
	})
	t.Run("Interrupt", func(t *testing.T) {
		lone.start(t)
		lone.lease(t)
		must(t, lone.daemon.Signal(unix.SIGINT))
		select {
		case <-lone.daemon.Done():
			must(t, lone.daemon.Err())
		case <-time.After(stopLimit):
			t.Errorf("SIGINT does not stop it in %v", stopLimit)
		}
		lone.checkTraceless(t, virgin[lone])
	})
	for _, tc := range [][2]string{
		{"SeedThatIsNotThere", "192.0.2.250"},
		{"SeedThatDoesNotReply", hole.Addr4().String()},
		{"SeedWithoutAName", "no-such-host.invalid"},
	} {
		name, seed := tc[0], tc[1]
		t.Run(name, func(t *testing.T) {
			must(t, os.RemoveAll(lone.stateDir()))
			skip := len(lone.log(t))
			lone.start(t, "--join", seed)
			if name == "SeedThatDoesNotReply" {
				// While it dials there is nothing to be heard from it but this.
				tries, err := hole.Capture("eth0", func(p []byte) bool { return len(p) > 14+20+13 && p[23] == unix.IPPROTO_TCP && p[14+20+13]&0x02 != 0 })
				must(t, err)
				must(t, tries.Wait(within(t, 10*time.Second), 1))
			} else {
				lone.awaitLog(t, 15*time.Second, skip, "cannot join yet", "seed "+seed)
			}
			var s status
			labtest.Eventually(t, 5*time.Second, func() (err error) {
				s, err = lone.ask()
				return err
			})
			if len(s.Node.Subnets) != 0 || len(s.Peers) != 0 {
				t.Errorf("without its seed it has %+v", s)
			}
			if _, err := os.Stat(filepath.Join(lone.runDir(), "subnet.env")); err == nil {
				t.Error("there is a subnet.env without a lease")
			}
			lone.stop(t)
			lone.checkTraceless(t, virgin[lone])
		})
	}
	t.Run("AtOnce", func(t *testing.T) {
		// A signal at any moment of the start: it ends in time, well, and clean.
		exists := func(name string) func() bool {
			return func() bool { _, err := os.Stat(filepath.Join(lone.runDir(), name)); return err == nil }
		}
		for _, tc := range []struct {
			moment string
			come   func() bool
		}{
			{"at once", func() bool { return true }},
			{"with the lock", exists("overlayd.lock")},
			{"with the device", func() bool { _, err := lone.MTU("overlay0"); return err == nil }},
			{"with the socket", exists("overlayd.sock")},
			{"with subnet.env", exists("subnet.env")},
		} {
			lone.start(t)
			labtest.Eventually(t, 10*time.Second, func() error {
				if !tc.come() {
					return fmt.Errorf("the moment has not come: %s", tc.moment)
				}
				return nil
			})
			began := time.Now()
			err := lone.daemon.Stop(within(t, 10*time.Second))
			if took := time.Since(began); took > stopLimit {
				t.Errorf("SIGTERM %s took %v", tc.moment, took)
			}
			if early := "signal: terminated"; err != nil && err.Error() != early { // before main
				t.Errorf("SIGTERM %s: %v", tc.moment, err)
			}
			lone.checkTraceless(t, virgin[lone])
		}
	})
	t.Run("UnderTraffic", func(t *testing.T) {
		must(t, os.RemoveAll(lone.stateDir()))
		nodes[0].start(t)
		for _, n := range nodes[1:] {
			n.start(t, "--join", nodes[0].Addr4().String())
		}
		for _, n := range nodes {
			n.lease(t)
		}
		awaitMesh(t, nodes...)
		with := make(map[*node][]string)
		for _, n := range nodes {
			n.stop(t)
			n.checkTraceless(t, virgin[n])
			n.attach(t)
			with[n] = n.state(t)
		}
		for _, n := range nodes {
			n.start(t, "--join", nodes[0].Addr4().String())
			n.lease(t)
		}
		awaitMesh(t, nodes...)
		var flows []*flow
		for i, n := range nodes {
			next := nodes[(i+1)%len(nodes)]
			flows = append(flows, startFlow(t, n, next, next.container.Addr4(), 1000), startFlow(t, n, next, next.container.Addr6(), 1000))
		}
		for i, n := range nodes { // traffic is there
			next := nodes[(i+1)%len(nodes)]
			n.awaitPeer(t, 10*time.Second, next, "traffic", func(p peer) bool { return p.TxBytes > 100e3 })
			next.awaitPeer(t, 10*time.Second, n, "traffic", func(p peer) bool { return p.RxBytes > 100e3 })
		}
		var stops sync.WaitGroup
		for _, n := range nodes { // all at once
			stops.Go(func() {
				began := time.Now()
				if err := n.daemon.Stop(within(t, 10*time.Second)); err != nil {
					t.Errorf("%s: %v", n, err)
				}
				if took := time.Since(began); took > stopLimit {
					t.Errorf("%s: SIGTERM took %v", n, took)
				}
			})
		}
		stops.Wait()
		for _, n := range nodes {
			n.checkTraceless(t, with[n])
		}
		for _, f := range flows {
			f.stop()
			f.done.Wait()
		}
	})
}

// TestCrash kills a daemon the hard way: overlay packets leak nowhere, a start
// needs no cleanup, and a cleanup removes all that is left.
func TestCrash(t *testing.T) {
	t.Parallel()
	_, sw, nodes := cluster(t, 1)
	n := nodes[0]
	c := catchDefault(t, sw, n)
	virgin := n.state(t)
	n.start(t)
	n.lease(t)

	refuses := func() {
		t.Helper()
		stdout, code := n.inside(t, exec.Command(overlayd, "cleanup", "--run-dir", n.runDir()))
		if want := fmt.Sprintf("(process %d)", n.daemon.PID()); code != 1 || !oneLine(stdout) || !strings.Contains(stdout, "another overlayd is already running") || !strings.Contains(stdout, want) {
			t.Errorf("cleanup beside a running daemon: exit code %d, %q", code, stdout)
		}
	}
	refuses()
	n.daemon.Kill()
	for _, network := range []netip.Prefix{network4, network6} {
		line := func(l string) bool {
			return strings.HasPrefix(l, "route "+network.String()) && strings.Contains(l, fmt.Sprintf(" type %d ", unix.RTN_UNREACHABLE))
		}
		if s := n.state(t); !slices.ContainsFunc(s, line) {
			t.Errorf("no unreachable route to %v is left: %q", network, s)
		}
	}
	n.attach(t)
	for _, dst := range []netip.Addr{unowned(t, nodes, network4), unowned(t, nodes, network6)} {
		awaitRefusal(t, time.Second, n.container.Namespace, dst)
		if res := pingOnce(t, n.Namespace, dst); res.Received != 0 || res.SendErr == nil && len(res.Errors) == 0 {
			t.Errorf("the host pings %v: %+v, want a refusal", dst, res)
		}
	}
	c.check(t, n)

	// The next daemon starts over what is left, with the same subnet, though a
	// bridge now has addresses in it.
	held := n.env
	n.start(t)
	n.lease(t)
	if n.env != held {
		t.Errorf("it had %+v and has %+v", held, n.env)
	}
	refuses()
	n.daemon.Kill()

	stdout, code := n.inside(t, exec.Command(overlayd, "cleanup", "--run-dir", n.runDir()))
	if code != 0 {
		t.Errorf("cleanup: exit code %d, %s", code, stdout)
	}
	for _, what := range []string{"unreachable route " + network4.String(), "unreachable route " + network6.String(), "file " + filepath.Join(n.runDir(), "subnet.env"), "file " + filepath.Join(n.runDir(), "overlayd.sock")} {
		if !strings.Contains(stdout, "removed ") || !strings.Contains(stdout, what) {
			t.Errorf("cleanup does not name the %s:\n%s", what, stdout)
		}
	}
	left := slices.DeleteFunc(n.state(t), func(l string) bool { // the container's bridge
		return strings.Contains(l, "br0") || strings.Contains(l, "veth1") || strings.Contains(l, held.Subnet4.Masked().Addr().String()) ||
			strings.Contains(l, held.Subnet6.Masked().Addr().String()) || slices.Contains(virgin, l)
	})
	if len(left) > 0 {
		t.Errorf("cleanup leaves %q", left)
	}
	if entries, err := os.ReadDir(n.runDir()); err != nil || len(entries) > 0 {
		t.Errorf("cleanup leaves %v in the run directory, %v", entries, err)
	}
	if stdout, code := n.inside(t, exec.Command(overlayd, "cleanup", "--run-dir", n.runDir())); code != 0 || stdout != "nothing to remove\n" {
		t.Errorf("a second cleanup: exit code %d, %q", code, stdout)
	}
	for _, cmd := range []string{"status", "peers", "routes", "drops", "leave"} {
		_, stderr, code := n.overlaydCommand(t, cmd)
		if code != 1 || !oneLine(stderr) || !strings.Contains(stderr, "no overlayd is running") || !strings.Contains(stderr, n.runDir()) {
			t.Errorf("%s without a daemon: exit code %d, %q", cmd, code, stderr)
		}
	}
}

// TestServiceManager checks what a service manager is told (sd_notify(3)).
func TestServiceManager(t *testing.T) {
	t.Parallel()
	_, _, nodes := cluster(t, 1)
	n := nodes[0]
	path := filepath.Join(n.Dir(), "notify.sock")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	defer conn.Close()
	var mu sync.Mutex
	var heard []string
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 4096)
		for {
			size, err := conn.Read(buf)
			if err != nil { // closed
				return
			}
			mu.Lock()
			for line := range bytes.Lines(buf[:size]) {
				heard = append(heard, strings.TrimSpace(string(line)))
			}
			mu.Unlock()
		}
	}()
	said := func(line string) int {
		mu.Lock()
		defer mu.Unlock()
		return slices.Index(heard, line)
	}
	await := func(line string) {
		t.Helper()
		labtest.Eventually(t, 10*time.Second, func() error {
			if said(line) < 0 {
				mu.Lock()
				defer mu.Unlock()
				return fmt.Errorf("it said %q, not %q", heard, line)
			}
			return nil
		})
	}
	n.extraEnv = []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=200000"}
	n.start(t)
	n.lease(t)
	await("READY=1")
	await("WATCHDOG=1")
	await(fmt.Sprintf("STATUS=%v,%v, 0 of 0 peers reachable", n.env.Subnet4.Masked(), n.env.Subnet6.Masked()))
	n.stop(t)
	await("STOPPING=1")
	if ready, stopping := said("READY=1"), said("STOPPING=1"); ready > stopping {
		t.Errorf("it said %q", heard)
	}
	conn.Close()
	<-ended
}

// TestReadyMeansReady takes readiness at its word: what is sent at the moment at
// which it is told must arrive.
func TestReadyMeansReady(t *testing.T) {
	t.Parallel()
	_, _, nodes := cluster(t, 2)
	first, joiner := nodes[0], nodes[1]
	first.start(t)
	first.lease(t)
	first.attach(t)
	path := filepath.Join(joiner.Dir(), "notify.sock")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	must(t, err)
	defer conn.Close()
	joiner.extraEnv = []string{"NOTIFY_SOCKET=" + path}
	joiner.start(t, "--join", first.Addr4().String())
	must(t, conn.SetReadDeadline(time.Now().Add(leaseLimit)))
	buf := make([]byte, 4096)
	for ready := false; !ready; {
		size, err := conn.Read(buf)
		must(t, err)
		ready = bytes.Contains(buf[:size], []byte("READY=1"))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, dst := range first.container.Addrs() {
		res, err := joiner.Ping(ctx, lab.PingConfig{Dst: dst, Count: 5, Timeout: time.Second})
		must(t, err)
		if res.Received != 5 || len(res.Errors) > 0 {
			t.Errorf("right behind READY %v answers %d of 5: %+v, %v", dst, res.Received, res.Errors, res.SendErr)
		}
	}
}
