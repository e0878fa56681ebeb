package kernel

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// threadNamespace is the calling thread's network namespace. /proc/self would
// be the one of the process's first thread.
const threadNamespace = "/proc/thread-self/ns/net"

// inNamespace runs f on a thread in the namespace of k and waits for it. The
// caller holds k.mu.
//
// Normally the calling thread is there already, and nothing more than
// CAP_NET_ADMIN is needed. Otherwise f runs on a thread of its own that dies
// afterwards, so that no thread is ever left in the wrong namespace; moving it
// takes CAP_SYS_ADMIN (setns(2)).
func (k *Kernel) inNamespace(f func() error) error {
	runtime.LockOSThread()
	if k.ns < 0 || k.isHere() {
		defer runtime.UnlockOSThread()
		return f()
	}
	runtime.UnlockOSThread()

	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(k.ns, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("entering the network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Do runs f on a thread in the namespace that this Kernel belongs to, such as to make
// a socket there.
func (k *Kernel) Do(f func() error) error {
	if err := k.lock(); err != nil {
		return err
	}
	defer k.mu.Unlock()
	return k.inNamespace(f)
}

// isHere tells whether the calling thread is in the namespace of k.
func (k *Kernel) isHere() bool {
	var here, ours unix.Stat_t
	if unix.Stat(threadNamespace, &here) != nil || unix.Fstat(k.ns, &ours) != nil {
		return true // nothing to compare: there is no /proc, and no other namespace to know of
	}
	return here.Dev == ours.Dev && here.Ino == ours.Ino
}

// readProc reads a file of /proc as the namespace of k shows it. The caller
// holds k.mu.
func (k *Kernel) readProc(path string) (data []byte, err error) {
	err = k.inNamespace(func() error {
		data, err = os.ReadFile(path)
		return err
	})
	return data, err
}
