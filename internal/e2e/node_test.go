package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/control"
	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// The overlay networks of the tests.
var (
	network4 = netip.MustParsePrefix("100.96.0.0/16")
	network6 = netip.MustParsePrefix("fd96::/48")
)

// Limits, generous since two processors are shared by several labs.
const (
	leaseLimit = 40 * time.Second
	meshLimit  = 30 * time.Second
	// downLimit is how soon a silent host's next hop is down (DESIGN, section 5).
	downLimit = 10 * time.Second
	stopLimit = 2 * time.Second
)

// node is a host with a daemon and a container.
type node struct {
	*lab.Host
	daemon    *lab.Process
	extraEnv  []string
	networks  int           // that the daemon was started with
	env       lab.SubnetEnv // after lease
	container *lab.Container
}

// cluster makes a lab with n hosts on one switch; their daemons are started by
// the test.
func cluster(t *testing.T, n int) (*lab.Lab, *lab.Switch, []*node) {
	t.Helper()
	l, sw, hosts := labtest.Hosts(t, n)
	var nodes []*node
	for _, h := range hosts {
		nodes = append(nodes, &node{Host: h})
	}
	return l, sw, nodes
}

// seeded makes a cluster of n nodes that joined through the first one, each
// with a container, all of which know each other.
func seeded(t *testing.T, n int, args ...string) (*lab.Lab, *lab.Switch, []*node) {
	t.Helper()
	l, sw, nodes := cluster(t, n)
	nodes[0].start(t, args...)
	for _, other := range nodes[1:] {
		other.start(t, append(args, "--join", nodes[0].Addr4().String())...)
	}
	for _, each := range nodes {
		each.lease(t)
		each.attach(t)
	}
	awaitMesh(t, nodes...)
	return l, sw, nodes
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), d)
	t.Cleanup(cancel)
	return ctx
}

// daemonEnv is the environment without settings that are meant for another
// daemon.
func daemonEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool {
		return strings.HasPrefix(e, "OVERLAYD_") || strings.HasPrefix(e, "NOTIFY_SOCKET=") || strings.HasPrefix(e, "WATCHDOG_")
	})
}

func (n *node) runDir() string   { return filepath.Join(n.Dir(), "run") }
func (n *node) stateDir() string { return filepath.Join(n.Dir(), "state") }

// runArgs are the arguments that start the node's daemon; later ones win.
func (n *node) runArgs(args ...string) []string {
	all := []string{"run", "--name", n.Name(), "--state-dir", n.stateDir(), "--run-dir", n.runDir()}
	if !slices.Contains(args, "--network") {
		all = append(all, "--network", network4.String()+","+network6.String())
	}
	if !slices.Contains(args, "--interface") && !slices.Contains(args, "--advertise") {
		all = append(all, "--interface", "eth0")
	}
	if !slices.Contains(args, "--fast-path") {
		// Most tests are about what userspace does.
		all = append(all, "--fast-path", "off")
	}
	return append(all, args...)
}

// start starts the daemon.
func (n *node) start(t testing.TB, args ...string) {
	t.Helper()
	args = n.runArgs(args...)
	n.networks = 1 + strings.Count(args[slices.Index(args, "--network")+1], ",")
	cmd := exec.Command(overlayd, args...)
	cmd.Env = append(daemonEnv(), n.extraEnv...)
	var err error
	n.daemon, err = n.Host.Start(cmd, lab.StartOptions{Name: "overlayd"})
	must(t, err)
}

// lease waits until the daemon holds its subnets, and reads subnet.env.
func (n *node) lease(t testing.TB) {
	t.Helper()
	labtest.Eventually(t, leaseLimit, func() error {
		if !n.daemon.Running() {
			t.Fatalf("%s: the daemon has ended: %v", n, n.daemon.Err())
		}
		s, err := n.ask()
		if err != nil {
			return err
		}
		if len(s.Node.Subnets) < n.networks {
			return fmt.Errorf("%s holds %v", n, s.Node.Subnets)
		}
		n.env, err = lab.ReadSubnetEnv(filepath.Join(n.runDir(), "subnet.env"))
		if err == nil && !slices.EqualFunc(n.env.Subnets(), s.Node.Subnets, func(a, b netip.Prefix) bool { return a.Masked() == b }) {
			err = fmt.Errorf("%s: subnet.env has %v, the status %v", n, n.env.Subnets(), s.Node.Subnets)
		}
		return err
	})
}

// attach gives the host a bridge and a container, as a container runtime does
// with subnet.env.
func (n *node) attach(t testing.TB) {
	t.Helper()
	br, err := n.Bridge(lab.BridgeConfig{Addrs: n.env.Subnets(), MTU: n.env.MTU})
	must(t, err)
	n.container, err = br.Container("c-" + n.Name())
	must(t, err)
}

// own4 and own6 are the node's own overlay addresses: the first of its subnets.
func (n *node) own4() netip.Addr { return n.env.Subnet4.Masked().Addr() }
func (n *node) own6() netip.Addr { return n.env.Subnet6.Masked().Addr() }

// stop ends the daemon with SIGTERM, which must take no longer than stopLimit.
func (n *node) stop(t testing.TB) {
	t.Helper()
	began := time.Now()
	must(t, n.daemon.Stop(within(t, 10*time.Second)))
	if took := time.Since(began); took > stopLimit {
		t.Errorf("%s: SIGTERM took %v, want at most %v", n, took, stopLimit)
	}
}

// status is the part of "overlayd status --json" that the tests look at; the
// whole of it is checked by jsonDocuments.
type status struct {
	Node struct {
		ID       string         `json:"id"`
		Name     string         `json:"name"`
		Subnets  []netip.Prefix `json:"subnets"`
		MTU      int            `json:"mtu"`
		VTEPMAC  string         `json:"vtep_mac"`
		Warnings []string       `json:"warnings"`
	} `json:"node"`
	Peers []peer            `json:"peers"`
	Drops map[string]uint64 `json:"drops"`
}

type peer struct {
	ID          string         `json:"id"`
	Name        string         `json:"name"`
	State       string         `json:"state"`
	Endpoint    string         `json:"endpoint"`
	Subnets     []netip.Prefix `json:"subnets"`
	Path        string         `json:"path"`
	PathReason  string         `json:"path_reason"`
	LastProofMS *int64         `json:"last_proof_ms"`
	MTU         int            `json:"mtu"`
	TxBytes     uint64         `json:"tx_bytes"`
	RxBytes     uint64         `json:"rx_bytes"`
}

// ask gets the status from the control socket.
func (n *node) ask() (s status, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	b, err := control.NewClient(n.runDir()).Get(ctx, "/v1/status", nil)
	if err != nil {
		return s, fmt.Errorf("%s: %w", n, err)
	}
	return s, json.Unmarshal(b, &s)
}

// status is ask for when it must not fail.
func (n *node) status(t testing.TB) status {
	t.Helper()
	s, err := n.ask()
	must(t, err)
	return s
}

// peer finds what n knows of another node.
func (s status) peer(other *node) (peer, error) {
	for _, p := range s.Peers {
		if p.Name == other.Name() {
			return p, nil
		}
	}
	return peer{}, fmt.Errorf("%s knows no %s", s.Node.Name, other)
}

// awaitPeer waits until what n says of another node satisfies ok.
func (n *node) awaitPeer(t testing.TB, limit time.Duration, other *node, what string, ok func(peer) bool) peer {
	t.Helper()
	var last peer
	labtest.Eventually(t, limit, func() error {
		s, err := n.ask()
		if err != nil {
			return err
		}
		if last, err = s.peer(other); err != nil {
			return err
		}
		if !ok(last) {
			return fmt.Errorf("%s says of %s: %+v, want %s", n, other, last, what)
		}
		return nil
	})
	return last
}

// reachable says that packets of both families can go to a peer and be answered.
func reachable(p peer) bool { return reachableIn(p, 2) }

// reachableIn is reachable where there are so many overlay networks.
func reachableIn(p peer, networks int) bool {
	return p.State == "alive" && p.Path != "none" && p.LastProofMS != nil && len(p.Subnets) == networks
}

// awaitMesh waits until all nodes reach each other.
func awaitMesh(t testing.TB, nodes ...*node) {
	t.Helper()
	for _, a := range nodes {
		for _, b := range nodes {
			if a != b {
				a.awaitPeer(t, meshLimit, b, "alive and reachable", func(p peer) bool { return reachableIn(p, b.networks) })
			}
		}
	}
}

// overlaydCommand runs a command of overlayd that talks to a running node.
func (n *node) overlaydCommand(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, overlayd, append(args, "--run-dir", n.runDir())...)
	cmd.Env = daemonEnv()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// inside runs a command on the host and returns all that it printed.
func (n *node) inside(t testing.TB, cmd *exec.Cmd) (out string, code int) {
	t.Helper()
	if cmd.Env == nil {
		cmd.Env = daemonEnv()
	}
	b, err := n.Output(within(t, 15*time.Second), cmd)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %s", err, b)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// log returns all that the node's daemons have logged so far.
func (n *node) log(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(n.daemon.LogFile())
	must(t, err)
	return string(b)
}

// awaitLog waits for a line that holds all the parts, behind the first skip
// bytes of the log.
func (n *node) awaitLog(t testing.TB, limit time.Duration, skip int, parts ...string) string {
	t.Helper()
	var found string
	labtest.Eventually(t, limit, func() error {
		for line := range strings.Lines(n.log(t)[skip:]) {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
				found = line
				return nil
			}
		}
		return fmt.Errorf("no line with %q in the log of %s", parts, n)
	})
	return found
}

// state is the host's network configuration.
func (n *node) state(t testing.TB) []string {
	t.Helper()
	s, err := n.State()
	must(t, err)
	return s
}

// checkTraceless compares the host's configuration with an earlier one and
// looks for files in the run directory.
func (n *node) checkTraceless(t testing.TB, before []string) {
	t.Helper()
	after := n.state(t)
	for _, line := range after {
		if !slices.Contains(before, line) {
			t.Errorf("%s: left behind: %s", n, line)
		}
	}
	for _, line := range before {
		if !slices.Contains(after, line) {
			t.Errorf("%s: gone: %s", n, line)
		}
	}
	entries, err := os.ReadDir(n.runDir())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for _, e := range entries {
		t.Errorf("%s: left behind in the run directory: %s", n, e.Name())
	}
	// Nobody listens any more.
	for _, port := range []uint16{7946, 8285} {
		c, err := n.ListenUDP(netip.AddrPortFrom(n.Addr4(), port))
		if err != nil {
			t.Errorf("%s: %v", n, err)
			continue
		}
		c.Close()
	}
}

// errNotYet is what a condition says that has not come true yet.
var errNotYet = errors.New("not yet")
