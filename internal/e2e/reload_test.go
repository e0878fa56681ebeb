package e2e_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// startFromFile starts the daemon with a config file, which has the lines given.
func (n *node) startFromFile(t testing.TB, lines ...string) {
	t.Helper()
	n.configure(t, lines...)
	args := n.runArgs("--config", n.configFile())
	i := slices.Index(args, "--fast-path") // a flag would win over the file
	args = slices.Delete(args, i, i+2)
	n.networks = 2
	cmd := exec.Command(overlayd, args...)
	cmd.Env = daemonEnv()
	var err error
	n.daemon, err = n.Host.Start(cmd, lab.StartOptions{Name: "overlayd"})
	must(t, err)
}

func (n *node) configFile() string { return filepath.Join(n.Dir(), "overlayd.yaml") }

// configure writes the config file.
func (n *node) configure(t testing.TB, lines ...string) {
	t.Helper()
	must(t, os.WriteFile(n.configFile(), []byte(strings.Join(lines, "\n")+"\n"), 0o600))
}

// reloads runs "overlayd reload", which must say what is wanted.
func (n *node) reloads(t testing.TB, want string) {
	t.Helper()
	if stdout, stderr, code := n.overlaydCommand(t, "reload"); code != 0 || stdout != want+"\n" || stderr != "" {
		t.Fatalf("%s: reload: exit code %d, %q, %q, want %q", n, code, stdout, stderr, want)
	}
}

// refuses runs "overlayd reload", and sends SIGHUP, which must both fail for a reason.
func (n *node) refuses(t testing.TB, why string) {
	t.Helper()
	if stdout, stderr, code := n.overlaydCommand(t, "reload"); code != 1 || stdout != "" || !oneLine(stderr) || !strings.Contains(stderr, why) {
		t.Errorf("%s: reload: exit code %d, %q, %q, want %q", n, code, stdout, stderr, why)
	}
	skip := len(n.log(t))
	must(t, n.daemon.Signal(syscall.SIGHUP))
	n.awaitLog(t, 5*time.Second, skip, "level=ERROR", "not reloaded: all stays as it was", why)
}

// TestReload changes all that can change in a running pair, under traffic in both
// directions and both families, of which nothing is lost.
func TestReload(t *testing.T) {
	t.Parallel()
	_, _, nodes := cluster(t, 3)
	a, b, alone := nodes[0], nodes[1], nodes[2]
	alone.startFromFile(t, "fast_path: off")
	fileA := []string{"key_file: " + a.keyFile(t, clusterKey)}
	fileB := []string{"key_file: " + b.keyFile(t, clusterKey), "join: " + a.Addr4().String()}
	a.startFromFile(t, fileA...)
	b.startFromFile(t, fileB...)
	for _, n := range []*node{a, b} {
		n.lease(t)
		n.attach(t)
	}
	a.awaitPath(t, meshLimit, b, "direct")
	b.awaitPath(t, meshLimit, a, "direct")
	began := time.Now()
	flows := []*flow{
		startFlow(t, a, b, b.container.Addr4(), 300), startFlow(t, a, b, b.container.Addr6(), 300),
		startFlow(t, b, a, a.container.Addr4(), 300), startFlow(t, b, a, a.container.Addr6(), 300),
	}
	a.reloads(t, "nothing has changed")

	// SIGHUP: what is logged, and a seed, whose call is logged at that level.
	skip := len(a.log(t))
	a.configure(t, append(fileA, "log_level: debug")...)
	must(t, a.daemon.Signal(syscall.SIGHUP))
	a.awaitLog(t, 5*time.Second, skip, "level=INFO msg=reloaded changed=--log-level")
	a.configure(t, append(fileA, "log_level: debug", "join: "+b.Addr4().String())...)
	a.reloads(t, "reloaded: --join")
	a.awaitLog(t, 5*time.Second, skip, "level=DEBUG", b.Addr4().String())
	a.configure(t, fileA...)
	a.reloads(t, "reloaded: --join, --log-level")

	reloadStaticPeer(t, a, fileA)
	reloadAllowSource(t, a, b, fileA)

	for range 2 {
		a.configure(t, append(fileA, "fast_path: off")...)
		a.reloads(t, "reloaded: --fast-path")
		p := a.awaitPath(t, time.Second, b, "userspace-udp")
		if !strings.Contains(p.PathReason, "--fast-path does not allow it") {
			t.Errorf("a says of b: %+v", p)
		}
		b.awaitPath(t, 5*time.Second, a, "userspace-udp")
		a.configure(t, fileA...)
		a.reloads(t, "reloaded: --fast-path")
		a.awaitPath(t, proofLimit, b, "direct")
		b.awaitPath(t, proofLimit, a, "direct")
	}

	// What is wrong, or needs a restart, and what could change beside it.
	a.configure(t, append(fileA, "log_level: debug", "udp_prot: 1")...)
	a.refuses(t, a.configFile()+":3: unknown key")
	a.configure(t, append(fileA, "log_level: debug", "vni: 7", "gossip_port: 7947")...)
	a.refuses(t, "--vni, --gossip-port cannot change without a restart")
	a.configure(t, append(fileA, fmt.Sprintf("static_peer: name=old,endpoint=192.0.2.7,subnet=%v", a.env.Subnet4.Masked()))...)
	a.refuses(t, "overlaps this node's lease")
	must(t, os.Remove(a.configFile()))
	a.refuses(t, "no such file")
	a.configure(t, fileA...)
	a.reloads(t, "nothing has changed")
	alone.lease(t)
	alone.configure(t, "fast_path: auto")
	alone.refuses(t, "--fast-path (it was off at the start, so that nothing is set up for auto) cannot change without a restart")

	reloadKeys(t, a, b)
	for _, f := range flows {
		f.endWhole(t)
	}
	t.Logf("%v of reloads", time.Since(began).Round(10*time.Millisecond))
	for _, n := range []*node{a, b} {
		if count := n.status(t).Drops["control_auth"]; count > 0 {
			t.Errorf("%s has refused %d control frames", n, count)
		}
		for line := range strings.Lines(n.log(t)) {
			if strings.Contains(line, "msg=peer-down") && !strings.Contains(line, "peer=old") {
				t.Errorf("%s has lost its peer: %s", n, line)
			}
		}
	}
	for _, n := range []*node{a, b} {
		n.stop(t)
		for _, line := range n.state(t) {
			if strings.Contains(line, "overlay") || strings.Contains(line, "proto 96") {
				t.Errorf("%s: left behind: %s", n, line)
			}
		}
	}
}

// reloadStaticPeer has a peer that speaks no gossip come and go.
func reloadStaticPeer(t *testing.T, a *node, file []string) {
	t.Helper()
	has := func() bool {
		return slices.ContainsFunc(a.status(t).Peers, func(p peer) bool { return p.Name == "old" && p.State == "static" })
	}
	subnet := unowned(t, []*node{a}, network4)
	where := func() string {
		stdout, _, _ := a.overlaydCommand(t, "routes", "get", subnet.String())
		return stdout
	}
	a.configure(t, append(file, fmt.Sprintf("static_peer: name=old,endpoint=192.0.2.7,subnet=%v/32", subnet))...)
	a.reloads(t, "reloaded: --static-peer")
	if !has() || !strings.Contains(where(), "old") {
		t.Errorf("the static peer is not there: %+v, %s", a.status(t).Peers, where())
	}
	a.configure(t, file...)
	a.reloads(t, "reloaded: --static-peer")
	if has() || strings.Contains(where(), "old") {
		t.Errorf("the static peer is still there: %+v, %s", a.status(t).Peers, where())
	}
}

// reloadAllowSource has a take what b sends with a source of its own.
func reloadAllowSource(t *testing.T, a, b *node, file []string) {
	t.Helper()
	// Whatever the daemon hands to its kernel passes the device.
	reached, err := a.Capture("overlay0", func(p []byte) bool { return bytes.Contains(p, marker) })
	must(t, err)
	conn, err := b.ListenUDP(netip.AddrPortFrom(b.Addr4(), 0))
	must(t, err)
	defer conn.Close()
	send := func() {
		_, err := conn.WriteToUDPAddrPort(innerUDP(t, netip.MustParseAddr("198.51.100.7"), a.container.Addr4()), netip.AddrPortFrom(a.Addr4(), 8285))
		must(t, err)
	}
	before := a.status(t).Drops["rx_spoofed_source"]
	send()
	labtest.Eventually(t, 5*time.Second, func() error {
		if a.status(t).Drops["rx_spoofed_source"] == before {
			return errNotYet
		}
		return nil
	})
	a.configure(t, append(file, "allow_source: 198.51.100.0/24")...)
	a.reloads(t, "reloaded: --allow-source")
	send()
	must(t, reached.Wait(within(t, 5*time.Second), 1))
	a.configure(t, file...)
	a.reloads(t, "reloaded: --allow-source")
}

// reloadKeys gives both another key by editing their key files in three rounds, and
// then takes one by command, which is no change for a reload.
func reloadKeys(t *testing.T, a, b *node) {
	t.Helper()
	for _, text := range []string{clusterKey + otherKey, otherKey + clusterKey, otherKey} {
		for _, n := range []*node{a, b} {
			n.keyFile(t, text)
			n.reloads(t, "reloaded: --key-file")
		}
		awaitProofs(t, time.Now(), a, b)
	}
	if listed, _, _ := a.overlaydCommand(t, "key", "list"); !slices.Equal(keyIDs(listed), []string{keyID(t, otherKey)}) {
		t.Errorf("a has the keys\n%s", listed)
	}
	extra := filepath.Join(a.Dir(), "extra-key")
	must(t, os.WriteFile(extra, []byte(clusterKey), 0o600))
	if _, stderr, code := a.overlaydCommand(t, "key", "add", extra); code != 0 {
		t.Errorf("key add: %s", stderr)
	}
	a.reloads(t, "nothing has changed")
	must(t, os.WriteFile(filepath.Join(a.Dir(), "keys"), nil, 0o600))
	a.refuses(t, "holds no key")
}
