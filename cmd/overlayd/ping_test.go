package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlayd/overlayd"
)

// TestPing runs on a virtual clock.
func TestPing(t *testing.T) {
	answer := overlayd.PingResult{Peer: "b", PeerID: "10", Endpoint: "192.0.2.2:8285", Path: overlayd.PathUserspaceUDP, RTT: 500 * time.Microsecond}
	noAnswer := fmt.Errorf("no answer: %w", context.DeadlineExceeded)
	unknown := errors.New(`no peer is called "b"`)
	for _, tt := range []struct {
		name  string
		p     pinger
		probe func(n int) error // of the nth probe
		path  func(since time.Duration) string
		out   string
		err   string
		took  time.Duration
	}{
		{
			name: "all answered", p: pinger{count: 3},
			out: "answer from b (192.0.2.2:8285): seq=1 path=userspace-udp time=0.500 ms\n" +
				"answer from b (192.0.2.2:8285): seq=2 path=userspace-udp time=0.500 ms\n" +
				"answer from b (192.0.2.2:8285): seq=3 path=userspace-udp time=0.500 ms\n" +
				"--- b ping statistics ---\n3 sent, 3 received, 0% loss\nrtt min/avg/max = 0.500/0.500/0.500 ms\n",
			took: 2 * time.Second,
		},
		{
			name: "one lost", p: pinger{count: 3},
			probe: func(n int) error {
				if n == 2 {
					return noAnswer
				}
				return nil
			},
			out: "answer from b (192.0.2.2:8285): seq=1 path=userspace-udp time=0.500 ms\n" +
				"no answer: seq=2\n" +
				"answer from b (192.0.2.2:8285): seq=3 path=userspace-udp time=0.500 ms\n" +
				"--- b ping statistics ---\n3 sent, 2 received, 33.3% loss\nrtt min/avg/max = 0.500/0.500/0.500 ms\n",
			took: 3 * time.Second,
		},
		{
			name: "none answered", p: pinger{count: 2},
			probe: func(int) error { return noAnswer },
			path:  func(time.Duration) string { return overlayd.PathNone },
			out:   "no answer: seq=1\nno answer: seq=2\n--- b ping statistics ---\n2 sent, 0 received, 100% loss\n",
			err:   "b does not answer: path none: because",
			took:  4 * time.Second,
		},
		{
			name: "timeout without an answer", p: pinger{count: 100, timeout: 3 * time.Second},
			probe: func(int) error { return noAnswer },
			path:  func(time.Duration) string { return overlayd.PathNone },
			out:   "no answer: seq=1\nno answer: seq=2\n--- b ping statistics ---\n2 sent, 0 received, 100% loss\n",
			err:   "b does not answer: path none: because",
			took:  3 * time.Second,
		},
		{
			name: "unknown peer", p: pinger{count: 3}, probe: func(int) error { return unknown },
			path: func(time.Duration) string { return "" }, err: unknown.Error(),
		},
		{
			name: "the daemon goes away", p: pinger{until: "direct"}, err: "no overlayd is running",
			probe: func(int) error { return overlayd.ErrNotRunning },
		},
		{
			name: "until is so already", p: pinger{until: "userspace"},
			out: "answer from b (192.0.2.2:8285): seq=1 path=userspace-udp time=0.500 ms\n" +
				"--- b ping statistics ---\n1 sent, 1 received, 0% loss\nrtt min/avg/max = 0.500/0.500/0.500 ms\npath is userspace-udp after 0s\n",
		},
		{
			name: "until, peer comes later", p: pinger{until: "kernel-vxlan", interval: 200 * time.Millisecond},
			probe: func(n int) error {
				if n == 1 {
					return unknown
				}
				return nil
			},
			path: func(since time.Duration) string {
				switch {
				case since < 200*time.Millisecond:
					return ""
				case since < 400*time.Millisecond:
					return overlayd.PathUserspaceUDP
				}
				return overlayd.PathKernelVXLAN
			},
			out: "no peer is called \"b\": seq=1\n" +
				"answer from b (192.0.2.2:8285): seq=2 path=userspace-udp time=0.500 ms\n" +
				"answer from b (192.0.2.2:8285): seq=3 path=userspace-udp time=0.500 ms\n" +
				"--- b ping statistics ---\n3 sent, 2 received, 33.3% loss\nrtt min/avg/max = 0.500/0.500/0.500 ms\npath is kernel-vxlan after 400ms\n",
			took: 400 * time.Millisecond,
		},
		{
			name: "until never", p: pinger{until: "direct", timeout: time.Second, count: 1},
			out: "answer from b (192.0.2.2:8285): seq=1 path=userspace-udp time=0.500 ms\n" +
				"--- b ping statistics ---\n1 sent, 1 received, 0% loss\nrtt min/avg/max = 0.500/0.500/0.500 ms\n",
			err: "path to b is not direct after 0s but userspace-udp: because",
		},
		{
			name: "until times out on a peer that never comes", p: pinger{until: "direct", timeout: time.Second, interval: 600 * time.Millisecond},
			probe: func(int) error { return unknown },
			path:  func(time.Duration) string { return "" },
			out:   "no peer is called \"b\": seq=1\n--- b ping statistics ---\n2 sent, 0 received, 100% loss\n",
			err:   `path to b is not direct after 1s: no peer is called "b"`,
			took:  time.Second,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				probes := 0
				var out bytes.Buffer
				p := tt.p
				p.target, p.out, p.wait = "b", &out, 2*time.Second
				if p.timeout == 0 {
					p.timeout = 10 * time.Second
				}
				if p.interval == 0 {
					p.interval = time.Second
				}
				path := func() string {
					if tt.path == nil {
						return overlayd.PathUserspaceUDP
					}
					return tt.path(time.Since(began))
				}
				p.node = &fakeProber{
					ping: func(ctx context.Context) (overlayd.PingResult, error) {
						probes++
						if tt.probe != nil {
							if err := tt.probe(probes); err != nil {
								if err == noAnswer {
									<-ctx.Done()
								}
								return overlayd.PingResult{}, err
							}
						}
						return answer, nil
					},
					path: path,
				}
				err := p.run(t.Context())
				if got := fmt.Sprint(err); tt.err != "" && got != tt.err || tt.err == "" && err != nil {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				if out.String() != tt.out {
					t.Errorf("got\n%swant\n%s", out.String(), tt.out)
				}
				if took := time.Since(began); took != tt.took {
					t.Errorf("took %s, want %s", took, tt.took)
				}
			})
		})
	}
}

func TestPingInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var out bytes.Buffer
		p := pinger{target: "100.96.2.1", out: &out, count: 100, timeout: 10 * time.Second, interval: time.Second, wait: 2 * time.Second}
		probes := 0
		p.node = &fakeProber{path: func() string { return overlayd.PathUserspaceUDP }, ping: func(ctx context.Context) (overlayd.PingResult, error) {
			if probes++; probes == 3 {
				cancel()
				return overlayd.PingResult{}, ctx.Err()
			}
			return overlayd.PingResult{Peer: "b", RTT: time.Millisecond}, nil
		}}
		if err := p.run(ctx); err != nil {
			t.Errorf("got %v", err)
		}
		if !strings.HasSuffix(out.String(), "2 sent, 2 received, 0% loss\nrtt min/avg/max = 1.000/1.000/1.000 ms\n") {
			t.Errorf("got\n%s", out.String())
		}
	})
}

type fakeProber struct {
	ping func(context.Context) (overlayd.PingResult, error)
	path func() string
}

func (f *fakeProber) Ping(ctx context.Context, _ string) (overlayd.PingResult, error) {
	return f.ping(ctx)
}

func (f *fakeProber) Peers(context.Context) (overlayd.Peers, error) {
	path := f.path()
	if path == "" {
		return overlayd.Peers{}, nil
	}
	return overlayd.Peers{Peers: []overlayd.PeerStatus{
		{ID: "99", Name: "other", Path: overlayd.PathDirect},
		{ID: "10", Name: "b", Path: path, PathReason: "because"},
	}}, nil
}

func (f *fakeProber) Lookup(context.Context, netip.Addr) (overlayd.RouteStatus, error) {
	return overlayd.RouteStatus{Peer: "b", PeerID: "10"}, nil
}
