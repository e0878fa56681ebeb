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

// controlLen is CMSG_SPACE of the one control message that there is: UDP_SEGMENT
// with 2 bytes, UDP_GRO with 4 (linux/include/uapi/linux/udp.h).
const controlLen = 24

// mmsgConn is a batchConn made of sendmmsg(2) and recvmmsg(2), with segmentation
// and coalescing by the kernel where the socket has them. Unlike x/net's it
// allocates nothing per message.
type mmsgConn struct {
	fd  *rawfd.FD
	is6 bool
	gso bool // whether the kernel knows UDP_SEGMENT
	gro bool

	rx, tx mmsgBatch
}

// mmsgBatch is the arguments of one direction's call.
type mmsgBatch struct {
	hdrs    []mmsghdr
	iovs    []unix.Iovec
	names   []unix.RawSockaddrInet6 // an IPv4 address fits, too
	control [][controlLen]byte
}

func newMmsgBatch(n int) mmsgBatch {
	return mmsgBatch{
		hdrs: make([]mmsghdr, n), iovs: make([]unix.Iovec, 0, 4*n),
		names: make([]unix.RawSockaddrInet6, n), control: make([][controlLen]byte, n),
	}
}

// newConn makes a batchConn for up to n datagrams per call, which takes over the
// socket. offload asks for UDP_SEGMENT and UDP_GRO; gso and gro of the result say
// what there is of it.
func newConn(c *net.UDPConn, is6 bool, n int, offload bool) (batchConn, offloads, error) {
	fd, err := takeOver(c)
	if err != nil {
		return nil, offloads{}, err
	}
	m := &mmsgConn{fd: fd, is6: is6, rx: newMmsgBatch(n), tx: newMmsgBatch(n)}
	if offload {
		err = fd.Control(func(fd int) error {
			// Any kernel that knows the option can tell its value.
			_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
			m.gso = err == nil
			m.gro = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
			return nil
		})
	}
	return m, offloads{gso: m.gso, gro: m.gro}, err
}

// takeOver takes a socket out of Go's poller, which would be woken for every
// datagram for as long as it knows it.
func takeOver(c *net.UDPConn) (*rawfd.FD, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	dup := -1
	closed := raw.Control(func(fd uintptr) { dup, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(closed, err); err != nil {
		return nil, err
	}
	fd, err := rawfd.New(dup)
	if err != nil {
		unix.Close(dup)
		return nil, err
	}
	return fd, c.Close()
}

func (m *mmsgConn) close() error { return m.fd.Close() }

func (m *mmsgConn) send(b []byte, to netip.AddrPort) error {
	err := m.fd.Control(func(fd int) error {
		var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
		if !m.is6 {
			sa = &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
		}
		return unix.Sendto(fd, b, unix.MSG_DONTWAIT, sa)
	})
	if errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return err
}

func (m *mmsgConn) readBatch(ms []datagram) (int, error) {
	b := &m.rx
	ms = ms[:min(len(ms), len(b.hdrs))]
	b.iovs = b.iovs[:0]
	for i := range ms {
		b.iovs = append(b.iovs, iovec(ms[i].bufs[0]))
	}
	for i := range ms {
		h := &b.hdrs[i].hdr
		*h = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&b.names[i])), Namelen: unix.SizeofSockaddrInet6, Iov: &b.iovs[i]}
		h.SetIovlen(1)
		if m.gro {
			h.Control = &b.control[i][0]
			h.SetControllen(controlLen)
		}
	}
	n, err := b.call(unix.SYS_RECVMMSG, m.fd, len(ms), m.fd.AwaitRead)
	runtime.KeepAlive(ms)
	if err != nil {
		return 0, err
	}
	for i := range ms[:n] {
		h, d := &b.hdrs[i], &ms[i]
		d.n, d.truncated, d.segment = int(h.len), h.hdr.Flags&unix.MSG_TRUNC != 0, 0
		d.addr = addrOf(&b.names[i])
		if m.gro && h.hdr.Controllen > 0 {
			d.segment = groSize(b.control[i][:h.hdr.Controllen])
		}
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
		if d.segment > 0 {
			putSegment(&b.control[i], d.segment)
			h.Control = &b.control[i][0]
			h.SetControllen(controlLen)
		}
	}
	n, err := b.call(unix.SYS_SENDMMSG, m.fd, len(ms), m.fd.AwaitWrite)
	runtime.KeepAlive(ms)
	clear(b.iovs)
	return n, err
}

// call makes the system call for n messages, and waits if it has to. Go's scheduler
// does not hear of the call itself, which never waits: telling it costs as much as a
// small packet does, and has it look after the thread.
func (b *mmsgBatch) call(number uintptr, f *rawfd.FD, n int, await func() bool) (int, error) {
	fd, ok := f.Enter()
	if !ok {
		return 0, net.ErrClosed
	}
	defer f.Leave()
	for {
		n, _, errno := unix.RawSyscall6(number, fd, uintptr(unsafe.Pointer(&b.hdrs[0])), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		case unix.EAGAIN:
			if !await() {
				return 0, net.ErrClosed
			}
		default:
			return 0, errno
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

// putSegment writes a control message that tells the kernel to cut what is sent
// into datagrams of a size.
func putSegment(b *[controlLen]byte, size int) {
	*b = [controlLen]byte{}
	binary.NativeEndian.PutUint64(b[0:], unix.SizeofCmsghdr+2)
	binary.NativeEndian.PutUint32(b[8:], unix.IPPROTO_UDP)
	binary.NativeEndian.PutUint32(b[12:], unix.UDP_SEGMENT)
	binary.NativeEndian.PutUint16(b[16:], uint16(size))
}

// groSize is the size of the datagrams that the kernel has joined, 0 if it has
// not.
func groSize(b []byte) int {
	if len(b) < unix.SizeofCmsghdr+4 || binary.NativeEndian.Uint32(b[8:]) != unix.IPPROTO_UDP || binary.NativeEndian.Uint32(b[12:]) != unix.UDP_GRO {
		return 0
	}
	return int(binary.NativeEndian.Uint32(b[16:]))
}
