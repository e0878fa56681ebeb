package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd"
)

// TestJSONOutput: what the daemon says comes out as the golden documents of
// package overlayd.
func TestJSONOutput(t *testing.T) {
	for _, which := range []string{"empty", "full"} {
		d := startDaemon(t, which)
		for _, doc := range []string{"status", "peers", "routes", "drops"} {
			got := command(t, nil, doc, "--json", "--run-dir", d.dir)
			if got.code != 0 || got.stderr != "" {
				t.Errorf("%s: %+v", doc, got)
			}
			if diff := cmp.Diff(document(t, doc+"-"+which), got.stdout); diff != "" {
				t.Errorf("%s %s (-want +got):\n%s", doc, which, diff)
			}
		}
	}
}

func TestTextOutput(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 31, 50, 0, time.UTC)
	for _, which := range []string{"empty", "full"} {
		d := startDaemon(t, which)
		var s overlayd.Status
		if err := json.Unmarshal([]byte(document(t, "status-"+which)), &s); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := writeStatus(&b, s, now); err != nil {
			t.Fatal(err)
		}
		golden(t, "status-"+which+".txt", b.String())
		golden(t, "watch-"+which+".txt", watchLine(s)+"\n")
		for _, cmd := range []string{"routes", "drops"} {
			got := command(t, nil, cmd, "--run-dir", d.dir)
			if got.code != 0 || got.stderr != "" {
				t.Errorf("%s: %+v", cmd, got)
			}
			golden(t, cmd+"-"+which+".txt", got.stdout)
		}
		var l overlayd.Leases
		if err := json.Unmarshal([]byte(document(t, "leases-"+which)), &l); err != nil {
			t.Fatal(err)
		}
		b.Reset()
		if err := writeLeases(&b, l.Leases, now); err != nil {
			t.Fatal(err)
		}
		golden(t, "leases-"+which+".txt", b.String())
		got := command(t, nil, "key", "list", "--run-dir", d.dir)
		golden(t, "keys-"+which+".txt", got.stdout)
		if got := command(t, nil, "key", "list", "--json", "--run-dir", d.dir); got.code != 0 || got.stdout != document(t, "keys-"+which) {
			t.Errorf("key list: %+v", got)
		}
		if got := command(t, nil, "lease", "list", "--json", "--run-dir", d.dir); got.code != 0 || got.stdout != document(t, "leases-"+which) {
			t.Errorf("lease list: %+v", got)
		}
		for _, cmd := range []string{"status", "peers"} {
			got := command(t, []string{"OVERLAYD_RUN_DIR=" + d.dir}, cmd)
			if got.code != 0 || got.stderr != "" || !strings.Contains(got.stdout, "peers") && !strings.Contains(got.stdout, "userspace-udp") {
				t.Errorf("%s: %+v", cmd, got)
			}
		}
	}
}

func TestRoutesGet(t *testing.T) {
	d := startDaemon(t, "full")
	d.set("GET /v1/routes/fd96:0:0:2::7", `{"prefix":"fd96:0:0:2::/64","peer":"b","peer_id":"10","endpoint":"192.0.2.2:8285","path":"userspace-udp","reason":"answers"}`)
	got := command(t, nil, "routes", "get", "fd96:0:0:2:0::7", "--json", "--run-dir", d.dir)
	var r overlayd.Routes
	if err := json.Unmarshal([]byte(got.stdout), &r); err != nil || got.code != 0 {
		t.Fatalf("%+v %v", got, err)
	}
	if r.Schema != overlayd.RoutesSchema || len(r.Routes) != 1 || r.Routes[0].Peer != "b" {
		t.Errorf("got %+v", r)
	}
	got = command(t, nil, "routes", "--run-dir", d.dir, "get", "192.0.2.9")
	if want := (result{1, "", "overlayd: no such thing\n"}); got != want {
		t.Errorf("got %+v", got)
	}
}

func TestPingCommand(t *testing.T) {
	d := startDaemon(t, "full")
	d.set("POST /v1/ping", `{"peer":"b","peer_id":"10","endpoint":"192.0.2.2:8285","path":"userspace-udp","rtt_us":345}`)
	got := command(t, nil, "ping", "b", "--count", "1", "--run-dir", d.dir)
	if got.code != 0 || !strings.HasPrefix(got.stdout, "answer from b (192.0.2.2:8285): seq=1 path=userspace-udp time=0.345 ms\n") {
		t.Errorf("got %+v", got)
	}
	got = command(t, nil, "ping", "b", "--until", "userspace-udp", "--run-dir", d.dir)
	if got.code != 0 || !strings.Contains(got.stdout, "path is userspace-udp after ") {
		t.Errorf("got %+v", got)
	}
	got = command(t, nil, "ping", "c", "--until", "kernel-vxlan", "--timeout", "300ms", "--run-dir", d.dir)
	if got.code != 1 || !strings.HasSuffix(got.stderr, "but none: no answer on UDP port 8285: gossip is alive\n") {
		t.Errorf("got %+v", got)
	}
	d.set("POST /v1/ping", `{"error":{"code":"timeout","message":"no answer"}}`)
	got = command(t, nil, "ping", "c", "--count", "1", "--run-dir", d.dir)
	want := result{1, "no answer: seq=1\n--- c ping statistics ---\n1 sent, 0 received, 100% loss\n",
		"overlayd: c does not answer: path none: no answer on UDP port 8285: gossip is alive\n"}
	if got != want {
		t.Errorf("got %+v", got)
	}
}

func TestLeaveCommand(t *testing.T) {
	d := startDaemon(t, "full")
	d.set("POST /v1/leave", "{}")
	got := command(t, nil, "leave", "--run-dir", d.dir)
	if want := (result{0, "a has left and stopped; released: 100.96.1.0/24,fd96:0:0:1::/64\n", ""}); got != want {
		t.Errorf("got %+v", got)
	}
	d = startDaemon(t, "full")
	got = command(t, nil, "leave", "--run-dir", d.dir)
	if want := (result{1, "", "overlayd: no such thing\n"}); got != want {
		t.Errorf("got %+v", got)
	}
}

func TestWatch(t *testing.T) {
	var s overlayd.Status
	if err := json.Unmarshal([]byte(document(t, "status-full")), &s); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name             string
		asJSON, terminal bool
		lines            int    // of three rounds, 0 for any number
		each             string // is there once per round
	}{
		{name: "lines", lines: 3, each: "a: 100.96.1.0/24,fd96:0:0:1::/64, 1 of 2 peers reachable; b userspace-udp 0.345ms; c none (no answer"},
		{name: "JSON lines", asJSON: true, terminal: true, lines: 3, each: `{"schema":"overlayd.status/v1"`},
		{name: "terminal", terminal: true, each: clearScreen},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				began := time.Now()
				rounds := 0
				status := func(context.Context) (overlayd.Status, error) {
					if rounds++; rounds == 3 {
						time.AfterFunc(time.Millisecond, cancel)
					}
					return s, nil
				}
				var b bytes.Buffer
				if err := watchStatus(ctx, &b, status, tt.asJSON, tt.terminal); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took != 2*watchInterval+time.Millisecond {
					t.Errorf("three rounds took %s", took)
				}
				if n := strings.Count(b.String(), "\n"); tt.lines > 0 && n != tt.lines {
					t.Errorf("%d lines, want %d", n, tt.lines)
				}
				if n := strings.Count(b.String(), tt.each); n != 3 {
					t.Errorf("%q is there %d times in\n%s", tt.each, n, b.String())
				}
			})
		})
	}
}

func TestWatchEndsWithTheDaemon(t *testing.T) {
	gone := errors.New("gone")
	status := func(context.Context) (overlayd.Status, error) { return overlayd.Status{}, gone }
	if err := watchStatus(t.Context(), io.Discard, status, false, false); err != gone {
		t.Fatalf("got %v", err)
	}
}

func TestNoTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if isTerminal(null) || isTerminal(&bytes.Buffer{}) {
		t.Error("/dev/null or a buffer is taken for a terminal")
	}
}

func TestPermissionHint(t *testing.T) {
	err := explainDial(t.TempDir(), &os.PathError{Op: "dial", Path: "s", Err: syscall.EACCES})
	if got, want := err.Error(), "dial s: permission denied: be root or a member of the socket's group"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPrintable(t *testing.T) {
	if got, want := printable("a\x1b[2Jb\nc\u009bd\u00e9"), "a?[2Jb?c?dé"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestUnits(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{age(-time.Second), "0ms"}, {age(412 * time.Millisecond), "412ms"}, {age(1500 * time.Millisecond), "1.5s"}, {age(59 * time.Second), "59s"},
		{age(61 * time.Second), "1m01s"}, {age(3*time.Hour + 5*time.Minute), "3h05m"}, {age(50 * time.Hour), "2d02h"},
		{bytesText(0), "0B"}, {bytesText(1023), "1023B"}, {bytesText(1536), "1.5KiB"}, {bytesText(123456789), "117.7MiB"}, {bytesText(1<<64 - 1), "16.0EiB"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %s, want %s", tt.got, tt.want)
		}
	}
}
