package examples

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd"
	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

const overlaydProgram = "github.com/overlayd/overlayd/cmd/overlayd"

// unit is a systemd unit file: the values of each key, in order.
type unit map[string][]string

func readUnit(t *testing.T) unit {
	t.Helper()
	f, err := os.Open("two-hosts/overlayd.service")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	u := unit{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if key, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			u[key] = append(u[key], value)
		}
	}
	return u
}

func (u unit) one(t *testing.T, key string) string {
	t.Helper()
	if len(u[key]) != 1 {
		t.Fatalf("%s= stands %d times in the unit, want once", key, len(u[key]))
	}
	return u[key][0]
}

// The unit's directories are the program's defaults, and it can have the only
// device that it needs.
func TestUnit(t *testing.T) {
	u := readUnit(t)
	for key, want := range map[string]string{
		"Type":                "notify",
		"StateDirectory":      strings.TrimPrefix(overlayd.DefaultStateDir, "/var/lib/"),
		"RuntimeDirectory":    strings.TrimPrefix(overlayd.DefaultRunDir, "/run/"),
		"AmbientCapabilities": "CAP_NET_ADMIN CAP_NET_RAW",
		"DeviceAllow":         "/dev/net/tun rw",
	} {
		if got := u.one(t, key); got != want {
			t.Errorf("%s=%s, want %s", key, got, want)
		}
	}
	// Each of these takes away what a node needs.
	for _, key := range []string{"PrivateDevices", "PrivateNetwork", "PrivateUsers", "ProtectKernelTunables", "ProcSubset"} {
		if v, ok := u[key]; ok {
			t.Errorf("%s=%s cannot work", key, v)
		}
	}
}

func TestUnitVerifies(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skipf("systemd is not installed: %v", err)
	}
	text, err := os.ReadFile("two-hosts/overlayd.service")
	if err != nil {
		t.Fatal(err)
	}
	// The program need not be installed here, and it must not be run from where
	// it is.
	const program = "/usr/local/bin/overlayd"
	verify := func(text string) (string, error) {
		path := filepath.Join(t.TempDir(), "overlayd.service")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput()
		return string(out), err
	}
	good := strings.ReplaceAll(string(text), program, "/bin/true")
	out, err := verify(good)
	if strings.Contains(out, "overlayd.service") {
		t.Error(out)
	} else if err != nil {
		t.Logf("about other units of this machine: %v\n%s", err, out)
	}
	bad := strings.Replace(good, "ProtectSystem=strict", "ProtectSystem=very", 1)
	if out, _ := verify(bad); !strings.Contains(out, "overlayd.service") {
		t.Errorf("a faulty unit is not found out:\n%s", out)
	}
}

// writeKey makes a key file that the owner may read.
func writeKey(t *testing.T, dir string, owner int) string {
	t.Helper()
	path := filepath.Join(dir, "key")
	key := base64.StdEncoding.EncodeToString([]byte("thirty-two bytes of a test's key"))
	if err := os.WriteFile(path, []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestTwoHostsConfigCheck(t *testing.T) {
	dir := t.TempDir()
	binary := build(t, dir, overlaydProgram)
	cmd := exec.Command(binary, "config", "check", "two-hosts/overlayd.yaml")
	cmd.Env = append(os.Environ(), "OVERLAYD_KEY_FILE="+writeKey(t, dir, os.Geteuid()))
	out, err := cmd.CombinedOutput()
	if want := "two-hosts/overlayd.yaml: ok\n"; err != nil || string(out) != want {
		t.Errorf("%v\n%s", err, out)
	}
}

// The two hosts of the README: both start with the same file, the unit's
// command line, user and privilege, report to a service manager that they are
// ready and alive, and carry packets between containers that are attached by
// what subnet.env says.
func TestTwoHosts(t *testing.T) {
	_, _, hosts := labtest.Hosts(t, 2)
	needTUN(t)
	u := readUnit(t)
	dir := publicDir(t)
	binary := build(t, dir, overlaydProgram)
	text, err := os.ReadFile("two-hosts/overlayd.yaml")
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "overlayd.yaml")
	if err := os.WriteFile(config, text, 0o644); err != nil {
		t.Fatal(err)
	}
	key := writeKey(t, dir, nobody)
	for i, h := range hosts {
		if want := fmt.Sprintf("192.0.2.%d", i+1); h.Addr4().String() != want || !strings.Contains(string(text), "- "+want+"\n") {
			t.Fatalf("%s has %v: the config file is for %s", h, h.Addr4(), want)
		}
	}

	var before [][]string
	var daemons []*lab.Process
	var managers []*manager
	var runDirs []string
	for _, h := range hosts {
		before = append(before, hostState(t, h))
		m := newManager(t, filepath.Join(dir, h.Name()+".notify"))
		state, run := privateDir(t, dir, h.Name()+".state"), privateDir(t, dir, h.Name()+".run")
		cmd := exec.Command(binary, unitArgs(t, u, config)...)
		cmd.Dir = "/"
		cmd.Env = []string{
			"OVERLAYD_KEY_FILE=" + key, "OVERLAYD_NAME=" + h.Name(), "OVERLAYD_STATE_DIR=" + state, "OVERLAYD_RUN_DIR=" + run,
			"NOTIFY_SOCKET=" + m.path, "WATCHDOG_USEC=1000000",
		}
		cmd.SysProcAttr = unitPrivileges(t, u)
		p, err := h.Start(cmd, lab.StartOptions{})
		if err != nil {
			t.Fatal(err)
		}
		daemons, managers, runDirs = append(daemons, p), append(managers, m), append(runDirs, run)
	}
	for i := range hosts {
		managers[i].await(t, daemons[i], "READY=1")
		managers[i].await(t, daemons[i], "WATCHDOG=1")
	}

	var containers []*lab.Container
	for i, h := range hosts {
		env, err := lab.ReadSubnetEnv(filepath.Join(runDirs[i], "subnet.env"))
		if err != nil {
			t.Fatal(err)
		}
		checkShellLines(t, filepath.Join(runDirs[i], "subnet.env"), env)
		bridge, err := h.Bridge(lab.BridgeConfig{Addrs: env.Subnets(), MTU: env.MTU})
		if err != nil {
			t.Fatal(err)
		}
		c, err := bridge.Container("c" + h.Name())
		if err != nil {
			t.Fatal(err)
		}
		containers = append(containers, c)
	}
	for _, dst := range []netip.Addr{containers[1].Addr4(), containers[1].Addr6()} {
		labtest.Eventually(t, limit, func() error {
			r, err := containers[0].Ping(t.Context(), lab.PingConfig{Dst: dst})
			if err == nil && r.Received != r.Sent {
				err = fmt.Errorf("%d of %d pings of %v were answered", r.Received, r.Sent, dst)
			}
			return err
		})
	}
	// With the unit's privileges they come to a path of the kernel's.
	labtest.Eventually(t, limit, func() error {
		cmd := exec.Command(binary, "peers", "--run-dir", runDirs[0])
		out, err := hosts[0].Output(t.Context(), cmd)
		if err == nil && !strings.Contains(string(out), " "+overlayd.PathDirect+" ") {
			err = fmt.Errorf("the peers: %s", out)
		}
		return err
	})
	for i, p := range daemons {
		stop(t, p)
		managers[i].await(t, p, "STOPPING=1")
		// The unit keeps what goes by the kernel, and its README says what ends that.
		if _, err := os.Stat(filepath.Join(runDirs[i], "subnet.env")); err != nil {
			t.Error(err)
		}
		cmd := exec.Command(binary, "cleanup", "--run-dir", runDirs[i])
		if out, err := hosts[i].Output(t.Context(), cmd); err != nil || !strings.Contains(string(out), "overlay0-v4") {
			t.Errorf("cleanup: %v: %s", err, out)
		}
		left := slices.DeleteFunc(hostState(t, hosts[i]), func(line string) bool {
			return slices.Contains(before[i], line) || bridgeLine.MatchString(line)
		})
		if len(left) > 0 {
			t.Errorf("%s: left behind:\n%s", hosts[i], strings.Join(left, "\n"))
		}
	}
}

// bridgeLine is what the container's bridge adds to a host's state.
var bridgeLine = regexp.MustCompile(`\b(br0|veth|vchost|chost)`)

// unitArgs are the arguments of ExecStart=, with another config file.
func unitArgs(t *testing.T, u unit, config string) []string {
	t.Helper()
	args := strings.Fields(u.one(t, "ExecStart"))[1:]
	i := slices.Index(args, "/etc/overlayd/overlayd.yaml")
	if i < 0 {
		t.Fatalf("ExecStart=%q names another config file than the README", args)
	}
	args[i] = config
	return args
}

// unitPrivileges are a user without privileges and the unit's capabilities.
func unitPrivileges(t *testing.T, u unit) *syscall.SysProcAttr {
	t.Helper()
	attr := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	for _, name := range strings.Fields(u.one(t, "AmbientCapabilities")) {
		number, ok := map[string]uintptr{"CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_NET_RAW": unix.CAP_NET_RAW}[name]
		if !ok {
			t.Fatalf("AmbientCapabilities=%s is more than a node needs", name)
		}
		attr.AmbientCaps = append(attr.AmbientCaps, number)
	}
	info, err := os.Stat("/dev/net/tun")
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm()&0o006 != 0o006 {
		// udev opens the device to everybody, for it does nothing without
		// CAP_NET_ADMIN (50-udev-default.rules of systemd). Here is no udev.
		t.Logf("/dev/net/tun has mode %v: the daemons get CAP_DAC_OVERRIDE too", info.Mode())
		attr.AmbientCaps = append(attr.AmbientCaps, unix.CAP_DAC_OVERRIDE)
	}
	return attr
}

// privateDir is a directory as StateDirectory= and RuntimeDirectory= make them.
func privateDir(t *testing.T, parent, name string) string {
	t.Helper()
	dir := filepath.Join(parent, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	return dir
}

// checkShellLines runs the README's shell lines about subnet.env.
func checkShellLines(t *testing.T, path string, env lab.SubnetEnv) {
	t.Helper()
	readme, err := os.ReadFile("two-hosts/README.md")
	if err != nil {
		t.Fatal(err)
	}
	const source = ". /run/overlayd/subnet.env"
	script := "set -eu\n"
	for line := range strings.Lines(string(readme)) {
		if line = strings.TrimSpace(line); line == source || strings.HasPrefix(line, "subnet4=") || strings.HasPrefix(line, "subnet6=") {
			script += line + "\n"
		}
	}
	script = strings.Replace(script, source, ". "+path, 1) + "echo $subnet4 $gateway4 $subnet6 $gateway6 $FLANNEL_MTU\n"
	out, err := exec.Command("sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, script, out)
	}
	want := fmt.Sprintf("%v %v %v %v %d\n", env.Subnet4.Masked(), env.Subnet4.Addr(), env.Subnet6.Masked(), env.Subnet6.Addr(), env.MTU)
	if string(out) != want {
		t.Errorf("the README's lines give %q, want %q", out, want)
	}
}

// manager is the service manager's end of sd_notify(3).
type manager struct {
	path string
	conn *net.UnixConn
}

func newManager(t *testing.T, path string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	return &manager{path: path, conn: conn}
}

// await reads messages until one has the line, or p has ended without it.
func (m *manager) await(t *testing.T, p *lab.Process, line string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	buf := make([]byte, 4096)
	for ctx.Err() == nil {
		ended := !p.Running() // what it has sent is in the socket by now
		if err := m.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := m.conn.Read(buf)
		switch {
		case err == nil:
			if slices.Contains(strings.Split(string(buf[:n]), "\n"), line) {
				return
			}
		case !os.IsTimeout(err) && err != io.EOF:
			t.Fatal(err)
		case ended:
			t.Fatalf("%s has ended (%v) and not sent %q", p.Name(), p.Err(), line)
		}
	}
	t.Fatalf("%s does not send %q", p.Name(), line)
}
