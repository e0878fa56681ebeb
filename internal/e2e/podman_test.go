package e2e_test

import (
	"archive/tar"
	"debug/elf"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// engine is podman on a node.
type engine struct {
	*node
	args  []string // of nsenter and podman, up to the command
	env   []string
	image string
}

// needsPodman skips the test where there is no podman that may use CNI, or nothing
// to put into an image.
func needsPodman(t *testing.T) (busybox string) {
	t.Helper()
	for _, program := range []string{"podman", "crun", "conmon", "nsenter", "unshare", "iptables-save"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs podman (Debian: podman, crun): %v", err)
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skipf("needs a static busybox (Debian: busybox-static): %v", err)
	}
	f, err := elf.Open(busybox)
	must(t, err)
	defer f.Close()
	if libs, err := f.ImportedLibraries(); err != nil || len(libs) > 0 {
		t.Skipf("needs a static busybox (Debian: busybox-static): %s needs %v", busybox, libs)
	}
	return busybox
}

// podman makes an engine on a node. Its containers live in a namespace of
// processes whose first one is the lab's, so that they end with the lab, however
// that ends. It has directories of its own in place of those where podman and CNI
// keep files under fixed names, and in place of the control groups, which are not
// needed and not the same everywhere.
func podman(t *testing.T, n *node, busybox string) *engine {
	t.Helper()
	ready := filepath.Join(n.Dir(), "podman-ready")
	const script = `set -e
		mkdir "$0/new-run" && mount -t tmpfs tmpfs "$0/new-run"
		mkdir -p "$0/new-run/${0#/run/}" && mount --bind "$0" "$0/new-run/${0#/run/}"
		mount --no-mtab --move "$0/new-run" /run
		for dir in /var/lib /dev/shm /sys/fs/cgroup; do mount -t tmpfs tmpfs $dir; done
		touch "$0/podman-ready"
		sleep infinity & wait`
	init, err := n.Host.Start(exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, n.Dir()),
		lab.StartOptions{Name: "podman-init"})
	must(t, err)
	labtest.Eventually(t, 10*time.Second, func() error {
		if !init.Running() {
			t.Fatalf("%s has ended: %v", init.Name(), init.Err())
		}
		_, err := os.Stat(ready)
		return err
	})
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", init.PID(), init.PID()))
	must(t, err)

	dir := func(name string) string { return filepath.Join(n.Dir(), name) }
	must(t, os.Mkdir(dir("net.d"), 0o755))
	list, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": cniNetwork, "plugins": []any{
		n.cniPlugin(), map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}},
	}})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir("net.d"), "overlay.conflist"), list, 0o644))
	quoted, err := json.Marshal(cniDirs(t))
	must(t, err)
	conf := fmt.Sprintf(`[network]
network_backend = "cni"
network_config_dir = %q
cni_plugin_dirs = %s
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
`, dir("net.d"), quoted)
	must(t, os.WriteFile(dir("containers.conf"), []byte(conf), 0o644))
	e := &engine{
		node:  n,
		args:  []string{"--target", strings.TrimSpace(string(children)), "--mount", "--pid", "podman", "--storage-driver", "vfs"},
		env:   append(daemonEnv(), "CONTAINERS_CONF="+dir("containers.conf")),
		image: "busybox",
	}
	t.Cleanup(func() { e.run(t, "rm", "--all", "--force", "--time", "0") })
	root, err := os.Create(dir("image.tar"))
	must(t, err, writeImage(root, busybox), root.Close())
	e.run(t, "import", dir("image.tar"), e.image)
	return e
}

// writeImage writes the files of an image that has busybox and nothing else.
func writeImage(f *os.File, busybox string) error {
	b, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	if err := w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(b))}); err != nil {
		return err
	}
	if _, err := w.Write(b); err != nil {
		return err
	}
	return w.Close()
}

// run runs a command of podman and returns what it printed.
func (e *engine) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("nsenter", append(slices.Clone(e.args), args...)...)
	cmd.Env = e.env
	out, code := e.inside(t, cmd)
	if code != 0 {
		t.Fatalf("podman %s on %s: exit code %d: %s", strings.Join(args, " "), e.node, code, out)
	}
	return out
}

// publishedPort is a port of the hosts that leads to the containers called first.
const publishedPort = 8080

// container starts a container in the network, which serves HTTP, and returns its
// addresses.
func (e *engine) container(t *testing.T, name string, args ...string) (addrs []netip.Addr) {
	t.Helper()
	args = append([]string{"run", "--detach", "--name", name, "--network", cniNetwork}, args...)
	e.run(t, append(args, e.image, "/bin/busybox", "httpd", "-f", "-p", "80")...)
	var seen []struct {
		NetworkSettings struct {
			Networks map[string]struct {
				IPAddress         netip.Addr
				GlobalIPv6Address netip.Addr
			}
		}
	}
	out := e.run(t, "inspect", name)
	if err := json.Unmarshal([]byte(out), &seen); err != nil || len(seen) != 1 {
		t.Fatalf("podman inspect: %v: %s", err, out)
	}
	net := seen[0].NetworkSettings.Networks[cniNetwork]
	if !e.env4().Contains(net.IPAddress) || !e.env6().Contains(net.GlobalIPv6Address) {
		t.Fatalf("%s has the addresses %v and %v, want ones of %v and %v", name, net.IPAddress, net.GlobalIPv6Address, e.env4(), e.env6())
	}
	return []netip.Addr{net.IPAddress, net.GlobalIPv6Address}
}

func (e *engine) env4() netip.Prefix { return e.node.env.Subnet4.Masked() }
func (e *engine) env6() netip.Prefix { return e.node.env.Subnet6.Masked() }

// ping sends echo requests of full size from a container, all of which have to be
// answered.
func (e *engine) ping(t *testing.T, name string, dst netip.Addr) {
	t.Helper()
	headers := 20 + 8
	if dst.Is6() {
		headers = 40 + 8
	}
	size := strconv.Itoa(e.node.env.MTU - headers)
	out := e.run(t, "exec", name, "/bin/busybox", "ping", "-c", "3", "-i", "0.1", "-W", "3", "-s", size, dst.String())
	if !strings.Contains(out, "3 packets received") {
		t.Errorf("%s on %s pings %s: %s", name, e.node, dst, out)
	}
}

// TestPodman runs containers by podman on two hosts. They reach each other in both
// families by every path, and after the daemons were restarted, one of them with
// a port published in both families, the other with addresses of its
// user's choice; removing them leaves nothing.
func TestPodman(t *testing.T) {
	t.Parallel()
	busybox := needsPodman(t)
	cniDirs(t)
	_, _, nodes := cluster(t, 2)
	var engines []*engine
	for _, n := range nodes {
		engines = append(engines, podman(t, n, busybox))
	}
	var addrs [][]netip.Addr
	attach := func(t *testing.T) {
		for _, e := range engines {
			addrs = append(addrs, e.container(t, "first", "--publish", fmt.Sprintf("%d:80", publishedPort)))
			wanted := []netip.Addr{e.env4().Addr(), e.env6().Addr()}
			for range 77 {
				wanted[0], wanted[1] = wanted[0].Next(), wanted[1].Next()
			}
			got := e.container(t, "second", "--ip", wanted[0].String(), "--ip6", wanted[1].String(), "--mac-address", "02:00:00:00:00:77")
			if !slices.Equal(got, wanted) {
				t.Errorf("the second container on %s has the addresses %v, want %v", e.node, got, wanted)
			}
			if out := e.run(t, "exec", "second", "/bin/busybox", "ip", "link", "show", "dev", "eth0"); !strings.Contains(out, "02:00:00:00:00:77") {
				t.Errorf("the second container on %s has %s", e.node, out)
			}
		}
	}
	onEveryPath(t, nodes[0], nodes[1], attach, func(t *testing.T) {
		for i, e := range engines {
			for _, dst := range addrs[1-i] {
				e.ping(t, "first", dst)
				e.ping(t, "second", dst)
			}
			other := nodes[1-i]
			for _, addr := range []netip.Addr{other.Addr4(), other.Addr6()} {
				c, err := e.Dial(within(t, 5*time.Second), "tcp", netip.AddrPortFrom(addr, publishedPort))
				if err != nil {
					t.Errorf("the published port of %s at %s: %v", other, addr, err)
					continue
				}
				must(t, c.Close())
			}
		}
	})
	for _, e := range engines {
		e.run(t, "rm", "--force", "--time", "0", "first")
		e.run(t, "rm", "--force", "--time", "0", "second")
		if left := e.cniLeft(t); len(left) > 0 {
			t.Errorf("%s: left behind:\n%s", e.node, strings.Join(left, "\n"))
		}
		for _, program := range []string{"iptables-save", "ip6tables-save"} {
			rules, code := e.inside(t, exec.Command(program))
			if code != 0 || strings.Contains(rules, strconv.Itoa(publishedPort)) {
				t.Errorf("%s: the rules of the published port are left, %s has %d:\n%s", e.node, program, code, rules)
			}
		}
		if out := e.run(t, "ps", "--all", "--quiet"); out != "" {
			t.Errorf("%s: podman still has %s", e.node, out)
		}
	}
}
