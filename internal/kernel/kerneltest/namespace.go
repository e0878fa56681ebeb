// Package kerneltest lets a test change routes, addresses and firewalls
// without anybody noticing: in a network namespace of its own.
package kerneltest

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Namespace moves the calling test into a new, empty network namespace: nothing
// is in it but a loopback device that is down. The test is skipped when it
// lacks the privilege.
//
// The namespace holds for the calling goroutine alone, not for those that it
// starts, nor for subtests. The goroutine stays locked to its thread and the
// thread dies with it, as the Go runtime does with locked threads whose goroutine
// ends. The namespace has no name and goes with the last thing that uses it, so
// there is nothing to remove.
func Namespace(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		if errors.Is(err, unix.EPERM) {
			t.Skip("needs root: a network namespace cannot be made")
		}
		t.Fatalf("unshare: %v", err)
	}
}
