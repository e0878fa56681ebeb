package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
	"unsafe"

	"github.com/overlayd/overlayd/bench/load"
	"golang.org/x/sys/unix"
)

// floodBatch is how many messages one call sends.
const floodBatch = 64

// mmsghdr is struct mmsghdr (linux/include/linux/socket.h).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// flood sends what it reads from its standard input, again and again, as fast as
// it can, and returns how many datagrams that were: the socket may cut what it is
// given.
func flood(length time.Duration) (numbers []int64, err error) {
	if err := pin(0, true); err != nil {
		return nil, err
	}
	message, err := io.ReadAll(os.Stdin)
	if err != nil || len(message) == 0 {
		return nil, errors.Join(errors.New("no junk"), err)
	}
	datagrams := int64(1)
	if size, err := unix.GetsockoptInt(load.Socket, unix.IPPROTO_UDP, unix.UDP_SEGMENT); err == nil && size > 0 {
		datagrams = int64((len(message) + size - 1) / size)
	}
	iov := unix.Iovec{Base: &message[0]}
	iov.SetLen(len(message))
	batch := make([]mmsghdr, floodBatch)
	for i := range batch {
		batch[i].hdr = unix.Msghdr{Iov: &iov}
		batch[i].hdr.SetIovlen(1)
	}
	var sent int64
	for end := time.Now().Add(length); time.Now().Before(end); {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, load.Socket, uintptr(unsafe.Pointer(&batch[0])), uintptr(len(batch)), 0, 0, 0)
		switch errno {
		case 0:
			sent += int64(n) * datagrams
		case unix.EINTR, unix.ENOBUFS:
		default:
			return nil, errno
		}
	}
	return []int64{sent}, nil
}

// pin gives all threads of a process, or of this one with 0, the stranger's
// processor, or all others: a stranger does not wait for those whom he floods, nor
// do they for him, but for the work that his packets make. It needs two processors,
// and does nothing with one.
func pin(pid int, stranger bool) error {
	var all, chosen unix.CPUSet
	// The first process of all has the machine's processors, whatever we were given.
	if err := unix.SchedGetaffinity(1, &all); err != nil {
		return err
	}
	if all.Count() < 2 {
		return nil
	}
	left := all.Count()
	for cpu := 0; left > 0; cpu++ {
		if !all.IsSet(cpu) {
			continue
		}
		if left--; (left == 0) == stranger {
			chosen.Set(cpu)
		}
	}
	if pid == 0 {
		pid = os.Getpid()
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(id, &chosen); err != nil && err != unix.ESRCH {
			return fmt.Errorf("pin thread %d: %w", id, err)
		}
	}
	return nil
}
