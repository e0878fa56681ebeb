// Package labtest makes a [lab.Lab] for a test.
package labtest

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// tailLines is how much of each process's output a failed test prints.
const tailLines = 100

// New makes a lab that the test's cleanup closes. It skips the test where the
// process may not make one. When the test has failed, the last lines of every
// process's output are logged.
func New(t testing.TB) *lab.Lab {
	t.Helper()
	if err := lab.Supported(); err != nil {
		t.Skipf("network namespaces: %v", err)
	}
	sweep(t)
	l, err := lab.New(lab.Config{Name: labName(t.Name()), Logger: Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			dump(t, l)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// Hosts makes a lab with one switch and n hosts on it, host1 and so on, with
// the underlay addresses 192.0.2.N and 2001:db8::N.
func Hosts(t testing.TB, n int) (*lab.Lab, *lab.Switch, []*lab.Host) {
	t.Helper()
	l := New(t)
	sw, hosts, err := l.LAN("lan", n)
	if err != nil {
		t.Fatal(err)
	}
	return l, sw, hosts
}

// sweep removes what killed test runs left. A lab that was left up on purpose
// stays.
func sweep(t testing.TB) {
	left, err := lab.Leftovers()
	if err != nil {
		t.Logf("leftovers: %v", err)
	}
	for _, l := range left {
		if l.Kept {
			continue
		}
		// ErrInUse: another run is at it.
		if err := lab.Remove(l.Prefix); err != nil && !errors.Is(err, lab.ErrInUse) {
			t.Logf("remove %s: %v", l.Prefix, err)
		}
	}
}

// labName makes a lab's name out of a test's.
func labName(test string) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, strings.ToLower(strings.TrimPrefix(test, "Test")))
	if name == "" {
		return "test"
	}
	return name[:min(len(name), 20)]
}

func dump(t testing.TB, l *lab.Lab) {
	for _, p := range l.Processes() {
		how := "running"
		if !p.Running() {
			how = "ended"
			if err := p.Err(); err != nil {
				how = err.Error()
			}
		}
		out, err := p.Tail(tailLines)
		if err != nil {
			out = err.Error()
		}
		t.Logf("--- %s on %s (%s), last lines:\n%s", p.Name(), p.Namespace(), how, out)
	}
}

// Eventually calls cond every 20 ms until it returns nil, and fails the test
// with its last error when that takes longer than limit.
func Eventually(t testing.TB, limit time.Duration, cond func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit) // also in a cleanup
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("after %v still: %v", limit, err)
		case <-tick.C:
		}
	}
}

// Logger returns a logger that writes to the test's log.
func Logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}
