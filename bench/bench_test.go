package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/overlayd/overlayd/bench/count"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/bench/report"
	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// asBench makes the test program the benchmark.
const asBench = "as-bench"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch args := os.Args[1:]; args[0] {
		case asBench:
			os.Args = args
			main()
			return
		case load.Command, count.KnownCommand, janitorCommand:
			main()
			return
		}
	}
	os.Exit(m.Run())
}

// build builds the daemon, with other files in place of some.
func build(t *testing.T, replace map[string]string) string {
	t.Helper()
	if err := lab.Supported(); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for name, text := range replace {
		abs, err := filepath.Abs(filepath.Join("..", name))
		must(t, err)
		overlay.Replace[abs] = filepath.Join(dir, filepath.Base(name))
		must(t, os.WriteFile(overlay.Replace[abs], []byte(text), 0o644))
	}
	b, err := json.Marshal(overlay)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "overlay.json"), b, 0o644))
	out := filepath.Join(dir, "overlayd")
	cmd := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", out, "../cmd/overlayd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, text)
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// measure runs the benchmark once, shortly, and returns its report.
func measure(t *testing.T, overlayd string, paths ...string) *report.Report {
	t.Helper()
	out := t.TempDir()
	o, err := parseOptions([]string{"--quick", "--rounds", "1", "--time", "100ms", "--paths", strings.Join(paths, ","),
		"--overlayd", overlayd, "--out", out, "--json", filepath.Join(out, "again.json")})
	must(t, err)
	o.stdout, o.stderr = io.Discard, io.Discard
	must(t, run(t.Context(), o))
	f, err := os.Open(filepath.Join(out, "report.json"))
	must(t, err)
	defer f.Close()
	r, err := report.Read(f)
	must(t, err)
	for _, name := range []string{"report.html", "report.md", "again.json"} {
		if info, err := os.Stat(filepath.Join(out, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	return r
}

// within tells whether a figure is what it must be, but for what a retransmission or a
// probe adds.
func within(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 0.05*want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// TestReport: what forwards a packet for each call copies each once to user and once from
// user on each host, and what the kernel forwards crosses in no process of ours.
func TestReport(t *testing.T) {
	t.Parallel()
	overlayd := build(t, nil)
	r := measure(t, overlayd, "kernel-vxlan-by-hand", "kernel-vxlan", "userspace-udp", "userspace-udp-no-offload", "flannel-udp")
	for _, p := range r.Paths {
		if p.Name == "flannel-udp" {
			if p.Ran || !strings.Contains(p.Reason, "FLANNELD") || p.TCPGbps != 0 {
				t.Errorf("what is not here: %+v", p)
			}
			continue
		}
		if !p.Ran || p.Reason != "" {
			t.Errorf("%s did not run: %s", p.Name, p.Reason)
		}
		for name, v := range map[string]float64{"tcp": p.TCPGbps, "tcp4": p.TCP4Gbps, "udp64": p.UDP64Kpps, "udp1400": p.UDP1400Gbps,
			"p50": p.RTTP50us, "p99": p.RTTP99us, "cpu": p.CPUSecsPerGB, "mtu": float64(p.MTU)} {
			if v <= 0 {
				t.Errorf("%s: %s is %v", p.Name, name, v)
			}
		}
		if len(p.Samples["tcp_gbps"]) != 1 || p.Spread["tcp_gbps"].Min != p.TCPGbps {
			t.Errorf("%s: samples %v, spread %v", p.Name, p.Samples, p.Spread)
		}
		if len(p.Devices) == 0 {
			t.Errorf("%s: no device has sent anything", p.Name)
		}
	}
	plain := r.Path("userspace-udp-no-offload")
	for _, v := range []float64{plain.CopiesToUserSend, plain.CopiesToUserRecv, plain.CopiesFromUserSend, plain.CopiesFromUserRecv} {
		within(t, "copies for each packet, without offload", v, 1)
	}
	within(t, "of both hosts", plain.CopiesToUser, 2)
	within(t, "bytes", plain.BytesCopied, 4*float64(plain.MTU)/float64(plain.MTU-tcpHeaders))
	offloads := r.Path("userspace-udp")
	within(t, "bytes, with offload", offloads.BytesCopied, 4.1)
	if offloads.CopiesToUser > 0.3 || offloads.CopiesToUser == 0 {
		t.Errorf("copies with offload: %v", offloads.CopiesToUser)
	}
	for _, name := range []string{"kernel-vxlan-by-hand", "kernel-vxlan"} {
		p := r.Path(name)
		if p.CopiesToUser != 0 || p.CopiesFromUser != 0 || p.BytesCopied != 0 || p.Syscalls != 0 || p.ContextSwitches != 0 {
			t.Errorf("%s: copies %v and %v, %v bytes, %v calls", name, p.CopiesToUser, p.CopiesFromUser, p.BytesCopied, p.Syscalls)
		}
	}
}

// TestExtraWork: a copy or a call that is added to the packet path shows.
func TestExtraWork(t *testing.T) {
	t.Parallel()
	tx, err := os.ReadFile("../internal/forward/tx.go")
	must(t, err)
	const take = "\tpkt := &l.pkts[i]\n"
	if strings.Count(string(tx), take) != 1 {
		t.Fatalf("tx.go has no %q any more", take)
	}
	with := func(extra string) *report.Path {
		r := measure(t, build(t, map[string]string{
			"internal/forward/tx.go":    strings.Replace(string(tx), take, take+"\textra(pkt.Data)\n", 1),
			"internal/forward/extra.go": "package forward\n" + extra,
		}), "userspace-udp-no-offload")
		return r.Path("userspace-udp-no-offload")
	}
	copied := with(`
import "golang.org/x/sys/unix"
var extraPipe = func() (p [2]int) { unix.Pipe(p[:]); return p }()
func extra(b []byte) {
	unix.Write(extraPipe[1], b)
	unix.Read(extraPipe[0], b)
}
`)
	within(t, "copies to user", copied.CopiesToUserSend, 2)
	within(t, "copies from user", copied.CopiesFromUserSend, 2)
	// There the acknowledgements have it, which are not counted with the data.
	within(t, "copies to user of the other host", copied.CopiesToUserRecv, 1)
	within(t, "bytes", copied.BytesCopiedSend, 4*float64(copied.MTU)/float64(copied.MTU-tcpHeaders))
	others := 0
	for _, c := range copied.Crossings {
		if c.Place == "other" && c.Host == "send" {
			others++
			within(t, "copies by the pipe", c.PerPacket, 1)
		}
	}
	if others != 2 {
		t.Errorf("crossings: %+v", copied.Crossings)
	}
	called := with(`
import "golang.org/x/sys/unix"
func extra([]byte) { unix.Getppid() }
`)
	if n := called.Calls[count.CallName(syscall.SYS_GETPPID)]; n < 0.95 {
		t.Errorf("the added call is made %v times for a packet: %v", n, called.Calls)
	}
	within(t, "copies to user", called.CopiesToUserSend, 1)
}

// TestKilled: a benchmark that is killed half way, in any manner, leaves no namespace, no
// process and no program in the kernel.
func TestKilled(t *testing.T) {
	t.Parallel()
	overlayd := build(t, nil)
	self, err := os.Executable()
	must(t, err)
	for _, tt := range []struct {
		sig  syscall.Signal
		when string
	}{
		{syscall.SIGINT, "round 1 of"}, {syscall.SIGTERM, "userspace-udp is up"},
		{syscall.SIGKILL, "userspace-udp is up"}, {syscall.SIGKILL, "round 1 of"}, {syscall.SIGKILL, "counting userspace-udp"},
	} {
		t.Run(fmt.Sprint(tt.sig, " at ", tt.when), func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(self, asBench, "--quick", "--time", "500ms", "--rounds", "1", "--paths", "userspace-udp", "--overlayd", overlayd, "--out", t.TempDir())
			said, err := cmd.StderrPipe()
			must(t, err)
			must(t, cmd.Start())
			ended := make(chan error, 1)
			lines := bufio.NewScanner(said)
			for lines.Scan() && !strings.Contains(lines.Text(), tt.when) {
			}
			go io.Copy(io.Discard, said)
			must(t, cmd.Process.Signal(tt.sig))
			go func() { ended <- cmd.Wait() }()
			select {
			case err := <-ended:
				if err == nil {
					t.Error("it has ended well")
				}
			case <-time.After(20 * time.Second):
				cmd.Process.Kill()
				t.Fatal("it does not end")
			}
			prefix := fmt.Sprintf("ovl%d-", cmd.Process.Pid)
			labtest.Eventually(t, 20*time.Second, func() error { return remains(prefix) })
		})
	}
}

// remains tells what is there of labs with a prefix.
func remains(prefix string) error {
	for _, pattern := range []string{"/run/netns/", "/run/overlayd-lab/"} {
		if left, err := filepath.Glob(pattern + prefix + "*"); err != nil || len(left) > 0 {
			return fmt.Errorf("left: %v, %v", left, err)
		}
	}
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return err
	}
	for _, name := range environs {
		if b, err := os.ReadFile(name); err == nil && strings.Contains(string(b), "OVLAB_PREFIX="+prefix) {
			return fmt.Errorf("left: %s", filepath.Dir(name))
		}
	}
	return nil
}

// TestNoPrograms: when nobody counts, none of our programs is in the kernel.
func TestNoPrograms(t *testing.T) {
	if err := lab.Supported(); err != nil {
		t.Skip(err)
	}
	loaded := func() (n int) {
		t.Helper()
		for id := ebpf.ProgramID(0); ; n++ {
			next, err := ebpf.ProgramGetNextID(id)
			if err != nil {
				return n
			}
			id = next
		}
	}
	before := loaded()
	c, err := count.New()
	must(t, err)
	if during := loaded(); during < before+6 {
		t.Errorf("%d programs before, %d while it counts", before, during)
	}
	c.Close()
	labtest.Eventually(t, 5*time.Second, func() error {
		if n := loaded(); n > before {
			return fmt.Errorf("%d programs before, %d after", before, n)
		}
		return nil
	})
}

func TestOptions(t *testing.T) {
	daemon := filepath.Join(t.TempDir(), "overlayd")
	must(t, os.WriteFile(daemon, nil, 0o755))
	o, err := parseOptions([]string{"--overlayd", daemon, "--quick", "--paths", "nebula,underlay,nebula", "--json", "-"})
	if err != nil || strings.Join(o.paths, " ") != "underlay nebula" || o.rounds != 2 || !o.own || o.install || o.json != "-" {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err = parseOptions([]string{"--overlayd", daemon, "--quick", "--rounds", "7"}); err != nil || o.rounds != 7 || len(o.paths) != len(report.Names) {
		t.Errorf("%+v, %v", o, err)
	}
	for args, want := range map[string]string{
		"--paths pigeon":           `no path is called "pigeon"; there are underlay, direct, `,
		"--rounds 0":               "--rounds: at least 1",
		"--time 1ms":               "--time: at least 50ms",
		"measure":                  `"measure" is no command; see -h`,
		"--overlayd /nonexistent":  "--overlayd: stat /nonexistent: no such file or directory (make build)",
		"compare one.json":         "usage: bench compare OLD.json NEW.json",
		"compare /no1 /no2":        "open /no1: no such file or directory",
		"compare /dev/null /dev/0": "/dev/null: not a report: EOF",
	} {
		all := strings.Fields(args)
		if all[0] != "compare" && all[0] != "--overlayd" {
			all = append([]string{"--overlayd", daemon}, all...)
		}
		if err := dispatch(all); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", args, err, want)
		}
	}
}
