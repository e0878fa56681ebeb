package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// roleCommand makes this program one that sends or receives: it is started again
// for each of them, with the socket as its descriptor 3.
const roleCommand = "role"

const roleSocket = 3

// roles are what such a process does for a time. Each returns one number.
var roles = map[string]func(length time.Duration) (int64, error){
	"source": source, "sink": sink, "udp-source": udpSource, "udp-sink": udpSink, "ping": ping, "echo": echo,
	"flood": flood,
}

func playRole(args []string) error {
	if len(args) != 2 || roles[args[0]] == nil {
		return fmt.Errorf("unknown role %q", args)
	}
	length, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	// Nothing but the role runs here, so its system calls are raw ones, which Go's
	// scheduler does not hear of: what is measured is the path, not how Go waits.
	debug.SetGCPercent(-1)
	n, err := roles[args[0]](length)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	fmt.Fprintln(os.Stdout, n)
	return nil
}

func read(b []byte) (int, error)  { return raw(unix.SYS_READ, b) }
func write(b []byte) (int, error) { return raw(unix.SYS_WRITE, b) }

// raw calls read(2) or write(2), again after a signal.
func raw(call uintptr, b []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(call, roleSocket, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

func source(length time.Duration) (sent int64, err error) {
	buf := make([]byte, 128<<10)
	for end := time.Now().Add(length); time.Now().Before(end); {
		n, err := write(buf)
		if err != nil {
			return 0, err
		}
		sent += int64(n)
	}
	return sent, nil
}

// sink reads to the end, and counts what came within the time from the first byte
// on.
func sink(length time.Duration) (received int64, err error) {
	buf := make([]byte, 128<<10)
	var end time.Time
	for {
		n, err := read(buf)
		if err != nil || n == 0 {
			return received, err
		}
		if end.IsZero() {
			end = time.Now().Add(length)
		}
		if time.Now().Before(end) {
			received += int64(n)
		}
	}
}

func udpSource(length time.Duration) (sent int64, err error) {
	var buf [64]byte
	for end := time.Now().Add(length); ; sent++ {
		if _, err := write(buf[:]); err != nil && err != unix.ENOBUFS {
			return 0, err
		}
		if sent%64 == 0 && time.Now().After(end) {
			return sent, nil
		}
	}
}

// udpSink counts datagrams until none comes any more.
func udpSink(time.Duration) (received int64, err error) {
	var buf [2048]byte
	for {
		_, err := read(buf[:])
		if err == unix.EAGAIN {
			if received > 0 {
				return received, nil
			}
			continue
		}
		if err != nil {
			return 0, err
		}
		received++
	}
}

func ping(length time.Duration) (median int64, err error) {
	times := make([]time.Duration, 0, 1<<20)
	var b [1]byte
	for end := time.Now().Add(length); ; {
		began := time.Now()
		if began.After(end) {
			break
		}
		if _, err := write(b[:]); err != nil {
			return 0, err
		}
		if _, err := read(b[:]); err != nil {
			return 0, err
		}
		times = append(times, time.Since(began))
	}
	slices.Sort(times)
	return int64(times[len(times)/2]), nil
}

func echo(time.Duration) (bounced int64, err error) {
	var b [1]byte
	for {
		if n, err := read(b[:]); n == 0 || err != nil {
			return bounced, err
		}
		if _, err := write(b[:]); err != nil {
			return 0, err
		}
		bounced++
	}
}
