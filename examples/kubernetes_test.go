package examples

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
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

// podSpec is what the tests look at of a DaemonSet.
type podSpec struct {
	Spec struct {
		Template struct {
			Spec struct {
				InitContainers []struct {
					Image        string
					Command      []string
					VolumeMounts []struct{ Name, MountPath string }
				}
				Containers []struct {
					Image                         string
					ReadinessProbe, LivenessProbe struct {
						HTTPGet struct {
							Host, Path string
							Port       int
						}
					}
					VolumeMounts []struct{ Name, MountPath string }
				}
				Volumes []struct {
					Name     string
					HostPath struct{ Path string }
					Secret   struct{ DefaultMode uint32 }
				}
			}
		}
	}
}

// TestDaemonSet: the configuration in it is one, it asks for what a node needs, and its
// parts fit each other.
func TestDaemonSet(t *testing.T) {
	dir := t.TempDir()
	overlayd := build(t, dir, "github.com/overlayd/overlayd/cmd/overlayd")
	b, err := os.ReadFile("kubernetes/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	config := block(t, text, "  overlayd.yaml: |")
	file := filepath.Join(dir, "overlayd.yaml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	check := exec.Command(overlayd, "config", "check", file)
	check.Env = append(os.Environ(), "OVERLAYD_KEY_FILE="+writeKey(t, dir, os.Geteuid()))
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	for _, want := range []string{
		"hostNetwork: true", "ip_masq: true", "add: [NET_ADMIN, NET_RAW]", "name: OVERLAYD_NAME", "args: [run, --config, /etc/overlayd/overlayd.yaml]",
		"mountPath: /var/lib/overlayd}", "mountPath: /run/overlayd}", "mountPath: /dev/net/tun}",
	} {
		if strings.Count(text, want) != 1 {
			t.Errorf("%d times %q", strings.Count(text, want), want)
		}
	}

	var pod podSpec
	for _, doc := range strings.Split(text, "\n---\n") {
		var any map[string]any
		if err := yaml.UnmarshalStrict([]byte(doc), &any); err != nil {
			t.Fatalf("%v\n%s", err, doc)
		}
		if any["kind"] == "DaemonSet" {
			if err := yaml.Unmarshal([]byte(doc), &pod); err != nil {
				t.Fatal(err)
			}
		}
	}
	spec := pod.Spec.Template.Spec
	if len(spec.Containers) != 1 || len(spec.InitContainers) != 1 {
		t.Fatalf("it has %d and %d containers", len(spec.Containers), len(spec.InitContainers))
	}
	c, before := spec.Containers[0], spec.InitContainers[0]
	volumes := map[string]string{} // by name: where it is mounted
	for _, m := range append(before.VolumeMounts, c.VolumeMounts...) {
		volumes[m.Name] = m.MountPath
	}
	plugins, networks := volumes["plugins"], volumes["networks"]
	for _, v := range spec.Volumes {
		at := volumes[v.Name]
		switch delete(volumes, v.Name); {
		case at == "":
			t.Errorf("%s is mounted nowhere", v.Name)
		case v.HostPath.Path != "" && v.HostPath.Path != strings.TrimPrefix(at, "/host"):
			t.Errorf("the node's %s is at %s", v.HostPath.Path, at)
		case v.Secret.DefaultMode != 0 && (v.Secret.DefaultMode != 0o400 || !strings.Contains(config, "\nkey_file: "+at+"/key\n")):
			t.Errorf("the key, of mode %o, is in %s, where the configuration does not look or overlayd refuses it", v.Secret.DefaultMode, at)
		}
	}
	if len(volumes) > 0 {
		t.Errorf("%v are mounted, and no volumes", volumes)
	}
	if before.Image != c.Image {
		t.Errorf("images %s and %s", before.Image, c.Image)
	}
	testDaemonSetNetwork(t, text, dir, before.Command, plugins, networks)
	ready, alive := c.ReadinessProbe.HTTPGet, c.LivenessProbe.HTTPGet
	if ready.Path != "/readyz" || alive.Path != "/healthz" || ready.Host != "127.0.0.1" || alive.Host != ready.Host || alive.Port != ready.Port {
		t.Errorf("it is probed at %+v and %+v", ready, alive)
	}
	if !strings.Contains(config, fmt.Sprintf("\nhttp_listen: \"%d\"\n", ready.Port)) {
		t.Errorf("the daemon does not listen at %d", ready.Port)
	}
}

// testDaemonSetNetwork: what is installed for the container runtimes is the network of the
// main README, and goes where they look.
func testDaemonSetNetwork(t *testing.T, text, dir string, command []string, plugins, networks string) {
	t.Helper()
	const conflist = "10-overlay.conflist"
	if want := []string{"/overlayd-cni", "install", plugins, "/etc/overlayd/" + conflist, networks}; !slices.Equal(command, want) || plugins == "" || networks == "" {
		t.Errorf("the init container runs %q, want %q", command, want)
	}
	network := block(t, text, "  "+conflist+": |")
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var indented strings.Builder
	for line := range strings.Lines(network) {
		indented.WriteString("    " + line)
	}
	if !strings.Contains(string(readme), "\n"+indented.String()) {
		t.Errorf("the network is another than that of the main README:\n%s", network)
	}
	// As the init container installs it, which looks at it as well.
	file := filepath.Join(dir, conflist)
	if err := os.WriteFile(file, []byte(network), 0o644); err != nil {
		t.Fatal(err)
	}
	plugin := build(t, dir, "github.com/overlayd/overlayd/cmd/overlayd-cni")
	host := t.TempDir()
	if out, err := exec.Command(plugin, "install", host, file, host).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestImage: the image holds the two programs and nothing else, and runs them.
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
	programs := exec.Command("go", "build", "-o", filepath.Join(dir, "context/bin")+"/", "github.com/overlayd/overlayd/cmd/overlayd", "github.com/overlayd/overlayd/cmd/overlayd-cni")
	programs.Env = append(os.Environ(), "CGO_ENABLED=0")
	must(programs)
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
	if err != nil || len(files) != 2 || files[0].Name() != "overlayd" || files[1].Name() != "overlayd-cni" {
		t.Errorf("it holds %v, %v", files, err)
	}
	host := filepath.Join(mount, "host")
	if err := os.Mkdir(host, 0o755); err != nil {
		t.Fatal(err)
	}
	must(exec.Command("chroot", mount, "/overlayd-cni", "install", "/host"))
	if fi, err := os.Stat(filepath.Join(host, "overlayd-cni")); err != nil || fi.Mode() != 0o755 {
		t.Errorf("the plugin was not installed: %v %v", err, fi)
	}
	if out := must(exec.Command("chroot", mount, "/overlayd", "version")); !strings.HasPrefix(out, "overlayd ") {
		t.Errorf("version: %s", out)
	}
}
