package overlayd

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/internal/control"
	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/tunnel"
)

// leaveBehind does what a node does to its host and ends as by kill -9: the
// device and the routes to it go with the process, the rest stays.
func leaveBehind(t *testing.T, cfg CleanupConfig) {
	t.Helper()
	networks, subnets := prefixes("100.96.0.0/16", "fd96::/48"), prefixes("100.96.1.0/24", "fd96:0:0:1::/64")
	k, err := kernel.Open(kernel.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	dev, err := tunnel.OpenWater(cfg.Device, 1400)
	if err != nil {
		t.Fatal(err)
	}
	own := nodeAddrs(subnets)
	if err := errors.Join(k.ConfigureDevice(cfg.Device, 1400, false, own), k.SetRoutes(cfg.Device, networks, own)); err != nil {
		t.Fatal(err)
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	if err := WriteSubnetEnv(cfg.SubnetFile, SubnetEnv{Networks: networks, Subnets: subnets, MTU: 1400}); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(cfg.RunDir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(cfg.RunDir, control.SocketName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := os.WriteFile(filepath.Join(cfg.RunDir, control.LockName), []byte("12345\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCleanupAfterKill(t *testing.T) {
	inNamespace(t)
	before := hostState(t)
	dir := t.TempDir()
	cfg := CleanupConfig{RunDir: filepath.Join(dir, "run"), SubnetFile: filepath.Join(dir, "elsewhere", "subnet.env"), Device: "tst0"}
	leaveBehind(t, cfg)
	if slices.Equal(hostState(t), before) {
		t.Fatal("nothing was left behind, so nothing is tested")
	}
	removed, err := Cleanup(cfg)
	if err != nil {
		t.Fatal(err)
	}
	sameState(t, before)
	words := strings.Join(removed, "\n")
	for _, want := range []string{"100.96.0.0/16", "fd96::/48", "unreachable", cfg.SubnetFile, filepath.Join(cfg.RunDir, control.SocketName)} {
		if !strings.Contains(words, want) {
			t.Errorf("%q is not named in %q", want, removed)
		}
	}
	if len(removed) != 4 {
		t.Errorf("removed %q, want two routes and two files", removed)
	}
	if left, _ := os.ReadDir(cfg.RunDir); len(left) > 0 {
		t.Errorf("left in the run directory: %v", left)
	}
	// There is nothing to do any more.
	if removed, err := Cleanup(cfg); err != nil || len(removed) > 0 {
		t.Errorf("once more: %q, %v", removed, err)
	}
}

// TestStartAfterKill: a start needs no cleanup, and a stop leaves nothing of
// what the killed node has left either.
func TestStartAfterKill(t *testing.T) {
	inNamespace(t)
	before := hostState(t)
	cfg := tunConfig(t)
	leaveBehind(t, CleanupConfig{RunDir: cfg.RunDir, SubnetFile: filepath.Join(cfg.RunDir, "subnet.env"), Device: DefaultDevice})
	n := startNode(t, cfg)
	awaitReady(t, n)
	if err := n.Stop(); err != nil {
		t.Error(err)
	}
	sameState(t, before)
	if left, _ := os.ReadDir(cfg.RunDir); len(left) > 0 {
		t.Errorf("left in the run directory: %v", left)
	}
}

// TestCleanupBesideANode: a running node is not disturbed.
func TestCleanupBesideANode(t *testing.T) {
	inNamespace(t)
	cfg := tunConfig(t)
	n := startNode(t, cfg)
	awaitReady(t, n)
	before := hostState(t)
	removed, err := Cleanup(CleanupConfig{RunDir: cfg.RunDir})
	if !errors.Is(err, control.ErrRunning) || len(removed) > 0 {
		t.Errorf("removed %q, %v", removed, err)
	}
	oneLine(t, err, cfg.RunDir)
	sameState(t, before)
	for _, f := range []string{"subnet.env", control.SocketName} {
		if _, err := os.Stat(filepath.Join(cfg.RunDir, f)); err != nil {
			t.Error(err)
		}
	}
	if c, err := Dial(cfg.RunDir); err != nil {
		t.Errorf("the node no longer answers: %v", err)
	} else if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestCleanupWhereNothingIs makes nothing either.
func TestCleanupWhereNothingIs(t *testing.T) {
	inNamespace(t)
	before := hostState(t)
	dir := filepath.Join(t.TempDir(), "run")
	if removed, err := Cleanup(CleanupConfig{RunDir: dir}); err != nil || len(removed) > 0 {
		t.Errorf("removed %q, %v", removed, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the run directory was made: %v", err)
	}
	sameState(t, before)
}
