package e2e_test

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
	"github.com/overlayd/overlayd/tunnel"
)

// refusal is a start that must fail.
type refusal struct {
	name string
	cmd  *exec.Cmd
	code int
	says []string // all of them in its one line
}

// check runs the daemon on a host and demands the line, the exit code, and that
// the host is as before.
func (r refusal) check(t *testing.T, n *node) {
	t.Helper()
	before := n.state(t)
	out, code := n.inside(t, r.cmd)
	var said []string
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "time=") { // the log, of those that come as far
			said = append(said, line)
		}
	}
	if text := strings.Join(said, ""); code != r.code || !oneLine(text) {
		t.Errorf("exit code %d, want %d and one line:\n%s", code, r.code, out)
	}
	for _, part := range r.says {
		if !strings.Contains(strings.Join(said, ""), part) {
			t.Errorf("it does not say %q:\n%s", part, out)
		}
	}
	after := n.state(t)
	if strings.Join(before, "\n") != strings.Join(after, "\n") {
		t.Errorf("the host was changed, from\n%s\nto\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

// TestBadInput starts daemons that cannot run. Each says in one line what is
// wrong and what would be right.
func TestBadInput(t *testing.T) {
	t.Parallel()
	_, _, nodes := cluster(t, 1)
	n := nodes[0]
	run := func(args ...string) *exec.Cmd { return exec.Command(overlayd, n.runArgs(args...)...) }
	file := func(name, text string) string {
		path := filepath.Join(n.Dir(), name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	config := file("bad.yaml", "network: [100.96.0.0/16]\ninterface: eth0\n# a comment\nudp_prot: 9000\n")
	plain := file("plain-file", "")

	for _, r := range []refusal{
		{"NotAPrefix", run("--network", "100.96.0.0"), 2, []string{"--network", `"100.96.0.0" has no length`, "such as 100.96.0.0/16"}},
		{"LengthTooLong", run("--network", "100.96.0.0/33"), 2, []string{"--network", `length "33" is not a number from 0 to 32`}},
		{"NoNumbers", run("--network", "overlay"), 2, []string{"--network", "write ADDRESS/LENGTH"}},
		{"HostBits", run("--network", "100.96.0.1/16"), 2, []string{"100.96.0.1/16 has host bits set", "did you mean 100.96.0.0/16?"}},
		{"HostBits6", run("--network", "fd96::1/48"), 2, []string{"fd96::1/48 has host bits set", "did you mean fd96::/48?"}},
		{"NetworkTooSmall", run("--network", "100.96.0.0/25"), 2, []string{"100.96.0.0/25", "/24"}},
		{"NetworkTooSmall6", run("--network", "fd96::/65"), 2, []string{"fd96::/65", "/64"}},
		{"TwoOfOneFamily", run("--network", "100.96.0.0/16,100.97.0.0/16"), 2, []string{"two networks of one family", "give one IPv4 and one IPv6 network"}},
		{"SubnetOutside", run("--subnet", "100.97.1.0/24"), 2, []string{"100.97.1.0/24 does not lie inside the overlay networks", "100.96.0.0/16"}},
		{"SubnetHostBits", run("--subnet", "100.96.1.1/24"), 2, []string{"100.96.1.1/24 has host bits set", "did you mean 100.96.1.0/24?"}},
		{"OwnUnderlay", run("--network", "192.0.0.0/16"), 1, []string{"192.0.2.1", "192.0.0.0/16", "choose another --network"}},
		{"AdvertisedInside", run("--network", "192.0.0.0/16", "--advertise", "192.0.2.1"), 2, []string{"192.0.2.1", "192.0.0.0/16", "another --network"}},
		{"NotMyAddress", run("--advertise", "192.0.2.77"), 1, []string{"192.0.2.77"}},
		{"UnknownInterface", run("--interface", "eth7"), 1, []string{"eth7", "no such network interface"}},
		{"NoInterface", exec.Command(overlayd, "run", "--network", "100.96.0.0/16", "--state-dir", n.stateDir(), "--run-dir", n.runDir()), 2, []string{"--interface", "--advertise"}},
		{"UnknownKey", run("--config", config), 2, []string{config + ":4: ", `unknown key "udp_prot"`, `did you mean "udp_port"?`}},
		{"UnknownFlag", run("--udp-prot", "9000"), 2, []string{"--udp-prot", `did you mean "--udp-port"?`}},
		{"MissingConfig", run("--config", plain+".yaml"), 2, []string{plain + ".yaml", "no such file"}},
		{"PortOutOfRange", run("--udp-port", "70000"), 2, []string{"--udp-port", "1 to 65535"}},
		{"OnePortTwice", run("--udp-port", "7946"), 2, []string{"7946", "each needs its own"}},
		{"BadSeed", run("--join", "host:port"), 2, []string{"host:port", "between 1 and 65535"}},
		{"BadKeyFile", run("--key-file", plain), 2, []string{plain, "holds no key"}},
		{"StateDirIsAFile", run("--state-dir", plain), 1, []string{plain, "--state-dir"}},
		{"StateDirBelowAFile", run("--state-dir", plain+"/state"), 1, []string{plain, "--state-dir"}},
		{"RunDirIsAFile", run("--run-dir", plain), 1, []string{plain, "is not a directory"}},
	} {
		t.Run(r.name, func(t *testing.T) { r.check(t, n) })
	}

	t.Run("UnknownVariable", func(t *testing.T) {
		cmd := run()
		cmd.Env = append(daemonEnv(), "OVERLAYD_UDP_PROT=9000")
		refusal{cmd: cmd, code: 2, says: []string{"OVERLAYD_UDP_PROT", `did you mean "OVERLAYD_UDP_PORT"?`}}.check(t, n)
	})
	t.Run("StateDirReadOnly", func(t *testing.T) {
		dir := filepath.Join(n.Dir(), "read-only")
		must(t, os.Mkdir(dir, 0o755))
		cmd := asRole(roleReadOnlyDir, n.runArgs("--state-dir", dir)...)
		refusal{cmd: cmd, code: 1, says: []string{dir, "read-only file system", "--state-dir"}}.check(t, n)
	})
	t.Run("CorruptIdentity", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "node.json")
		must(t, os.WriteFile(path, []byte("{not json"), 0o600))
		refusal{cmd: run("--state-dir", dir), code: 1, says: []string{path, "corrupt", "restore it from a backup, or move it away"}}.check(t, n)
		if b, err := os.ReadFile(path); err != nil || string(b) != "{not json" {
			t.Errorf("the corrupt file was touched: %q, %v", b, err)
		}
	})
	t.Run("PortInUse", func(t *testing.T) {
		for port, flag := range map[uint16]string{8285: "--udp-port", 7946: "--gossip-port"} {
			conn, err := n.ListenUDP(netip.AddrPortFrom(n.Addr4(), port))
			must(t, err)
			refusal{cmd: run(), code: 1, says: []string{"in use", netip.AddrPortFrom(n.Addr4(), port).String(), flag}}.check(t, n)
			must(t, conn.Close())
		}
		conn, err := n.ListenUDP(netip.AddrPortFrom(n.Addr6(), 8285))
		must(t, err)
		refusal{cmd: run(), code: 1, says: []string{"in use", netip.AddrPortFrom(n.Addr6(), 8285).String(), "--udp-port"}}.check(t, n)
		must(t, conn.Close())
		ln, err := n.Listen(netip.AddrPortFrom(n.Addr4(), 7946))
		must(t, err)
		refusal{cmd: run(), code: 1, says: []string{"in use", "192.0.2.1:7946", "--gossip-port"}}.check(t, n)
		must(t, ln.Close())
	})
	t.Run("DeviceTaken", func(t *testing.T) {
		refusal{cmd: run("--device", "eth0"), code: 1, says: []string{"device eth0: name in use", "--device"}}.check(t, n)
		var tun tunnel.Device
		must(t, n.Do(func() (err error) { tun, err = tunnel.OpenWater("overlay0", 1400); return err }))
		refusal{cmd: run(), code: 1, says: []string{"device overlay0: name in use", "--device"}}.check(t, n)
		must(t, tun.Close())
	})
	t.Run("BadDeviceName", func(t *testing.T) {
		refusal{cmd: run("--device", "a-name-that-is-too-long"), code: 2, says: []string{"a-name-that-is-too-long", "at most 15 ", "such as overlay0"}}.check(t, n)
	})
	t.Run("NoTUN", func(t *testing.T) {
		refusal{cmd: asRole(roleNoTUN, n.runArgs()...), code: 1, says: []string{"/dev/net/tun", "modprobe tun"}}.check(t, n)
		refusal{cmd: asRole(roleBrokenTUN, n.runArgs()...), code: 1, says: []string{"/dev/net/tun"}}.check(t, n)
	})
	t.Run("NoPrivilege", func(t *testing.T) {
		cure := []string{"CAP_NET_ADMIN is missing", "run as root", "--cap-add NET_ADMIN"}
		refusal{cmd: asRole(roleNoNetAdmin, n.runArgs()...), code: 1, says: cure}.check(t, n)
		// A user who may write the directories, but not change the network.
		dir := filepath.Join(n.Dir(), "nobody")
		must(t, os.Mkdir(dir, 0o755), os.Chown(dir, 65534, 65534))
		cmd := run("--state-dir", filepath.Join(dir, "state"), "--run-dir", filepath.Join(dir, "run"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		refusal{cmd: cmd, code: 1, says: cure}.check(t, n)
	})
	t.Run("OtherRoute", func(t *testing.T) {
		must(t, n.AddRoute(netip.MustParsePrefix("100.96.7.0/24"), netip.MustParseAddr("192.0.2.9")))
		refusal{cmd: run(), code: 1, says: []string{"100.96.0.0/16", "route 100.96.7.0/24 via 192.0.2.9", "choose another overlay network"}}.check(t, n)
		refusal{cmd: run("--network", "100.96.7.0/24", "--subnet-len", "26"), code: 1, says: []string{"100.96.7.0/24", "choose another overlay network"}}.check(t, n)
	})
	t.Run("OtherAddress", func(t *testing.T) {
		_, err := n.Bridge(lab.BridgeConfig{Addrs: []netip.Prefix{netip.MustParsePrefix("100.98.4.1/24")}})
		must(t, err)
		refusal{cmd: run("--network", "100.98.0.0/16"), code: 1, says: []string{"100.98.0.0/16", "100.98.4.1/24", "br0", "choose another overlay network"}}.check(t, n)
	})
	// What never came as far as a node has left no identity, and what did has
	// left nothing that keeps the next one from running.
	t.Run("AfterAllThat", func(t *testing.T) {
		n.start(t, "--network", "100.99.0.0/16,"+network6.String())
		n.lease(t)
		n.stop(t)
	})
}

// TestBadInputBesideOthers is about what only other daemons make wrong.
func TestBadInputBesideOthers(t *testing.T) {
	t.Parallel()
	_, _, nodes := cluster(t, 2)
	first, n := nodes[0], nodes[1]
	first.start(t)
	first.lease(t)
	seed := first.Addr4().String()
	join := func(args ...string) *exec.Cmd {
		return exec.Command(overlayd, n.runArgs(append(args, "--join", seed)...)...)
	}

	t.Run("NameTaken", func(t *testing.T) {
		refusal{cmd: join("--name", "host1"), code: 1, says: []string{`"host1" is the name of the live node`, seed, "--name"}}.check(t, n)
	})
	for name, network := range map[string]string{
		"OtherNetwork":   "100.98.0.0/16,fd96::/48",
		"LargerNetwork":  "100.96.0.0/15,fd96::/48",
		"OneFamilyFewer": "100.96.0.0/16",
	} {
		t.Run(name, func(t *testing.T) {
			says := []string{"the cluster has", "100.96.0.0/16", "fd96::/48", "this node is configured with"}
			refusal{cmd: join("--network", network), code: 1, says: append(says, strings.Split(network, ",")...)}.check(t, n)
		})
	}
	t.Run("OtherSubnetLength", func(t *testing.T) {
		refusal{cmd: join("--subnet-len", "25,64"), code: 1, says: []string{"the cluster has", "/24", "this node is configured with", "/25"}}.check(t, n)
	})
	t.Run("StaticSubnetTaken", func(t *testing.T) {
		must(t, os.RemoveAll(n.stateDir()))
		n.start(t, "--join", seed, "--subnet", "100.96.200.0/24")
		n.lease(t)
		if n.env.Subnet4.Masked() != netip.MustParsePrefix("100.96.200.0/24") {
			t.Errorf("it holds %v", n.env.Subnets())
		}
		awaitMesh(t, nodes...)
		first.stop(t)
		cmd := exec.Command(overlayd, first.runArgs("--subnet", "100.96.200.128/25", "--join", n.Addr4().String())...)
		refusal{cmd: cmd, code: 1, says: []string{"100.96.200.128/25 overlaps 100.96.200.0/24", "another --subnet"}}.check(t, first)
		first.start(t, "--join", n.Addr4().String())
		first.lease(t)
		awaitMesh(t, nodes...)
		n.stop(t)
	})
	t.Run("AnotherDaemon", func(t *testing.T) {
		again := func(args ...string) *exec.Cmd { return exec.Command(overlayd, first.runArgs(args...)...) }
		refusal{cmd: again(), code: 1, says: []string{"another overlayd is already running", first.runDir()}}.check(t, first)
		refusal{cmd: again("--run-dir", t.TempDir()), code: 1, says: []string{"state directory in use", first.stateDir(), "--state-dir"}}.check(t, first)
		dirs := func(args ...string) *exec.Cmd {
			return again(append(args, "--run-dir", t.TempDir(), "--state-dir", t.TempDir())...)
		}
		ports := []string{"--udp-port", "9285", "--gossip-port", "9946"}
		refusal{cmd: dirs(), code: 1, says: []string{"the UDP port 192.0.2.1:8285 is in use", "--udp-port"}}.check(t, first)
		refusal{cmd: dirs(ports...), code: 1, says: []string{"device overlay0: name in use", "--device"}}.check(t, first)
		refusal{cmd: dirs(append(ports, "--device", "overlay1")...), code: 1,
			says: []string{"overlay network 100.96.0.0/16", "overlay0", "choose another overlay network"}}.check(t, first)
		if s := first.status(t); len(s.Node.Subnets) != 2 {
			t.Errorf("the running daemon has %v", s.Node.Subnets)
		}
	})
	// None of them has disturbed the first node.
	labtest.Eventually(t, downLimit, func() error {
		_, err := first.ask()
		return err
	})
	if !first.daemon.Running() {
		t.Error("the first node has ended")
	}
}
