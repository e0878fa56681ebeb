package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// cniProgram is the built plugin overlayd-cni, in a directory of its own.
var cniProgram = sync.OnceValues(func() (string, error) {
	path := filepath.Join(builds, "cni", "overlayd-cni")
	cmd := exec.Command("go", "build", "-o", path, "github.com/overlayd/overlayd/cmd/overlayd-cni")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build overlayd-cni: %w: %s", err, out)
	}
	return path, nil
})

// cniDirs are where our plugin and the stock plugins are. Without the latter the
// test is skipped.
func cniDirs(t *testing.T) []string {
	t.Helper()
	for _, dir := range []string{"/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin"} {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil {
			program, err := cniProgram()
			must(t, err)
			return []string{filepath.Dir(program), dir}
		}
	}
	t.Skip("needs the stock CNI plugins (Debian: containernetworking-plugins)")
	return nil
}

// cniPlugin is the configuration of our plugin on a node, all of whose files are
// in the node's directory.
func (n *node) cniPlugin() map[string]any {
	return map[string]any{
		"type": "overlayd-cni", "runDir": n.runDir(), "stateDir": filepath.Join(n.Dir(), "cni"),
		"delegate": map[string]any{"ipam": map[string]any{"dataDir": filepath.Join(n.Dir(), "leases")}},
	}
}

// cniNetwork is the name of the network that the tests configure.
const cniNetwork = "overlay"

// cniCommand is one run of a plugin by the CNI protocol, for eth0 of a container of
// the lab.
func cniCommand(t *testing.T, dirs []string, command string, plugin map[string]any, container *lab.Host) *exec.Cmd {
	t.Helper()
	conf := map[string]any{"cniVersion": "1.0.0", "name": cniNetwork}
	maps.Copy(conf, plugin)
	stdin, err := json.Marshal(conf)
	must(t, err)
	cmd := exec.Command(filepath.Join(dirs[0], plugin["type"].(string)))
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = append(daemonEnv(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+container.Name(), "CNI_NETNS="+container.Path(),
		"CNI_IFNAME=eth0", "CNI_PATH="+strings.Join(dirs, ":"))
	return cmd
}

// cni runs a plugin, which must work. It returns the addresses in the result.
func (n *node) cni(t *testing.T, dirs []string, command string, plugin map[string]any, container *lab.Host) (addrs []netip.Addr) {
	t.Helper()
	out, code := n.inside(t, cniCommand(t, dirs, command, plugin, container))
	if code != 0 {
		t.Fatalf("%s on %s: %s", command, n, out)
	}
	if command != "ADD" {
		return nil
	}
	var result struct {
		IPs []struct {
			Address netip.Prefix `json:"address"`
		} `json:"ips"`
	}
	must(t, json.Unmarshal([]byte(out), &result))
	for _, ip := range result.IPs {
		if !slices.Contains([]netip.Prefix{n.env.Subnet4.Masked(), n.env.Subnet6.Masked()}, ip.Address.Masked()) {
			t.Errorf("%s has given %s, which is not of its subnets", n, ip.Address)
		}
		addrs = append(addrs, ip.Address.Addr())
	}
	if len(addrs) != 2 {
		t.Fatalf("%s has given the addresses %v, want one of each family", n, addrs)
	}
	return addrs
}

// cniLeft lists what is left of containers on a node: veths, remembered
// attachments, leases.
func (n *node) cniLeft(t *testing.T) (left []string) {
	t.Helper()
	for _, line := range n.state(t) {
		if strings.HasPrefix(line, "link veth") {
			left = append(left, line)
		}
	}
	for _, dir := range []string{"cni", "leases"} {
		entries, err := os.ReadDir(filepath.Join(n.Dir(), dir, cniNetwork))
		must(t, err)
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), "last_reserved_ip.") && e.Name() != "lock" { // host-local's own
				left = append(left, filepath.Join(dir, e.Name()))
			}
		}
	}
	return left
}

// onEveryPath starts daemons on two nodes, has attach give them containers, and
// calls check on every path between the two; the last one after the daemons were
// restarted.
func onEveryPath(t *testing.T, a, b *node, attach, check func(t *testing.T)) {
	t.Helper()
	start := func(encap string) {
		args := []string{"--encap", encap, "--fast-path", "auto"}
		a.start(t, args...)
		b.start(t, append(args, "--join", a.Addr4().String())...)
		a.lease(t)
		b.lease(t)
	}
	start("udp")
	attach(t)
	awaitMesh(t, a, b)
	on := func(path, shown string) {
		for _, pair := range [][2]*node{{a, b}, {b, a}} {
			from, to := pair[0], pair[1]
			from.awaitPath(t, proofLimit, to, "direct") // so that others are proven as well
			from.setPath(t, to, path)
			from.awaitPath(t, proofLimit, to, shown)
		}
		t.Run(shown, check)
		for _, pair := range [][2]*node{{a, b}, {b, a}} {
			pair[0].setPath(t, pair[1], "auto")
		}
	}
	on("userspace", "userspace-udp")
	on("kernel-vxlan", "kernel-vxlan")
	on("direct", "direct")
	a.stop(t)
	b.stop(t)
	start("vxlan")
	awaitMesh(t, a, b)
	on("userspace", "userspace-vxlan")
}

// TestCNI attaches containers by the CNI protocol alone. They reach each other in
// both families by every path, and after the daemons were restarted; detaching
// them leaves nothing, also while the node is down.
func TestCNI(t *testing.T) {
	t.Parallel()
	cniDirs(t)
	l, _, nodes := cluster(t, 2)
	var containers []*lab.Host
	var addrs [][]netip.Addr
	attach := func(t *testing.T) {
		for _, n := range nodes {
			c, err := l.Host("c-" + n.Name())
			must(t, err)
			containers = append(containers, c)
			addrs = append(addrs, n.cni(t, cniDirs(t), "ADD", n.cniPlugin(), c))
		}
	}
	onEveryPath(t, nodes[0], nodes[1], attach, func(t *testing.T) {
		for i, c := range containers {
			for _, dst := range addrs[1-i] {
				pingAll(t, c.Namespace, lab.PingConfig{Dst: dst})
				pingAll(t, c.Namespace, lab.PingConfig{Dst: dst, Size: nodes[i].env.MTU, DontFragment: true})
			}
		}
	})
	nodes[1].stop(t)
	for i, n := range nodes {
		n.cni(t, cniDirs(t), "DEL", n.cniPlugin(), containers[i])
		if left := n.cniLeft(t); len(left) > 0 {
			t.Errorf("%s: left behind:\n%s", n, strings.Join(left, "\n"))
		}
	}
}

// TestCNINotReady: until the node holds a subnet the runtime is told to try again.
func TestCNINotReady(t *testing.T) {
	t.Parallel()
	dirs := cniDirs(t)
	l, _, nodes := cluster(t, 1)
	n := nodes[0]
	c, err := l.Host("c")
	must(t, err)
	plugin := n.cniPlugin()
	plugin["cniVersion"] = "1.1.0" // for STATUS
	run := func(command string) (string, int) {
		return n.inside(t, cniCommand(t, dirs, command, plugin, c))
	}
	for command, code := range map[string]string{"ADD": `"code": 11`, "STATUS": `"code": 50`} {
		if out, exit := run(command); exit == 0 || !strings.Contains(out, code) {
			t.Errorf("%s before the node runs: exit code %d, %s, want %s", command, exit, out, code)
		}
	}
	n.start(t)
	n.lease(t)
	for _, command := range []string{"STATUS", "ADD", "DEL"} {
		if out, exit := run(command); exit != 0 {
			t.Errorf("%s on a node that is ready: %s", command, out)
		}
	}
	n.daemon.Kill()
	if out, exit := run("STATUS"); exit == 0 || !strings.Contains(out, `"code": 51`) {
		t.Errorf("STATUS of a killed daemon: exit code %d, %s, want code 51", exit, out)
	}
}
