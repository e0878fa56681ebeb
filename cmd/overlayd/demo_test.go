package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// buildOverlayd builds the program: the demo runs itself as its daemons, which
// a test binary cannot do.
func buildOverlayd(t *testing.T) string {
	t.Helper()
	if err := demoAllowed(); err != nil {
		t.Skipf("the demo cannot run: %v", err)
	}
	binary := filepath.Join(t.TempDir(), "overlayd")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return binary
}

// demoRun is a demo that runs as a process of its own.
type demoRun struct {
	cmd    *exec.Cmd
	out    *syncBuffer
	prefix string
	ended  chan struct{}
	err    error
}

// syncBuffer can be read while a process writes to it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func startDemo(t *testing.T, binary string, args ...string) *demoRun {
	t.Helper()
	d := &demoRun{out: &syncBuffer{}, ended: make(chan struct{})}
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	d.cmd = exec.CommandContext(ctx, binary, append([]string{"demo"}, args...)...)
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	// A setting that is meant for another daemon must not reach the demo's.
	d.cmd.Env = append(os.Environ(), "OVERLAYD_NETWORK=10.0.0.0/8", "OVERLAYD_LOG_LEVEL=error")
	if err := d.cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	d.prefix = fmt.Sprintf("ovl%d-%s", d.cmd.Process.Pid, demoLab)
	go func() {
		d.err = d.cmd.Wait()
		cancel()
		close(d.ended)
	}()
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill() // ended, as a rule
		<-d.ended
		_ = lab.Remove(d.prefix) // gone, as a rule
		if t.Failed() {
			t.Logf("output of the demo:\n%s", d.out)
		}
	})
	return d
}

// exit waits for the end and returns the exit code.
func (d *demoRun) exit(t *testing.T) int {
	t.Helper()
	<-d.ended
	var exit *exec.ExitError
	if d.err != nil && !errors.As(d.err, &exit) {
		t.Fatal(d.err)
	}
	return d.cmd.ProcessState.ExitCode()
}

// prints waits until the output has text.
func (d *demoRun) prints(t *testing.T, text string) {
	t.Helper()
	labtest.Eventually(t, 60*time.Second, func() error {
		if !strings.Contains(d.out.String(), text) {
			select {
			case <-d.ended:
				t.Fatalf("the demo ended without %q", text)
			default:
			}
			return fmt.Errorf("no %q in the output", text)
		}
		return nil
	})
}

// nothingLeft looks for what the demo could have left.
func (d *demoRun) nothingLeft(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"/run/netns", "/run/overlayd-lab", os.TempDir()} {
		left, err := filepath.Glob(filepath.Join(dir, d.prefix+"*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}
	if pids := processesOf(t, d.cmd.Path, ""); len(pids) > 0 {
		t.Errorf("processes left: %v", pids)
	}
}

// processesOf finds the processes that run a program, with arg among their
// arguments if it is not empty.
func processesOf(t *testing.T, binary, arg string) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// Unreadable: it has ended meanwhile.
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err != nil || exe != binary {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && (arg == "" || slices.Contains(strings.Split(string(cmdline), "\x00"), arg)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestDemo(t *testing.T) {
	binary := buildOverlayd(t)
	before, err := lab.HostState()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	d := startDemo(t, binary, "--hosts", "3", "--bytes", "20000000")
	if code := d.exit(t); code != exitDone {
		t.Fatalf("exit code %d", code)
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("it took %v", took)
	}
	out := d.out.String()
	for _, want := range []string{
		`(?m)^overlayd demo: 3 hosts, overlay 100\.96\.0\.0/16 and fd96::/48$`,
		`(?m)^ *[0-9.]+s  host1: overlayd run --network 100\.96\.0\.0/16,fd96::/48 --interface eth0$`,
		`(?m)^ *[0-9.]+s  host3: overlayd run .* --join 192\.0\.2\.1$`,
		`host3: holds 100\.96\.\d+\.0/24 and fd96:[0-9a-f:]+/64, MTU \d+`,
		`120 pings of \d+ bytes, don't fragment, between all 12 pairs: none lost`,
		`round trip: least [0-9.]+(µs|ms), median [0-9.]+(µs|ms), most [0-9.]+(µs|ms|s)`,
		`20 MB of random bytes over TCP, c1 -> c3 100\.96\.\d+\.2: \d+\.\d\d Gb/s`,
		`20 MB of random bytes over TCP, c1 -> c3 fd96:[0-9a-f:]+: \d+\.\d\d Gb/s`,
		`host1: overlayd path host3 userspace, and the same on host3`,
		`host1: overlayd path host3 kernel-vxlan, and the same on host3`,
		`host1: overlayd path host3 direct, and the same on host3`,
		`host1: overlayd status`, `host1: overlayd peers`,
		`SIGTERM: all daemons have stopped`,
		`all namespaces, processes and files of the demo are removed\n$`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("the output does not match %s", want)
		}
	}
	sums := regexp.MustCompile(`SHA-256 (sent|received) +([0-9a-f]{64})`).FindAllStringSubmatch(out, -1)
	if len(sums) != 12 {
		t.Errorf("hashes: %q", sums)
	}
	for i := 0; i+1 < len(sums); i += 2 {
		if sums[i][2] != sums[i+1][2] {
			t.Errorf("hashes: %q", sums[i:i+2])
		}
	}
	if strings.ContainsAny(out, "\r\x1b") {
		t.Error("control characters in a file")
	}
	d.nothingLeft(t)
	after, err := lab.HostState()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(before, after) {
		t.Errorf("the machine's own network has changed: before %q, after %q", before, after)
	}
}

func TestDemoKeep(t *testing.T) {
	binary := buildOverlayd(t)
	d := startDemo(t, binary, "--keep", "--bytes", "1000")
	if code := d.exit(t); code != exitDone {
		t.Fatalf("exit code %d", code)
	}
	// What it says can be done, can be done.
	out := d.out.String()
	for _, m := range regexp.MustCompile(`(?m)^ *(\S+) (status --run-dir \S+)$`).FindAllStringSubmatch(out, -1) {
		status, err := exec.Command(m[1], strings.Fields(m[2])...).CombinedOutput()
		if err != nil || !strings.Contains(string(status), "host1") || !strings.Contains(string(status), "host2") {
			t.Errorf("%s %s: %v\n%s", m[1], m[2], err, status)
		}
	}
	for _, m := range regexp.MustCompile(`less (\S+)`).FindAllStringSubmatch(out, -1) {
		if info, err := os.Stat(m[1]); err != nil || info.Size() == 0 {
			t.Errorf("log file: %v", err)
		}
	}
	m := regexp.MustCompile(`Remove it: (\S+) demo (--remove \S+)\n`).FindStringSubmatch(out)
	if m == nil {
		t.Fatal("it does not say how to remove it")
	}
	r := startDemo(t, m[1], strings.Fields(m[2])...)
	if code := r.exit(t); code != exitDone || r.out.String() != "removed "+d.prefix+"\n" {
		t.Errorf("removal: exit code %d, %q", code, r.out)
	}
	d.nothingLeft(t)
	r = startDemo(t, m[1], strings.Fields(m[2])...)
	if code := r.exit(t); code != exitFailed || r.out.String() != "overlayd: there is no demo "+d.prefix+"\n" {
		t.Errorf("second removal: exit code %d, %q", code, r.out)
	}
}

func TestDemoInterrupted(t *testing.T) {
	binary := buildOverlayd(t)
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		d := startDemo(t, binary)
		d.prints(t, "host2: overlayd run")
		if err := d.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if code := d.exit(t); code != exitFailed || !strings.HasSuffix(d.out.String(), "overlayd: interrupted\n") {
			t.Errorf("%v: exit code %d", sig, code)
		}
		if took := time.Since(begin); took > stopLimit+5*time.Second {
			t.Errorf("%v: it took %v", sig, took)
		}
		d.nothingLeft(t)
	}
}

// TestDemoFails kills a daemon: the demo says which, and shows its log.
func TestDemoFails(t *testing.T) {
	binary := buildOverlayd(t)
	d := startDemo(t, binary)
	d.prints(t, "host2: overlayd run")
	pids := processesOf(t, binary, "host2")
	if len(pids) != 1 {
		t.Fatalf("daemons of host2: %v", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := d.exit(t); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"FAILED: ", "host2", "signal: killed", "last lines of the log of host2:"} {
		if !strings.Contains(d.out.String(), want) {
			t.Errorf("no %q in the output", want)
		}
	}
	d.nothingLeft(t)
}

// TestDemoKilled kills the demo itself: its daemons die with it, and what else
// it left is removed by name.
func TestDemoKilled(t *testing.T) {
	binary := buildOverlayd(t)
	d := startDemo(t, binary)
	d.prints(t, "host2: overlayd run")
	if got := command(t, nil, "demo", "--remove", d.prefix); got.code != exitFailed || got.stderr != "overlayd: "+d.prefix+" is running: stop it with Ctrl-C\n" {
		t.Errorf("removing a running demo: %+v", got)
	}
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.ended
	labtest.Eventually(t, 10*time.Second, func() error {
		if pids := processesOf(t, binary, ""); len(pids) > 0 {
			return fmt.Errorf("processes %v live", pids)
		}
		return nil
	})
	if got := command(t, nil, "demo", "--remove", d.prefix); got != (result{exitDone, "removed " + d.prefix + "\n", ""}) {
		t.Errorf("removal: %+v", got)
	}
	d.nothingLeft(t)
}

// TestDemoReaderGone closes the demo's output while it runs: it goes on, and
// cleans up.
func TestDemoReaderGone(t *testing.T) {
	binary := buildOverlayd(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "demo", "--bytes", "1000")
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	d := &demoRun{cmd: cmd, prefix: fmt.Sprintf("ovl%d-%s", cmd.Process.Pid, demoLab)}
	t.Cleanup(func() { _ = lab.Remove(d.prefix) })
	d.nothingLeft(t)
}

func TestDemoUsage(t *testing.T) {
	for _, args := range [][]string{
		{"--hosts", "1"}, {"--hosts", "17"}, {"--bytes", "0"}, {"--keep", "--remove"}, {"host1"},
		{"--remove", "eth0"}, {"--remove", "ovl1-other"},
	} {
		if demoAllowed() != nil && args[0] == "--remove" {
			continue // the privilege is missed first
		}
		got := command(t, nil, append([]string{"demo"}, args...)...)
		if got.code != exitUsage || got.stdout != "" || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("demo %q: %+v", args, got)
		}
	}
}

// TestDemoWithoutRoot runs the demo as a user who may not.
func TestDemoWithoutRoot(t *testing.T) {
	binary := buildOverlayd(t)
	for _, dir := range []string{filepath.Dir(binary), filepath.Dir(filepath.Dir(binary))} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(binary, "demo")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitFailed {
		t.Errorf("%v", err)
	}
	if s := string(out); strings.Count(s, "\n") != 1 || !strings.Contains(s, "needs root") {
		t.Errorf("it says %q", s)
	}
}

func TestNarrator(t *testing.T) {
	var plain, fancy bytes.Buffer
	for _, n := range []*narrator{newNarrator(&plain), {w: &fancy, start: time.Now(), terminal: true}} {
		n.say("title")
		n.begin("step %d", 1)
		n.done("step %d done", 1)
		n.detail("100%% of %s", "it")
		n.begin("step 2")
		n.block("a\nb 50%\n")
	}
	const body = "title\n%s  0.0s  step 1 done\n        100%% of it\n%s        a\n        b 50%%\n"
	if want := fmt.Sprintf(body, "", ""); plain.String() != want {
		t.Errorf("plain: %q, want %q", plain.String(), want)
	}
	if want := fmt.Sprintf(body, "   ...  step 1"+eraseLine, "   ...  step 2"+eraseLine); fancy.String() != want {
		t.Errorf("on a terminal: %q, want %q", fancy.String(), want)
	}
}
