package examples

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// block is what stands indented under a line of a YAML file, without the indent.
func block(t *testing.T, text, head string) string {
	t.Helper()
	_, rest, ok := strings.Cut(text, "\n"+head+"\n")
	if !ok {
		t.Fatalf("no line %q", head)
	}
	indent := len(head) - len(strings.TrimLeft(head, " ")) + 2
	var out []string
	for line := range strings.Lines(rest) {
		if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, strings.Repeat(" ", indent)) {
			break
		}
		out = append(out, line[min(indent, len(line)):])
	}
	return strings.Join(out, "")
}

// TestDaemonSet: the configuration in it is one, and it asks for what a node needs.
func TestDaemonSet(t *testing.T) {
	dir := t.TempDir()
	overlayd := build(t, dir, "github.com/overlayd/overlayd/cmd/overlayd")
	b, err := os.ReadFile("kubernetes/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	file := filepath.Join(dir, "overlayd.yaml")
	if err := os.WriteFile(file, []byte(block(t, text, "  overlayd.yaml: |")), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(overlayd, "config", "check", file).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	for _, want := range []string{
		"hostNetwork: true", "ip_masq: true", "add: [NET_ADMIN, NET_RAW]", "name: OVERLAYD_NAME", "args: [run, --config, /etc/overlayd/overlayd.yaml]",
		"mountPath: /var/lib/overlayd}", "mountPath: /run/overlayd}", "mountPath: /dev/net/tun}", "command: [/overlayd, status]",
	} {
		if strings.Count(text, want) != 1 {
			t.Errorf("%d times %q", strings.Count(text, want), want)
		}
	}
}

// TestImage: the image holds the program and nothing else, and runs it.
func TestImage(t *testing.T) {
	buildah, err := exec.LookPath("buildah")
	if err != nil {
		t.Skipf("buildah is not installed: %v", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount the image")
	}
	dir := t.TempDir()
	must := func(cmd *exec.Cmd) string {
		t.Helper()
		out, err := cmd.Output()
		if err != nil {
			var stderr []byte
			if e, ok := err.(*exec.ExitError); ok {
				stderr = e.Stderr
			}
			t.Fatalf("%v: %v\n%s", cmd.Args, err, stderr)
		}
		return strings.TrimSpace(string(out))
	}
	in := func(args ...string) *exec.Cmd {
		return exec.Command(buildah, append([]string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}, args...)...)
	}
	program := exec.Command("go", "build", "-o", filepath.Join(dir, "context/bin/overlayd"), "github.com/overlayd/overlayd/cmd/overlayd")
	program.Env = append(os.Environ(), "CGO_ENABLED=0")
	must(program)
	must(in("build", "--isolation", "chroot", "-f", "kubernetes/Dockerfile", "-t", "overlayd", filepath.Join(dir, "context")))
	container := must(in("from", "--pull=never", "localhost/overlayd"))
	mount := must(in("mount", container))
	t.Cleanup(func() { must(in("rm", container)) })

	var inspected struct {
		OCIv1 struct {
			Config struct{ Entrypoint, Cmd []string } `json:"config"`
		}
	}
	if err := json.Unmarshal([]byte(must(in("inspect", container))), &inspected); err != nil {
		t.Fatal(err)
	}
	config := inspected.OCIv1.Config
	if !slices.Equal(config.Entrypoint, []string{"/overlayd"}) || !slices.Equal(config.Cmd, []string{"run"}) {
		t.Errorf("it runs %q %q", config.Entrypoint, config.Cmd)
	}
	files, err := os.ReadDir(mount)
	if err != nil || len(files) != 1 || files[0].Name() != "overlayd" {
		t.Errorf("it holds %v, %v", files, err)
	}
	if out := must(exec.Command("chroot", mount, "/overlayd", "version")); !strings.HasPrefix(out, "overlayd ") {
		t.Errorf("version: %s", out)
	}
}
