package overlayd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/tunnel"
)

// stopTime is what a stop may take at most.
const stopTime = 2 * time.Second

func isClosed[T any](c <-chan T) bool {
	select {
	case _, open := <-c:
		return !open
	default:
		return false
	}
}

// stopEverywhere stops n from many goroutines at once.
func stopEverywhere(t *testing.T, n *Node) {
	t.Helper()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if err := n.Stop(); err != nil {
				t.Errorf("Stop: %v", err)
			}
		})
	}
	wg.Wait()
}

func TestStopBeforeStart(t *testing.T) {
	check := nothingLeft(t)
	cfg := testConfig(t, 1)
	n := newNode(t, cfg)
	check() // New starts nothing
	events := n.Events(t.Context())
	stopEverywhere(t, n)
	if err := n.Stop(); err != nil {
		t.Errorf("once more: %v", err)
	}
	if err := n.Wait(); err != nil {
		t.Errorf("Wait: %v", err)
	}
	if err := n.Start(t.Context()); !errors.Is(err, ErrStopped) {
		t.Errorf("Start after Stop: %v", err)
	}
	if err := n.Leave(t.Context()); !errors.Is(err, ErrNotStarted) {
		t.Errorf("Leave after Stop: %v", err)
	}
	if !isClosed(events) || isClosed(n.Ready()) {
		t.Error("events are open, or the node is ready")
	}
	if err := cfg.Tunnel.(*tunnel.Memory).Inject(udpPacket(t, netip.MustParseAddr("100.96.0.1"), netip.MustParseAddr("100.96.0.2"), "")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the device is still open: %v", err)
	}
	check()
}

func TestStartAndStop(t *testing.T) {
	check := nothingLeft(t)
	cfg := testConfig(t, 1)
	cfg.RunDir = filepath.Join(t.TempDir(), "run")
	n := newNode(t, cfg)
	if err := n.Leave(t.Context()); !errors.Is(err, ErrNotStarted) {
		t.Errorf("Leave before Start: %v", err)
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context()); !errors.Is(err, ErrStarted) {
		t.Errorf("second Start: %v", err)
	}
	awaitReady(t, n)
	if _, err := os.Stat(filepath.Join(cfg.RunDir, "subnet.env")); err != nil {
		t.Error(err)
	}
	waited := make(chan error, 1)
	go func() { waited <- n.Wait() }()
	within(t, stopTime, "Stop", func() { stopEverywhere(t, n) })
	if err := <-waited; err != nil {
		t.Errorf("Wait: %v", err)
	}
	if err := n.Start(t.Context()); !errors.Is(err, ErrStopped) {
		t.Errorf("Start after Stop: %v", err)
	}
	if err := n.Leave(t.Context()); !errors.Is(err, ErrNotStarted) {
		t.Errorf("Leave after Stop: %v", err)
	}
	if _, err := n.Ping(t.Context(), "x"); !errors.Is(err, ErrNotStarted) {
		t.Errorf("Ping after Stop: %v", err)
	}
	if left, _ := os.ReadDir(cfg.RunDir); len(left) > 0 {
		t.Errorf("left in the run directory: %v", left)
	}
	check()
}

func TestStartWithEndedContext(t *testing.T) {
	check := nothingLeft(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n := newNode(t, testConfig(t, 1))
	if err := n.Start(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if err := n.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait: %v", err)
	}
	if err := n.Stop(); err != nil {
		t.Errorf("Stop: %v", err)
	}
	check()
}

// stepContext calls do when it is asked for the at-th time whether it has
// ended, which Start does before each of its steps.
type stepContext struct {
	context.Context
	asked, at int
	do        func() error
}

func (c *stepContext) Err() error {
	if c.asked++; c.asked == c.at {
		return c.do()
	}
	return nil
}

// interruptEachStep starts nodes and interrupts each before another step,
// until one gets through. setup makes a Config, left checks what is left.
func interruptEachStep(t *testing.T, setup func() Config, interrupt func(*Node) error, want error, left func()) {
	steps := 0
	for at := 1; ; at++ {
		n := newNode(t, setup())
		err := n.Start(&stepContext{Context: t.Context(), at: at, do: func() error { return interrupt(n) }})
		if err == nil {
			awaitReady(t, n)
			if err := n.Stop(); err != nil {
				t.Errorf("Stop: %v", err)
			}
			left()
			break
		}
		steps++
		if !errors.Is(err, want) {
			t.Errorf("before step %d: %v", at, err)
		}
		select {
		case <-n.ended: // Start has taken all down
		default:
			t.Errorf("before step %d: Start has returned, but something is up", at)
		}
		left()
	}
	if steps < 10 {
		t.Errorf("only %d steps were interrupted", steps)
	}
}

// stopAside calls Stop in another goroutine and returns once it has begun.
func stopAside(n *Node) error {
	go n.Stop()
	<-n.quit.Done()
	return nil
}

func TestInterruptedStart(t *testing.T) {
	for _, tt := range []struct {
		name      string
		interrupt func(*Node) error
		want      error
	}{
		{"stop", stopAside, ErrStopped},
		{"context", func(*Node) error { return context.DeadlineExceeded }, context.DeadlineExceeded},
		{"its own end", func(n *Node) error { n.finish(errEnded); return nil }, errEnded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			check := nothingLeft(t)
			interruptEachStep(t, func() Config {
				cfg := testConfig(t, 1)
				cfg.StateDir, cfg.RunDir = filepath.Join(dir, "state"), filepath.Join(dir, "run")
				return cfg
			}, tt.interrupt, tt.want, func() {
				t.Helper()
				check()
				if left, _ := os.ReadDir(filepath.Join(dir, "run")); len(left) > 0 {
					t.Errorf("left in the run directory: %v", left)
				}
			})
		})
	}
}

var errEnded = errors.New("ended for the test")

// TestStopAtRandomTimes races Stop and Start where they are not between steps.
func TestStopAtRandomTimes(t *testing.T) {
	check := nothingLeft(t)
	state := t.TempDir()
	for i := range 60 {
		cfg := testConfig(t, 1)
		cfg.StateDir, cfg.Logger = state, nil
		n := newNode(t, cfg)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := n.Start(t.Context()); err != nil && !errors.Is(err, ErrStopped) {
				t.Errorf("%d: Start: %v", i, err)
			}
		})
		wg.Go(func() {
			<-time.After(time.Duration(rand.Int64N(int64(12 * time.Millisecond))))
			n.Status()
			if err := n.Stop(); err != nil {
				t.Errorf("%d: Stop: %v", i, err)
			}
			if err := n.Wait(); err != nil {
				t.Errorf("%d: Wait: %v", i, err)
			}
		})
		wg.Wait()
	}
	check()
}

func TestHundredCycles(t *testing.T) {
	check := nothingLeft(t)
	first := testConfig(t, 1)
	first.RunDir = t.TempDir()
	var subnets []netip.Prefix
	for i := range 100 {
		cfg := first
		cfg.Tunnel, cfg.Logger = newDevice(), nil
		n := startNode(t, cfg)
		awaitReady(t, n)
		got := n.Status().Node.Subnets
		if i == 0 {
			subnets = got
		}
		if fmt.Sprint(got) != fmt.Sprint(subnets) || len(got) != 2 {
			t.Fatalf("cycle %d: subnets %v, at first %v", i, got, subnets)
		}
		if err := n.Stop(); err != nil {
			t.Fatalf("cycle %d: %v", i, err)
		}
	}
	check()
}

// TestStopKeepsAndLeaveReleases uses that a node which has a lease needs nobody
// to use it again, while one without must find its cluster first.
func TestStopKeepsAndLeaveReleases(t *testing.T) {
	cfg := testConfig(t, 1)
	n := startNode(t, cfg)
	awaitReady(t, n)
	held := n.Status().Node.Subnets
	id := n.Status().Node.ID
	n.Stop()

	again := func() *Node {
		cfg.Tunnel = newDevice()
		cfg.Join = []string{netip.AddrPortFrom(testAddr(9), testGossipPort).String()} // nobody
		return startNode(t, cfg)
	}
	n = again()
	awaitReady(t, n)
	if got := n.Status().Node; fmt.Sprint(got.Subnets) != fmt.Sprint(held) || got.ID != id {
		t.Errorf("after a restart: %v %v, before %v %v", got.ID, got.Subnets, id, held)
	}
	events := n.Events(t.Context())
	if err := n.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	var lost int
	for e := range events {
		if e.Kind == EventLeaseLost {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d subnets were told to be lost, which is no news to whoever calls Leave", lost)
	}
	if err := n.Wait(); err != nil {
		t.Errorf("Wait after Leave: %v", err)
	}

	n = again()
	events = n.Events(t.Context())
	warned := time.After(patience)
	for got := false; !got; {
		select {
		case e := <-events: // after some time it says that it waits for somebody
			got = e.Kind == EventWarning
		case <-n.Ready():
			t.Fatalf("after Leave the node has %v at once", n.Status().Node.Subnets)
		case <-warned:
			t.Fatal("no warning")
		}
	}
	if got := n.Status().Node.Subnets; len(got) > 0 || isClosed(n.Ready()) {
		t.Errorf("after Leave the node has %v", got)
	}
}

// TestLeaveOfAStoppingNode: either the lease was given back, or Leave says that
// it was not.
func TestLeaveOfAStoppingNode(t *testing.T) {
	for range 10 {
		cfg := testConfig(t, 1)
		cfg.Logger = nil
		n := startNode(t, cfg)
		awaitReady(t, n)
		var wg sync.WaitGroup
		wg.Go(func() { n.Stop() })
		wg.Go(func() {
			err := n.Leave(t.Context())
			_, statErr := os.Stat(filepath.Join(cfg.StateDir, "lease.json"))
			gone := errors.Is(statErr, os.ErrNotExist)
			if (err == nil) != gone {
				t.Errorf("Leave: %v, but the lease is gone: %v", err, gone)
			}
			if err != nil && !errors.Is(err, ErrStopped) && !errors.Is(err, ErrNotStarted) {
				t.Errorf("Leave: %v", err)
			}
		})
		wg.Wait()
	}

	// When it is too late for certain: the device is closed after the good-bye.
	cfg := testConfig(t, 1)
	slow := &slowDevice{Memory: newDevice(), closing: make(chan struct{}), proceed: make(chan struct{})}
	cfg.Tunnel = slow
	n := startNode(t, cfg)
	awaitReady(t, n)
	go n.Stop()
	<-slow.closing
	left := make(chan error, 1)
	go func() { left <- n.Leave(t.Context()) }()
	waitFor(t, "Leave to ask", n.release.Load)
	close(slow.proceed)
	if err := <-left; !errors.Is(err, ErrStopped) {
		t.Errorf("Leave of a node that has kept its lease: %v", err)
	}
	if _, err := os.Stat(filepath.Join(cfg.StateDir, "lease.json")); err != nil {
		t.Error(err)
	}
}

// slowDevice is a device whose Close takes its time.
type slowDevice struct {
	*tunnel.Memory
	once             sync.Once
	closing, proceed chan struct{}
}

func (d *slowDevice) Close() error {
	d.once.Do(func() { close(d.closing) })
	<-d.proceed
	return d.Memory.Close()
}

// TestStopWithSilentSeeds: seeds that take connections and never answer must
// not hold up a stop.
func TestStopWithSilentSeeds(t *testing.T) {
	check := nothingLeft(t)
	ln, err := net.Listen("tcp", netip.AddrPortFrom(testAddr(8), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 16)
	go func() {
		defer close(accepted)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	cfg := testConfig(t, 1)
	// Nobody at all, one who takes connections, and a network that swallows.
	cfg.Join = []string{netip.AddrPortFrom(testAddr(9), 9).String(), ln.Addr().String(), "240.0.0.1:7946"}
	n := startNode(t, cfg)
	var called net.Conn
	select {
	case called = <-accepted:
	case <-time.After(patience):
		t.Fatal("the seed was not called")
	}
	within(t, stopTime, "Stop", func() {
		if err := n.Stop(); err != nil {
			t.Errorf("Stop: %v", err)
		}
	})
	ln.Close()
	called.Close()
	for c := range accepted {
		c.Close()
	}
	check()
}
