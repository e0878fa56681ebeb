package e2e_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// docsLab is where the commands of the pages are run: a cluster of hosts, each of
// which has something wrong with it that the pages speak of. On each of them
// /etc/overlayd, /run/overlayd and /var/lib/overlayd are its own, and overlayd is in
// the PATH.
//
//	host1, host2   all is well
//	host3          a firewall between the hosts drops UDP 8285
//	host4          cut off after it has been there
//	host5          eats packets: forwarding off, a firewall, strict reverse-path filters,
//	               another route for the overlay
//	host6          has another key
//	host7          is of another cluster
//	host8          nothing runs there
//	host9          --fast-path off
//	host10         its interface carries 1400 bytes since a moment ago
//	host11         holds the only subnet of another cluster, until host12 has it
//	host12         has the same subnet by its configuration, and joins late
//	host13         all is well; it leaves
//	host14         a firewall between the hosts drops its gossip
//	host15, host16 have flannel's vxlan device, and the subnets that flannel gave them
type docsLab struct {
	nodes map[string]*node
	path  string // that has overlayd
}

// docsNetwork is the whole of the cluster of host11 and host12: one subnet.
const docsNetwork = "100.98.0.0/24"

// docsNetConf is what flannel was configured with on host15 and host16.
const docsNetConf = `{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}` + "\n"

func newDocsLab(t *testing.T) *docsLab {
	_, sw, nodes := cluster(t, 16)
	bin := filepath.Join(t.TempDir(), "bin")
	must(t, os.Mkdir(bin, 0o755), os.Symlink(overlayd, filepath.Join(bin, "overlayd")))
	d := &docsLab{map[string]*node{}, bin + ":" + os.Getenv("PATH")}
	for _, n := range nodes {
		d.nodes[n.Name()] = n
		for _, dir := range docsDirs {
			must(t, os.MkdirAll(filepath.Join(n.Dir(), dir), 0o755))
		}
		key := clusterKey
		if n.Name() == "host6" {
			key = otherKey
		}
		must(t, os.WriteFile(filepath.Join(n.stateDir(), "key"), []byte(key), 0o600))
		example, err := os.ReadFile("../../examples/two-hosts/overlayd.yaml")
		must(t, err)
		must(t, os.WriteFile(filepath.Join(n.Dir(), "etc", "overlayd.yaml"), example, 0o644))
	}
	host := func(i int) *node { return nodes[i-1] }

	blocked, mute := netip.PrefixFrom(host(3).Addr4(), 32), netip.PrefixFrom(host(14).Addr4(), 32)
	must(t, block(sw, lab.Match{Proto: "udp", Port: 8285, Dst: blocked}, lab.Match{Proto: "udp", Port: 8285, Src: blocked},
		lab.Match{Proto: "udp", Port: 7946, Src: mute}, lab.Match{Proto: "tcp", Port: 7946, Src: mute}))
	must(t, host(5).Sysctl("net/ipv4/ip_forward", "0"), host(5).Sysctl("net/ipv6/conf/all/forwarding", "0"),
		host(5).Sysctl("net/ipv4/conf/eth0/rp_filter", "1"), host(5).ForwardPolicyDrop(),
		host(5).AddRoute(netip.MustParsePrefix("100.64.0.0/10"), netip.MustParseAddr("192.0.2.1")))

	seed := host(1).Addr4().String()
	d.start(t, host(1), "--http-listen", "9570")
	for _, i := range []int{2, 3, 4, 5, 6, 10, 13, 14} {
		d.start(t, host(i), "--join", seed)
	}
	d.start(t, host(7), "--join", seed, "--cluster", "other")
	d.start(t, host(9), "--join", seed, "--fast-path", "off")
	d.start(t, host(11), "--network", docsNetwork)
	for _, i := range []int{15, 16} {
		d.run(t, docCommand{host: host(i).Name(), text: "ip link add flannel.1 type vxlan id 1 dstport 8472 local " + host(i).Addr4().String() + " nolearning"})
		must(t, os.WriteFile(filepath.Join(host(i).Dir(), "etc", "net-conf.json"), []byte(docsNetConf), 0o644))
	}
	ofFlannel := []string{"--net-conf", "/etc/overlayd/net-conf.json", "--join", "192.0.2.15,192.0.2.16"}
	d.start(t, host(15), append(ofFlannel, "--subnet", "10.5.34.0/24")...)
	d.start(t, host(16), append(ofFlannel, "--subnet", "10.5.36.0/24", "--ip-masq")...)

	for _, i := range []int{1, 2, 4, 10, 11, 13} {
		host(i).lease(t)
	}
	d.start(t, host(12), "--network", docsNetwork, "--subnet", docsNetwork, "--join", host(11).Addr4().String())
	awaitMesh(t, host(1), host(2), host(4), host(10), host(13))
	must(t, host(4).Cut(), host(10).SetMTU("eth0", 1400))
	return d
}

// start starts the daemon of a host as its pages say, with a subnet that has the
// number of the host.
func (d *docsLab) start(t *testing.T, n *node, args ...string) {
	t.Helper()
	i := strings.TrimPrefix(n.Name(), "host")
	all := []string{"run", "--interface", "eth0", "--name", n.Name(), "--key-file", "/var/lib/overlayd/key"}
	n.networks = 1
	if !slices.Contains(args, "--network") && !slices.Contains(args, "--net-conf") {
		n.networks = 2
		all = append(all, "--network", network4.String()+","+network6.String(),
			"--subnet", fmt.Sprintf("100.96.%s.0/24,fd96:0:0:%s::/64", i, i))
	}
	var err error
	n.daemon, err = n.Host.Start(d.command(n, append([]string{"overlayd"}, append(all, args...)...)...), lab.StartOptions{Name: "overlayd"})
	must(t, err)
}

// command makes a command that finds the directories of a host where they are
// described.
func (d *docsLab) command(n *node, args ...string) *exec.Cmd {
	script := []string{os.Args[0], n.Dir(), "/bin/sh", "-c", `exec "$@"`, "sh"}
	cmd := &exec.Cmd{Path: os.Args[0], Args: append(script, args...)}
	cmd.Env = append(daemonEnv(), "PATH="+d.path, roleVariable+"="+roleDocs)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	return cmd
}

// run runs a command of a page.
func (d *docsLab) run(t *testing.T, c docCommand) (out string, code int, err error) {
	var b []byte
	var cmd *exec.Cmd
	if c.host == "repo" {
		cmd = exec.CommandContext(within(t, docPatience), "/bin/sh", "-c", c.text)
		cmd.Dir = "../.."
		b, err = cmd.CombinedOutput()
	} else {
		n := d.nodes[c.host]
		if n == nil {
			return "", 0, errors.New("there is no such host")
		}
		cmd = d.command(n, "/bin/sh", "-c", c.text)
		b, err = n.Output(within(t, docPatience), cmd)
	}
	if cmd.ProcessState == nil {
		return string(b), 0, err
	}
	return string(b), cmd.ProcessState.ExitCode(), nil
}

// docsDirs are the directories of a host, by their names in that of the lab.
var docsDirs = map[string]string{"/etc/overlayd": "etc", "/run/overlayd": "run", "/var/lib/overlayd": "state"}

// docsHome puts the directories of a host of the lab where they are on a real one, in
// the mount namespace of this process, which is its own.
func docsHome(dir string) error {
	var errs []error
	do := func(err error) { errs = append(errs, err) }
	from := map[string]*os.File{}
	for _, name := range docsDirs {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		defer f.Close()
		from[name] = f
	}
	etc, err := os.Open("/etc")
	if err != nil {
		return err
	}
	defer etc.Close()
	entries, err := etc.Readdirnames(-1)
	if err != nil {
		return err
	}
	// What is in /etc stays: commands need it. The others begin empty.
	bind := func(f *os.File, at string) error {
		return errors.Join(os.MkdirAll(at, 0o755), unix.Mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), at, "", unix.MS_BIND, ""))
	}
	do(unix.Mount("none", "/run", "tmpfs", 0, ""))
	do(bind(etc, "/run/etc"))
	do(unix.Mount("none", "/etc", "tmpfs", 0, ""))
	for _, e := range entries {
		if e != "overlayd" {
			do(os.Symlink("/run/etc/"+e, "/etc/"+e))
		}
	}
	do(unix.Mount("none", "/var/lib", "tmpfs", 0, ""))
	for at, name := range docsDirs {
		do(bind(from[name], at))
	}
	return errors.Join(errs...)
}
