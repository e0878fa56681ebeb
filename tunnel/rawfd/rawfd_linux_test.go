package rawfd

import (
	"errors"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func pipe(t *testing.T) (r, w *FD) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, err := New(p[0], 2)
	if err != nil {
		t.Fatal(err)
	}
	if w, err = New(p[1], 2); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// open tells whether a descriptor is in use.
func open(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

func TestAwait(t *testing.T) {
	r, w := pipe(t)
	fd, ok := r.Enter()
	if !ok {
		t.Fatal("closed")
	}
	defer r.Leave()
	var b [1]byte
	if _, err := unix.Read(int(fd), b[:]); err != unix.EAGAIN {
		t.Errorf("a read of an empty pipe: %v", err)
	}
	if !w.AwaitWrite() {
		t.Error("no room in an empty pipe")
	}
	if err := w.Control(func(fd int) error { _, err := unix.Write(fd, []byte("x")); return err }); err != nil {
		t.Fatal(err)
	}
	if !r.AwaitRead() {
		t.Error("there is something to read")
	}
	if n, err := unix.Read(int(fd), b[:]); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// TestCloseWakes: Close wakes those who wait, and returns when they have left and
// the descriptors are closed, whoever calls it.
func TestCloseWakes(t *testing.T) {
	for range 50 {
		r, w := pipe(t)
		var waiting, done sync.WaitGroup
		for range 3 {
			waiting.Add(1)
			done.Go(func() {
				fd, ok := r.Enter()
				waiting.Done()
				if !ok {
					return
				}
				defer r.Leave()
				if r.AwaitRead() {
					t.Error("there was nothing to read")
				}
				if !open(int(fd)) {
					t.Error("closed under a caller")
				}
			})
		}
		waiting.Wait()
		for range 2 {
			done.Go(func() {
				if err := r.Close(); err != nil || open(r.fd) || open(r.wake) {
					t.Errorf("close: %v", err)
				}
			})
		}
		done.Wait()
		if _, ok := r.Enter(); ok {
			t.Error("entered after Close")
		}
		if err := r.Control(func(int) error { return nil }); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%v", err)
		}
		w.Close()
	}
}
