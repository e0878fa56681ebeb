package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/overlayd/overlayd"
)

// fakeNode is a node whose life the test decides.
type fakeNode struct {
	startErr  error
	slowStart bool          // Start waits for its context or for Stop
	startGate chan struct{} // if there is one, Start waits for it
	ready     chan struct{}
	events    chan overlayd.Event
	ended     chan error    // what Wait returns
	stopping  chan struct{} // closed by Stop
	stopGate  chan struct{} // Stop waits for it
	once      sync.Once
	// What Reload was given, and what it answers.
	reloads   []overlayd.Config
	changed   []string
	reloadErr error
}

func newFakeNode() *fakeNode {
	n := &fakeNode{
		ready: make(chan struct{}), events: make(chan overlayd.Event, 8), ended: make(chan error, 1),
		stopping: make(chan struct{}), stopGate: make(chan struct{}),
	}
	close(n.stopGate)
	return n
}

func (n *fakeNode) Start(ctx context.Context) error {
	if n.slowStart {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.stopping:
			return errors.New("stopped")
		}
	}
	if n.startGate != nil {
		<-n.startGate
	}
	return n.startErr
}
func (n *fakeNode) Ready() <-chan struct{} { return n.ready }
func (n *fakeNode) Wait() error {
	select {
	case err := <-n.ended:
		return err
	case <-n.stopping:
		return nil
	}
}
func (n *fakeNode) Stop() error {
	<-n.stopGate
	n.once.Do(func() { close(n.stopping) })
	return nil
}
func (n *fakeNode) Status() overlayd.Status {
	return overlayd.Status{
		Node:  overlayd.NodeStatus{Name: "a", Subnets: []netip.Prefix{netip.MustParsePrefix("100.96.1.0/24")}},
		Peers: []overlayd.PeerStatus{{Path: overlayd.PathUserspaceUDP}, {Path: overlayd.PathNone, State: "dead"}, {Path: overlayd.PathNone, State: "left"}},
	}
}
func (n *fakeNode) Reload(cfg overlayd.Config) ([]string, error) {
	n.reloads = append(n.reloads, cfg)
	return n.changed, n.reloadErr
}
func (n *fakeNode) Events(context.Context) <-chan overlayd.Event { return n.events }

// running is runNode in the background.
type running struct {
	signals chan os.Signal
	hangups chan os.Signal
	reloads chan struct{} // gets one for each reload
	done    chan error
	log     *lockedBuffer
}

func startRun(n *fakeNode, notify *notifier) *running {
	r := &running{
		signals: make(chan os.Signal, 2), hangups: make(chan os.Signal, 1), reloads: make(chan struct{}, 8),
		done: make(chan error, 1), log: &lockedBuffer{},
	}
	log := newLogger(r.log, slog.LevelInfo, "json")
	reload := func(context.Context) ([]string, error) { r.reloads <- struct{}{}; return nil, nil }
	go func() {
		r.done <- runNode(context.Background(), n, r.signals, r.hangups, reload, log, notify)
	}()
	return r
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// managed listens like a service manager.
func managed(t *testing.T, name string) (*net.UnixConn, []string) {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, []string{"NOTIFY_SOCKET=" + name}
}

// heard reads messages until one is want.
func heard(t *testing.T, conn *net.UnixConn, want string) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 1024)
	for {
		n, err := conn.Read(b)
		if err != nil {
			t.Fatalf("no message %q: %v", want, err)
		}
		if string(b[:n]) == want {
			return
		}
	}
}

func TestRunTellsTheServiceManager(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@overlayd-test-%d", os.Getpid())} {
		conn, env := managed(t, name)
		env = append(env, "WATCHDOG_USEC=20000", fmt.Sprintf("WATCHDOG_PID=%d", os.Getpid()))
		n := newFakeNode()
		r := startRun(n, newNotifier(env))
		heard(t, conn, "STATUS=starting")
		close(n.ready)
		heard(t, conn, "READY=1\nSTATUS=100.96.1.0/24, 1 of 2 peers reachable")
		n.events <- overlayd.Event{Kind: overlayd.EventPeerUp, Peer: "b"}
		heard(t, conn, "STATUS=100.96.1.0/24, 1 of 2 peers reachable")
		heard(t, conn, "WATCHDOG=1")
		heard(t, conn, "WATCHDOG=1")
		r.signals <- syscall.SIGTERM
		heard(t, conn, "STOPPING=1\nSTATUS=stopping")
		if err := <-r.done; err != nil {
			t.Fatal(err)
		}
	}
}

func TestNotifierEnvironment(t *testing.T) {
	pid := fmt.Sprint(os.Getpid())
	for _, tt := range []struct {
		env      string
		socket   string
		interval time.Duration
	}{
		{"", "", 0},
		{"NOTIFY_SOCKET=/x", "/x", 0},
		{"NOTIFY_SOCKET=@x WATCHDOG_USEC=3000000", "@x", 1500 * time.Millisecond},
		{"NOTIFY_SOCKET=/x WATCHDOG_USEC=3000000 WATCHDOG_PID=" + pid, "/x", 1500 * time.Millisecond},
		{"NOTIFY_SOCKET=/x WATCHDOG_USEC=3000000 WATCHDOG_PID=1", "/x", 0},
		{"NOTIFY_SOCKET=/x WATCHDOG_USEC=-1", "/x", 0},
		{"NOTIFY_SOCKET=/x WATCHDOG_USEC=soon", "/x", 0},
		{"NOTIFY_SOCKET=vsock:2:3", "", 0},
	} {
		if n := newNotifier(strings.Fields(tt.env)); n.socket != tt.socket || n.interval != tt.interval {
			t.Errorf("%q: %+v", tt.env, n)
		}
	}
	// Nobody listens: no error, no wait.
	(&notifier{socket: "/nonexistent/notify"}).send("READY=1")
}

func TestRunEnds(t *testing.T) {
	defer func(d time.Duration) { impatientAfter = d }(impatientAfter)
	impatientAfter = 20 * time.Millisecond
	fatal := errors.New("the device is gone")
	for _, tt := range []struct {
		name string
		do   func(n *fakeNode, r *running)
		prep func(n *fakeNode)
		want error
	}{
		{name: "SIGTERM", do: func(_ *fakeNode, r *running) { r.signals <- syscall.SIGTERM }},
		{name: "SIGINT", do: func(_ *fakeNode, r *running) { r.signals <- syscall.SIGINT }},
		{name: "leave", do: func(n *fakeNode, _ *running) { n.ended <- nil }},
		{name: "by itself", do: func(n *fakeNode, _ *running) { n.ended <- fatal }, want: fatal},
		{name: "failed start", prep: func(n *fakeNode) { n.startErr = fatal }, want: fatal},
		{name: "signal during start", prep: func(n *fakeNode) { n.slowStart = true }, do: func(_ *fakeNode, r *running) { r.signals <- syscall.SIGTERM }},
		{name: "second signal", prep: func(n *fakeNode) { n.stopGate = make(chan struct{}) }, do: func(_ *fakeNode, r *running) {
			r.signals <- syscall.SIGTERM
			r.signals <- syscall.SIGTERM // of timeout(1), to the process and to its group
			time.AfterFunc(10*impatientAfter, func() { r.signals <- syscall.SIGINT })
		}, want: errSecondSignal},
		{name: "twice at once", do: func(_ *fakeNode, r *running) {
			r.signals <- syscall.SIGTERM
			r.signals <- syscall.SIGTERM
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newFakeNode()
			if tt.prep != nil {
				tt.prep(n)
			}
			gate := n.stopGate
			r := startRun(n, &notifier{})
			if tt.do != nil {
				tt.do(n, r)
			}
			select {
			case err := <-r.done:
				if err != tt.want {
					t.Errorf("got %v, want %v", err, tt.want)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("does not end")
			}
			if tt.want == errSecondSignal {
				close(gate) // let go of what the exit of the process would end
			}
		})
	}
}

func TestRunLogsEvents(t *testing.T) {
	n := newFakeNode()
	r := startRun(n, &notifier{})
	n.events <- overlayd.Event{Kind: overlayd.EventLeaseHeld, Prefix: netip.MustParsePrefix("100.96.1.0/24")}
	n.events <- overlayd.Event{Kind: overlayd.EventPeerDown, Peer: "b", PeerID: "10", Reason: "no answer", Missed: 2}
	n.events <- overlayd.Event{Kind: overlayd.EventWarning, Reason: "ip_forward is 0"}
	deadline := time.Now().Add(10 * time.Second)
	for !strings.Contains(r.log.String(), "ip_forward is 0") {
		if time.Now().After(deadline) {
			t.Fatalf("log:\n%s", r.log)
		}
		select {
		case err := <-r.done:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	r.signals <- syscall.SIGTERM
	if err := <-r.done; err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(r.log.String()) {
		var rec map[string]any
		if err := json.Unmarshal([]byte(line), &rec); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		delete(rec, "time")
		delete(rec, "version")
		b, _ := json.Marshal(rec)
		got = append(got, string(b))
	}
	for _, want := range []string{
		`{"level":"INFO","msg":"started"}`,
		`{"level":"INFO","msg":"lease-held","prefix":"100.96.1.0/24"}`,
		`{"id":"10","level":"INFO","missed":2,"msg":"peer-down","peer":"b","reason":"no answer"}`,
		`{"level":"WARN","msg":"warning","reason":"ip_forward is 0"}`,
		`{"level":"INFO","msg":"stopping","signal":"terminated"}`,
	} {
		found := false
		for _, line := range got {
			found = found || line == want
		}
		if !found {
			t.Errorf("no line %s in\n%s", want, strings.Join(got, "\n"))
		}
	}
}

func TestLogger(t *testing.T) {
	for level, want := range map[string]int{"debug": 4, "info": 3, "warn": 2, "error": 1} {
		var b bytes.Buffer
		log := newLogger(&b, logLevel(level), "text")
		for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
			log.Log(t.Context(), l, "x")
		}
		if got := strings.Count(b.String(), "\n"); got != want {
			t.Errorf("%s: %d lines, want %d", level, got, want)
		}
	}
}
