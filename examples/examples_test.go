// Package examples holds the tests of the example programs and files beside it.
package examples

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// nobody is a user without any privilege (the overflow uid of user_namespaces(7)).
const nobody = 65534

// limit is how long each step of a test may take. A joiner needs about 10 s.
const limit = 60 * time.Second

// build builds a program of this module into dir.
func build(t *testing.T, dir, pkg string) string {
	t.Helper()
	binary := filepath.Join(dir, filepath.Base(pkg))
	if out, err := exec.Command("go", "build", "-o", binary, pkg).CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	return binary
}

// publicDir makes a directory that every user can reach and write to.
func publicDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for d, mode := range map[string]os.FileMode{dir: 0o777, filepath.Dir(dir): 0o755} {
		if err := os.Chmod(d, mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// expect waits until the output of p matches pattern.
func expect(t *testing.T, p *lab.Process, pattern string) {
	t.Helper()
	re := regexp.MustCompile("(?m)" + pattern)
	labtest.Eventually(t, limit, func() error {
		out, err := os.ReadFile(p.LogFile())
		if err != nil {
			return err
		}
		if re.Match(out) {
			return nil
		}
		if !p.Running() {
			t.Fatalf("%s has ended (%v) without %q", p.Name(), p.Err(), pattern)
		}
		return fmt.Errorf("%s does not print %q", p.Name(), pattern)
	})
}

// stop ends a process with SIGTERM, which has to end it well.
func stop(t *testing.T, p *lab.Process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := p.Stop(ctx); err != nil {
		t.Errorf("%s: %v", p.Name(), err)
	}
}

// The example runs without any privilege, in the host's own namespace: it uses
// nothing but the loopback interface.
func TestOwnDevice(t *testing.T) {
	dir := publicDir(t)
	binary := build(t, dir, "./own-device")
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(tmp, 0o777); err != nil { // whatever the umask
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := regexp.MustCompile(`^alpha has the subnet 100\.96\.(\d+)\.0/24
beta has the subnet 100\.96\.(\d+)\.0/24
beta received "hello from alpha", 100\.96\.(\d+)\.10:4000 -> 100\.96\.(\d+)\.20:5000
alpha received "hello from beta", 100\.96\.(\d+)\.20:5000 -> 100\.96\.(\d+)\.10:4000
$`)
	m := want.FindStringSubmatch(string(out))
	if m == nil {
		t.Fatalf("unexpected output:\n%s", out)
	}
	a, b := m[1], m[2]
	if a == b || m[3] != a || m[4] != b || m[5] != b || m[6] != a {
		t.Errorf("the subnets do not fit together:\n%s", out)
	}
	left, err := os.ReadDir(tmp)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A program that cannot work says so in one line.
func TestEmbedWithoutInterface(t *testing.T) {
	binary := build(t, t.TempDir(), "./embed")
	out, err := exec.Command(binary, "-state", t.TempDir()).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("ended with %v, want exit code 1", err)
	}
	if lines := strings.Split(strings.TrimSpace(string(out)), "\n"); len(lines) != 1 || !strings.Contains(lines[0], "interface") {
		t.Errorf("want one line about the interface, got:\n%s", out)
	}
}

func TestEmbed(t *testing.T) {
	_, _, hosts := labtest.Hosts(t, 2)
	needTUN(t)
	binary := build(t, t.TempDir(), "./embed")
	start := func(h *lab.Host, args ...string) *lab.Process {
		args = append([]string{"-interface", "eth0", "-name", h.Name(), "-state", filepath.Join(h.Dir(), "state")}, args...)
		p, err := h.Start(exec.Command(binary, args...), lab.StartOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	before := hostState(t, hosts[0])
	first := start(hosts[0])
	expect(t, first, `^this host has the subnet 100\.96\.\d+\.0/24, with an MTU of 1\d\d\d$`)
	second := start(hosts[1], "-join", hosts[0].Addr4().String())
	expect(t, second, `^this host has the subnet 100\.96\.\d+\.0/24, with an MTU of 1\d\d\d$`)
	expect(t, first, `^host2 is reachable$`)
	expect(t, second, `^host1 is reachable$`)

	stop(t, second)
	expect(t, first, `^host2 is not reachable: .+$`)
	stop(t, first)
	if after := hostState(t, hosts[0]); !slices.Equal(before, after) {
		t.Errorf("the host is not as it was before:\n%s\n---\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

func hostState(t *testing.T, h *lab.Host) []string {
	t.Helper()
	state, err := h.State()
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func needTUN(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("needs a TUN device: %v", err)
	}
}
