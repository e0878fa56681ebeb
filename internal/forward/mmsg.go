//go:build amd64 || arm64

package forward

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/tunnel/rawfd"
)

// mmsghdr is struct mmsghdr (linux/include/linux/socket.h) where pointers have 64
// bits.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   uint32
}

// mmsgConn is a batchConn made of sendmmsg(2) and recvmmsg(2), with segmentation
// and coalescing by the kernel where the socket has them. Unlike x/net's it
// allocates nothing per message.
type mmsgConn struct {
	fd  *rawfd.FD
	is6 bool
	gso bool // whether the kernel knows UDP_SEGMENT
	gro bool

	sendOnly bool
	rx, tx   mmsgBatch
	reads    int      // calls of readBatch
	errs     errQueue // of the reader, or of the writer of a socket that only sends
	report   func(tooBig)
}

// mmsgBatch is the arguments of one direction's call.
type mmsgBatch struct {
	hdrs    []mmsghdr
	iovs    []unix.Iovec
	names   []unix.RawSockaddrInet6 // an IPv4 address fits, too
	control [][maxControl]byte
}

func newMmsgBatch(n int) mmsgBatch {
	return mmsgBatch{
		hdrs: make([]mmsghdr, n), iovs: make([]unix.Iovec, 0, 4*n),
		names: make([]unix.RawSockaddrInet6, n), control: make([][maxControl]byte, n),
	}
}

// duplicates: a batchConn has a descriptor of its own, and the socket that it was
// made of is to be closed, for the sake of Go's poller.
const duplicates = true

// newConn makes a batchConn for up to n datagrams per call. offload asks for
// UDP_SEGMENT and UDP_GRO; gso and gro of the result say what there is of it. report
// gets what the underlay says about the size of what was sent; it is called by
// readBatch, or by writeBatch of a socket that only sends, and must not block.
// waiters is what rawfd.New is told.
func newConn(c *net.UDPConn, is6 bool, n, waiters int, offload, sendOnly bool, report func(tooBig)) (batchConn, offloads, error) {
	fd, err := duplicate(c, waiters)
	if err != nil {
		return nil, offloads{}, err
	}
	m := &mmsgConn{fd: fd, is6: is6, rx: newMmsgBatch(n), tx: newMmsgBatch(n), sendOnly: sendOnly, report: report}
	err = fd.Control(func(fd int) error {
		setOptions(fd, is6)
		if offload {
			// Any kernel that knows the option can tell its value.
			_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
			m.gso = err == nil
			m.gro = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
		}
		if sendOnly {
			return takeNothing(fd)
		}
		return nil
	})
	if err != nil {
		fd.Close()
		return nil, offloads{}, err
	}
	return m, offloads{gso: m.gso, gro: m.gro}, nil
}

// duplicate makes a second descriptor of a socket. Go's poller is woken for every
// datagram for as long as the first one is open.
func duplicate(c *net.UDPConn, waiters int) (*rawfd.FD, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	dup := -1
	closed := raw.Control(func(fd uintptr) { dup, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(closed, err); err != nil {
		return nil, err
	}
	fd, err := rawfd.New(dup, waiters)
	if err != nil {
		unix.Close(dup)
		return nil, err
	}
	return fd, nil
}

// drainEvery is after how many calls of readBatch the error queue is emptied in any
// case.
const drainEvery = 256

func (m *mmsgConn) drain(fd uintptr) { m.errs.drain(fd, m.report) }

// skMeminfoDrops is SK_MEMINFO_DROPS (linux/include/uapi/linux/sock_diag.h).
const skMeminfoDrops = 8

func (m *mmsgConn) dropped() (n uint64) {
	var info [skMeminfoDrops + 1]uint32
	err := m.fd.Control(func(fd int) error {
		size := uint32(unsafe.Sizeof(info))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		return 0 // closed, or a kernel before 4.12
	}
	return uint64(info[skMeminfoDrops])
}

func (m *mmsgConn) close() error { return m.fd.Close() }

func (m *mmsgConn) send(b []byte, to netip.AddrPort) error {
	err := m.fd.Control(func(fd int) error {
		var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
		if !m.is6 {
			sa = &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
		}
		err := unix.Sendto(fd, b, unix.MSG_DONTWAIT, sa)
		for tries := 0; tries < maxEarlier && mayBeEarlier(err); tries++ {
			err = unix.Sendto(fd, b, unix.MSG_DONTWAIT, sa)
		}
		return err
	})
	if errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return err
}

func (m *mmsgConn) readBatch(ms []datagram) (int, error) {
	b := &m.rx
	ms = ms[:min(len(ms), len(b.hdrs))]
	if m.reads++; m.reads%drainEvery == 0 { // whoever always finds something never waits
		_ = m.fd.Control(func(fd int) error { m.drain(uintptr(fd)); return nil })
	}
	b.iovs = b.iovs[:0]
	for i := range ms {
		b.iovs = append(b.iovs, iovec(ms[i].bufs[0]))
	}
	for i := range ms {
		h := &b.hdrs[i].hdr
		*h = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&b.names[i])), Namelen: unix.SizeofSockaddrInet6, Iov: &b.iovs[i]}
		h.SetIovlen(1)
		h.Control = &b.control[i][0]
		h.SetControllen(maxControl)
	}
	n, err := b.call(unix.SYS_RECVMMSG, m.fd, len(ms), m.fd.AwaitRead, m.drain)
	runtime.KeepAlive(ms)
	if err != nil {
		return 0, err
	}
	for i := range ms[:n] {
		h, d := &b.hdrs[i], &ms[i]
		d.n, d.truncated = int(h.len), h.hdr.Flags&unix.MSG_TRUNC != 0
		d.addr = addrOf(&b.names[i])
		d.segment, d.class = readCmsgs(b.control[i][:min(h.hdr.Controllen, maxControl)])
	}
	return n, nil
}

func (m *mmsgConn) writeBatch(ms []datagram) (int, error) {
	b := &m.tx
	ms = ms[:min(len(ms), len(b.hdrs))]
	b.iovs = b.iovs[:0]
	for i := range ms {
		for _, p := range ms[i].bufs {
			b.iovs = append(b.iovs, iovec(p))
		}
	}
	at := 0 // the iovecs stay where they are from here on
	for i := range ms {
		d, h := &ms[i], &b.hdrs[i].hdr
		*h = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&b.names[i])), Namelen: m.putAddr(&b.names[i], d.addr)}
		if len(d.bufs) > 0 {
			h.Iov = &b.iovs[at]
			h.SetIovlen(len(d.bufs))
			at += len(d.bufs)
		}
		used := 0
		if d.segment > 0 {
			putSegment(b.control[i][:], d.segment)
			used = cmsgSpace
		}
		if d.class != 0 {
			putTrafficClass(b.control[i][used:], m.is6, d.class)
			used += cmsgSpace
		}
		if used > 0 {
			h.Control = &b.control[i][0]
			h.SetControllen(used)
		}
	}
	var drain func(fd uintptr)
	if m.sendOnly { // else the reader does
		drain = m.drain
	}
	n, err := b.call(unix.SYS_SENDMMSG, m.fd, len(ms), m.fd.AwaitWrite, drain)
	runtime.KeepAlive(ms)
	clear(b.iovs)
	return n, err
}

// call makes the system call for n messages, and waits if it has to. Go's scheduler
// does not hear of the call itself, which never waits: telling it costs as much as a
// small packet does, and has it look after the thread. An error queue that is not
// empty wakes a reader for nothing, and for ever: drain empties it.
func (b *mmsgBatch) call(number uintptr, f *rawfd.FD, n int, await func() bool, drain func(fd uintptr)) (int, error) {
	fd, ok := f.Enter()
	if !ok {
		return 0, net.ErrClosed
	}
	defer f.Leave()
	for woken := false; ; {
		n, _, errno := unix.RawSyscall6(number, fd, uintptr(unsafe.Pointer(&b.hdrs[0])), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		case unix.EAGAIN:
			if woken && drain != nil {
				drain(fd)
			}
			if !await() {
				return 0, net.ErrClosed
			}
			woken = true
		default:
			if drain == nil || !mayBeEarlier(errno) {
				return 0, errno
			}
			drain(fd)
			if number == unix.SYS_SENDMMSG { // it may be this one's, and come again
				return 0, errno
			}
		}
	}
}

func iovec(p []byte) (v unix.Iovec) {
	if len(p) > 0 {
		v.Base = &p[0]
		v.SetLen(len(p))
	}
	return v
}

// putAddr writes a destination and returns the length of its structure.
func (m *mmsgConn) putAddr(to *unix.RawSockaddrInet6, a netip.AddrPort) uint32 {
	if m.is6 {
		*to = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: a.Addr().As16()}
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&to.Port))[:], a.Port())
		return unix.SizeofSockaddrInet6
	}
	four := (*unix.RawSockaddrInet4)(unsafe.Pointer(to))
	*four = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr().As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&four.Port))[:], a.Port())
	return unix.SizeofSockaddrInet4
}

// addrOf reads the source of a datagram: never IPv4-mapped, without a zone.
func addrOf(from *unix.RawSockaddrInet6) netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&from.Port))[:])
	switch from.Family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(from)).Addr), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(from.Addr).Unmap(), port)
	}
	return netip.AddrPort{}
}
