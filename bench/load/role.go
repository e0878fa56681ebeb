// Package load makes the traffic of the benchmarks and measures what arrives: by iperf3,
// or by small programs of its own.
package load

import (
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Command makes the program one that sends or receives: it is started again for each of
// them, with the socket as its descriptor Socket. Its main function calls Play with the
// arguments that follow.
const Command = "role"

// Socket is the descriptor of a role's socket.
const Socket = 3

// Roles are what such a process does for a time. Each returns some numbers. A program may
// add its own before it calls Play.
var Roles = map[string]func(length time.Duration) ([]int64, error){
	"source": source, "sink": sink, "udp-source-64": udpSource(64), "udp-source-1400": udpSource(1400), "udp-sink": udpSink,
	"ping": ping, "echo": echo,
}

// Play plays a role and prints its numbers.
func Play(args []string) error {
	if len(args) != 2 || Roles[args[0]] == nil {
		return fmt.Errorf("unknown role %q", args)
	}
	length, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	// Nothing but the role runs here, so its system calls are raw ones, which Go's
	// scheduler does not hear of: what is measured is the path, not how Go waits.
	debug.SetGCPercent(-1)
	numbers, err := Roles[args[0]](length)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	_, err = fmt.Fprintln(os.Stdout, strings.Trim(fmt.Sprint(numbers), "[]"))
	return err
}

func read(b []byte) (int, error)  { return raw(unix.SYS_READ, b) }
func write(b []byte) (int, error) { return raw(unix.SYS_WRITE, b) }

// raw calls read(2) or write(2), again after a signal.
func raw(call uintptr, b []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(call, Socket, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

// source returns how many bytes it has sent. All of them arrive, or it fails.
func source(length time.Duration) ([]int64, error) {
	buf := make([]byte, 128<<10)
	var sent int64
	for end := time.Now().Add(length); time.Now().Before(end); {
		n, err := write(buf)
		if err != nil {
			return nil, err
		}
		sent += int64(n)
	}
	return []int64{sent}, nil
}

// sink reads to the end, and counts what came within the time from the first byte on,
// and all that came.
func sink(length time.Duration) ([]int64, error) {
	buf := make([]byte, 128<<10)
	var timely, all int64
	var end time.Time
	for {
		n, err := read(buf)
		if err != nil || n == 0 {
			return []int64{timely, all}, err
		}
		if end.IsZero() {
			end = time.Now().Add(length)
		}
		if time.Now().Before(end) {
			timely += int64(n)
		}
		all += int64(n)
	}
}

// udpSource sends datagrams of a size, one for each call, and returns how many.
func udpSource(size int) func(time.Duration) ([]int64, error) {
	return func(length time.Duration) ([]int64, error) {
		buf := make([]byte, size)
		for end, sent := time.Now().Add(length), int64(0); ; sent++ {
			if _, err := write(buf); err != nil && err != unix.ENOBUFS {
				return nil, err
			}
			if sent%64 == 0 && time.Now().After(end) {
				return []int64{sent}, nil
			}
		}
	}
}

// udpSink counts datagrams until none comes any more.
func udpSink(time.Duration) ([]int64, error) {
	var buf [2048]byte
	for received := int64(0); ; received++ {
		_, err := read(buf[:])
		if err == unix.EAGAIN {
			return []int64{received}, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// ping sends a byte and waits for it to come back, and returns the 50th and the 99th
// percentile of how long that took, in nanoseconds, and how often it did.
func ping(length time.Duration) ([]int64, error) {
	times := make([]time.Duration, 0, 1<<20)
	var b [1]byte
	for end := time.Now().Add(length); ; {
		began := time.Now()
		if began.After(end) && len(times) > 0 {
			break
		}
		if _, err := write(b[:]); err != nil {
			return nil, err
		}
		if _, err := read(b[:]); err != nil {
			return nil, err
		}
		times = append(times, time.Since(began))
	}
	slices.Sort(times)
	return []int64{int64(times[len(times)/2]), int64(times[len(times)*99/100]), int64(len(times))}, nil
}

func echo(time.Duration) ([]int64, error) {
	var b [1]byte
	for bounced := int64(0); ; bounced++ {
		if n, err := read(b[:]); n == 0 || err != nil {
			return []int64{bounced}, err
		}
		if _, err := write(b[:]); err != nil {
			return nil, err
		}
	}
}
