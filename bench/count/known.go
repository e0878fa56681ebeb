package count

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// KnownCommand makes the program one that does what is known beforehand: its main function
// calls Known then.
const KnownCommand = "known"

// The known workload. None of its numbers is another's multiple, so that what is mixed up
// shows.
const (
	pipeTimes, pipeBytes     = 1009, 1000
	pairCalls, pairMessages  = 211, 7
	pairBytes                = 97 // of the first message of a call; each further one has one more
	tunTimes, tunBytes       = 907, 1307
	tunDevice                = "known0"
	tunBatch                 = 100 // fewer than a TUN device keeps
	idleCalls                = 503
	tunAddress, tunNeighbour = "198.18.0.1", "198.18.0.2" // RFC 2544: for benchmarks
)

// Expected is what a known process should be counted with.
type Expected struct {
	Pipe, Pair, TUN File // by Times and Bytes
	Getppid         uint64
	PipeIn, PipeOut int // descriptors
	PairIn, PairOut int
	TUNFile         int
	Copied          Moved // packets that were copied out of the TUN device
}

// Known waits for SIGUSR1, does the known workload, prints what it was, and waits for the
// end of its input.
func Known() (err error) {
	start := make(chan os.Signal, 1)
	signal.Notify(start, syscall.SIGUSR1)
	e := Expected{Getppid: idleCalls}
	var pipe [2]int
	if err := unix.Pipe(pipe[:]); err != nil {
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	e.PipeIn, e.PipeOut, e.PairIn, e.PairOut = pipe[1], pipe[0], pair[0], pair[1]
	if e.TUNFile, err = openTUN(); err != nil {
		return fmt.Errorf("TUN: %w", err)
	}
	told := os.NewFile(3, "told") // its standard output goes to a file
	if _, err := fmt.Fprintln(told, "ready"); err != nil {
		return err
	}
	<-start
	if err := errors.Join(usePipe(pipe), usePair(pair), useTUN(e.TUNFile)); err != nil {
		return err
	}
	for range idleCalls {
		unix.Getppid()
	}
	e.Pipe = File{Moved{Times: pipeTimes, Bytes: pipeTimes * pipeBytes}, Moved{Times: pipeTimes, Bytes: pipeTimes * pipeBytes}}
	perCall := uint64(0)
	for i := range pairMessages {
		perCall += uint64(pairBytes + i)
	}
	many := Moved{Times: pairCalls * pairMessages, Bytes: pairCalls * perCall}
	e.Pair = File{many, many}
	e.TUN = File{Moved{Times: tunTimes, Bytes: tunTimes * tunBytes}, Moved{Times: tunTimes, Bytes: tunTimes * tunBytes}}
	e.Copied = e.TUN.ToUser
	if err := json.NewEncoder(told).Encode(e); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func usePipe(p [2]int) error {
	buf := make([]byte, pipeBytes)
	for range pipeTimes {
		if _, err := unix.Write(p[1], buf); err != nil {
			return err
		}
		if _, err := unix.Read(p[0], buf); err != nil {
			return err
		}
	}
	return nil
}

// mmsghdr is struct mmsghdr (linux/include/linux/socket.h).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

func usePair(p [2]int) error {
	buf := make([]byte, 1000)
	var out, in [pairMessages]mmsghdr
	var iovs [2 * pairMessages]unix.Iovec
	for i := range out {
		iovs[i].Base, iovs[pairMessages+i].Base = &buf[0], &buf[0]
		iovs[i].SetLen(pairBytes + i)
		iovs[pairMessages+i].SetLen(len(buf))
		out[i].hdr.Iov, in[i].hdr.Iov = &iovs[i], &iovs[pairMessages+i]
		out[i].hdr.SetIovlen(1)
		in[i].hdr.SetIovlen(1)
	}
	for range pairCalls {
		for _, c := range []struct {
			nr uintptr
			fd int
			m  *[pairMessages]mmsghdr
		}{{unix.SYS_SENDMMSG, p[0], &out}, {unix.SYS_RECVMMSG, p[1], &in}} {
			n, _, errno := unix.Syscall6(c.nr, uintptr(c.fd), uintptr(unsafe.Pointer(&c.m[0])), pairMessages, 0, 0, 0)
			if errno != 0 || n != pairMessages {
				return fmt.Errorf("%d messages: %w", n, errno)
			}
		}
	}
	return nil
}

// openTUN makes a TUN device with an address, in this process's namespace.
func openTUN() (fd int, err error) {
	if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return fd, err
	}
	req, err := unix.NewIfreq(tunDevice)
	if err != nil {
		return fd, err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fd, err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fd, err
	}
	defer unix.Close(s)
	for _, set := range []struct {
		nr      uint
		address string
	}{{unix.SIOCSIFADDR, tunAddress}, {unix.SIOCSIFDSTADDR, tunNeighbour}} {
		if req, err = unix.NewIfreq(tunDevice); err == nil {
			err = req.SetInet4Addr(net.ParseIP(set.address).To4())
		}
		if err == nil {
			err = unix.IoctlIfreq(s, set.nr, req)
		}
		if err != nil {
			return fd, err
		}
	}
	if req, err = unix.NewIfreq(tunDevice); err != nil {
		return fd, err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return fd, unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
}

// useTUN sends datagrams out by the device, reads them there, and gives each back.
func useTUN(fd int) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	to := &unix.SockaddrInet4{Port: 9, Addr: [4]byte(net.ParseIP(tunNeighbour).To4())}
	payload, buf := make([]byte, tunBytes-28), make([]byte, 2*tunBytes) // RFC 791, RFC 768
	for left := tunTimes; left > 0; left -= tunBatch {
		n := min(left, tunBatch)
		for range n {
			if err := unix.Sendto(s, payload, 0, to); err != nil {
				return err
			}
		}
		for range n {
			got, err := unix.Read(fd, buf)
			if err == nil && got != tunBytes {
				err = fmt.Errorf("a packet of %d bytes", got)
			}
			if err == nil {
				_, err = unix.Write(fd, buf[:got])
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}
