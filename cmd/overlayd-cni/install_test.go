package main

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const conflist = `{"cniVersion": "1.0.0", "name": "overlay", "plugins": [{"type": "overlayd-cni", "runDir": "/run/overlayd"}, {"type": "portmap"}]}`

// TestInstall: the program that is installed is this one, also over one that runs, and
// nothing half done is left.
func TestInstall(t *testing.T) {
	dir := t.TempDir()
	program, bin, net := filepath.Join(dir, "overlayd-cni"), filepath.Join(dir, "bin"), filepath.Join(dir, "net.d")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	conf := filepath.Join(dir, "10-overlay.conflist")
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(conf, conflist)
	run := func(args ...string) (code int, stderr string) {
		t.Helper()
		cmd := exec.Command(program, args...)
		var b bytes.Buffer
		cmd.Stderr = &b
		if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), b.String()
	}
	whole := func() {
		t.Helper()
		for from, to := range map[string]string{program: filepath.Join(bin, "overlayd-cni"), conf: filepath.Join(net, "10-overlay.conflist")} {
			want, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %v, %d bytes of %d", to, err, len(got), len(want))
			}
		}
		for file, mode := range map[string]fs.FileMode{filepath.Join(bin, "overlayd-cni"): 0o755, filepath.Join(net, "10-overlay.conflist"): 0o644} {
			if fi, err := os.Stat(file); err != nil || fi.Mode() != mode {
				t.Errorf("%s: %v %v", file, err, fi)
			}
		}
		for _, d := range []string{bin, net} {
			if files, err := os.ReadDir(d); err != nil || len(files) != 1 {
				t.Errorf("%s: %v, %v", d, files, err)
			}
		}
	}
	if code, stderr := run("install", bin, conf, net); code != 1 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, bin) {
		t.Errorf("without the directories: %d %q", code, stderr)
	}
	for _, d := range []string{bin, net} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(bin, "overlayd-cni"), "what was there before")
	if code, stderr := run("install", bin, conf, net); code != 0 || stderr != "" {
		t.Fatalf("%d %q", code, stderr)
	}
	whole()
	program = filepath.Join(bin, "overlayd-cni") // over itself
	if code, stderr := run("install", bin); code != 0 || stderr != "" {
		t.Fatalf("%d %q", code, stderr)
	}
	whole()

	for text, want := range map[string]string{
		"{": "unexpected end", `{"name":"x","plugins":[]}`: "is not the configuration", `{"plugins":[{"type":"overlayd-cni"}]}`: "is not the configuration",
		`{"name":"x","plugins":[{"type":"bridge"}]}`: "is not the configuration",
	} {
		bad := filepath.Join(dir, "bad.conflist")
		write(bad, text)
		if code, stderr := run("install", bin, bad, net); code != 1 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%s: %d %q", text, code, stderr)
		}
	}
	for _, args := range [][]string{{"--help"}, {"install"}, {"install", bin, conf}, {"remove", bin}, {"install", bin, conf, net, "x"}} {
		if code, stderr := run(args...); code != 2 || stderr != installUsage+"\n" {
			t.Errorf("%q: %d %q", args, code, stderr)
		}
	}
	whole()
}
