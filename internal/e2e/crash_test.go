package e2e_test

import (
	"errors"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCrashIsSeen: a daemon that the watchdog ends, or that panics, which ends in the same way,
// has been killed by a signal and does not exit with 2. That is wrong usage, after which
// the unit does not start it again.
func TestCrashIsSeen(t *testing.T) {
	t.Parallel()
	_, _, nodes := cluster(t, 1)
	n := nodes[0]
	n.start(t)
	n.lease(t)
	// Nobody wants its memory.
	must(t, unix.Prlimit(n.daemon.PID(), unix.RLIMIT_CORE, &unix.Rlimit{}, nil))
	must(t, n.daemon.Signal(syscall.SIGABRT))
	select {
	case <-n.daemon.Done():
	case <-within(t, stopLimit).Done():
		t.Fatal("it goes on")
	}
	var exit *exec.ExitError
	if !errors.As(n.daemon.Err(), &exit) {
		t.Fatalf("it has ended with %v", n.daemon.Err())
	}
	if ws := exit.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGABRT {
		t.Errorf("it has ended with %v, want by SIGABRT", exit)
	}
}
