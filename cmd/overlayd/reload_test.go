package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/pflag"

	"github.com/overlayd/overlayd"
)

// TestHangupReloads: SIGHUP reloads and does not stop, and one that comes during the
// start is taken up after it.
func TestHangupReloads(t *testing.T) {
	n := newFakeNode()
	n.startGate = make(chan struct{})
	r := startRun(n, &notifier{})
	r.hangups <- syscall.SIGHUP
	if len(r.reloads) > 0 {
		t.Error("reloaded before the start")
	}
	close(n.startGate)
	<-r.reloads
	r.hangups <- syscall.SIGHUP
	<-r.reloads
	r.signals <- syscall.SIGTERM
	if err := <-r.done; err != nil {
		t.Fatal(err)
	}
}

// reloading is a reloader with files of its own.
type reloading struct {
	*reloader
	node         *fakeNode
	config, keys string
	log          *lockedBuffer
}

func startReloading(t *testing.T, notify *notifier) *reloading {
	t.Helper()
	dir := t.TempDir()
	r := &reloading{node: newFakeNode(), config: filepath.Join(dir, "config.yaml"), keys: filepath.Join(dir, "keys"), log: &lockedBuffer{}}
	close(r.node.ready)
	r.writeKeys(t, 1)
	r.write(t, "")
	read := func() (daemonConfig, error) {
		list := settings()
		fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
		addSettings(fs, list)
		if err := fs.Parse([]string{"--config", r.config, "--interface", "eth0"}); err != nil {
			t.Error(err)
		}
		return readDaemonConfig(fs, nil, list)
	}
	start, err := read()
	if err != nil {
		t.Fatal(err)
	}
	level := new(slog.LevelVar)
	level.Set(start.logLevel)
	r.reloader = &reloader{read: read, log: newLogger(r.log, level, "text"), level: level, notify: notify, now: start}
	r.use(r.node)
	return r
}

func (r *reloading) write(t *testing.T, more string) {
	t.Helper()
	text := fmt.Sprintf("network: 100.96.0.0/16\nkey_file: %s\n%s", r.keys, more)
	if err := os.WriteFile(r.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (r *reloading) writeKeys(t *testing.T, first byte) {
	t.Helper()
	if err := keepKeys(r.keys)([][]byte{bytes.Repeat([]byte{first}, 32)}); err != nil {
		t.Fatal(err)
	}
}

// TestReloadReadsAnew: the files are read again, what the node says has changed is told
// with the log level, and a restart within the process begins with that.
func TestReloadReadsAnew(t *testing.T) {
	r := startReloading(t, &notifier{})
	r.reloader.config() // as for a start
	step := func(wantLog string, want ...string) overlayd.Config {
		t.Helper()
		skip := len(r.log.String())
		changed, err := r.reload(t.Context())
		if err != nil || !slices.Equal(changed, want) {
			t.Fatalf("changed %q, error %v, want %q", changed, err, want)
		}
		if log := r.log.String()[skip:]; strings.Count(log, "\n") != strings.Count(wantLog, "\n") || !strings.Contains(log, strings.TrimSpace(wantLog)) {
			t.Errorf("log: %q, want %q", log, wantLog)
		}
		return r.node.reloads[len(r.node.reloads)-1]
	}
	step("msg=\"reloaded: nothing has changed\"\n")
	r.node.changed = []string{"--join"}
	r.write(t, "join: [host1, host2]\nlog_level: error\n")
	if cfg := step("msg=reloaded changed=\"--join, --log-level\"\n", "--join", "--log-level"); !slices.Equal(cfg.Join, []string{"host1", "host2"}) {
		t.Errorf("the node was given %+v", cfg)
	}
	r.node.changed = nil
	step("") // nobody wants to know
	r.write(t, "log_level: debug\n")
	step("changed=--log-level\n", "--log-level")
	r.reloader.log.Debug("heard")
	if !strings.Contains(r.log.String(), "msg=heard") {
		t.Error("nothing is logged at debug level")
	}

	// Another file, with the same keys.
	old := r.keys
	r.keys += "2"
	r.writeKeys(t, 1)
	r.write(t, "log_level: debug\n")
	step("changed=--key-file\n", "--key-file")
	// What "overlayd key" does goes there, and is no change for the next reload, nor lost
	// for a restart.
	fresh := [][]byte{bytes.Repeat([]byte{7}, 16)}
	if err := r.reloader.config().OnKeys(fresh); err != nil {
		t.Fatal(err)
	}
	if got, err := readKeyFile(r.keys); err != nil || !bytes.Equal(got[0], fresh[0]) {
		t.Errorf("the new key file has %x, %v", got, err)
	}
	if got, err := readKeyFile(old); err != nil || bytes.Equal(got[0], fresh[0]) {
		t.Errorf("the old key file has %x, %v", got, err)
	}
	if cfg := r.reloader.config(); !bytes.Equal(cfg.Keys[0], fresh[0]) || cfg.OnReload == nil || cfg.Logger == nil {
		t.Errorf("a restart would begin with %+v", cfg)
	}
	if cfg := step("nothing has changed\n"); !bytes.Equal(cfg.Keys[0], fresh[0]) {
		t.Errorf("the node was given the keys %x", cfg.Keys)
	}
}

// TestReloadFails: a faulty file, and whatever the node refuses, leaves all as it was and
// is one line in the log.
func TestReloadFails(t *testing.T) {
	r := startReloading(t, &notifier{})
	before := r.reloader.config()
	for _, tt := range []struct {
		more string
		node error
		want string
		is   error
	}{
		{more: "log_level: debug\nudp_prot: 1\n", want: "config.yaml:4: unknown key"},
		{more: "log_level: loud\n", want: "config.yaml:3: log_level: "},
		{more: "key_file2: x\n", want: "unknown key"},
		{more: "log_level: debug\nlog_format: json\n", want: "--log-format cannot change without a restart", is: overlayd.ErrNeedsRestart},
		{more: "log_level: debug\nvni: 7\n", node: fmt.Errorf("--vni %w", overlayd.ErrNeedsRestart), want: "--vni cannot change without a restart", is: overlayd.ErrNeedsRestart},
	} {
		r.write(t, tt.more)
		r.node.reloadErr = tt.node
		skip := len(r.log.String())
		changed, err := r.reload(t.Context())
		if err == nil || changed != nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("%q: changed %q, error %v", tt.more, changed, err)
		}
		log := r.log.String()[skip:]
		if strings.Count(log, "\n") != 1 || !strings.Contains(log, "level=ERROR msg=\"not reloaded: all stays as it was\"") {
			t.Errorf("%q: log %q", tt.more, log)
		}
		if r.level.Level() != slog.LevelInfo {
			t.Errorf("%q has changed the level to %v", tt.more, r.level.Level())
		}
	}
	if err := os.Chmod(r.keys, 0o644); err != nil {
		t.Fatal(err)
	}
	r.write(t, "")
	r.node.reloadErr = nil
	if _, err := r.reload(t.Context()); err == nil || !strings.Contains(err.Error(), "open to everybody") {
		t.Errorf("a key file that everybody may read: %v", err)
	}
	after := r.reloader.config()
	if after.VNI != before.VNI || len(after.Keys) != 1 || len(r.node.reloads) != 1 {
		t.Errorf("it was %+v and is %+v, after %d reloads", before, after, len(r.node.reloads))
	}
}

// TestReloadTellsTheServiceManager: as Type=notify-reload wants it too.
func TestReloadTellsTheServiceManager(t *testing.T) {
	conn, env := managed(t, filepath.Join(t.TempDir(), "notify"))
	r := startReloading(t, newNotifier(env))
	if _, err := r.reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1024)
	size, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	var usec uint64
	if got := string(b[:size]); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
		t.Errorf("it said %q", got)
	} else if _, err := fmt.Sscanf(got, "RELOADING=1\nMONOTONIC_USEC=%d", &usec); err != nil || usec == 0 {
		t.Errorf("it said %q: %v", got, err)
	}
	heard(t, conn, "READY=1\nSTATUS=100.96.1.0/24, 1 of 2 peers reachable")

	// Who is not ready does not say so.
	r.node.ready = make(chan struct{})
	if _, err := r.reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.notify.send("STATUS=end")
	if size, err := conn.Read(b); err != nil || string(b[:size]) != "STATUS=end" {
		t.Errorf("it said %q, %v", b[:size], err)
	}
}

func TestReloadCommand(t *testing.T) {
	d := startDaemon(t, "full")
	for _, tt := range []struct {
		answer, stdout, stderr string
		code                   int
	}{
		{`{"changed":["--join","--log-level"]}`, "reloaded: --join, --log-level\n", "", 0},
		{`{"changed":[]}`, "nothing has changed\n", "", 0},
		{`{"error":{"code":"failed","message":"--vni cannot change without a restart"}}`, "", "overlayd: --vni cannot change without a restart\n", 1},
	} {
		d.set("POST /v1/reload", tt.answer)
		if got := command(t, nil, "reload", "--run-dir", d.dir); got != (result{tt.code, tt.stdout, tt.stderr}) {
			t.Errorf("%s: %+v", tt.answer, got)
		}
	}
	if got := command(t, nil, "reload", "now"); got.code != 2 {
		t.Errorf("an argument: %+v", got)
	}
}
