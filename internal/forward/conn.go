package forward

import (
	"errors"
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// datagram is one UDP datagram on its way to or from a socket.
type datagram struct {
	// bufs are the pieces of the datagram in order. For readBatch it is one
	// buffer, whose whole length is room.
	bufs [][]byte
	// addr is the other end. What readBatch fills in is never IPv4-mapped and
	// has no zone.
	addr netip.AddrPort
	// n is how many bytes readBatch has put into the buffer.
	n int
	// truncated is set by readBatch when the datagram was longer than its
	// buffer.
	truncated bool
	// segment, if not zero, says that these are several datagrams of that size
	// behind each other, the last one of at most that: to be cut by the kernel, or
	// joined by it. Only with offloads.
	segment int
	// class is the outer TOS or traffic class. Where the platform does not tell or
	// take it, it is 0 and ignored.
	class uint8
}

// offloads is what a batchConn has of them.
type offloads struct {
	gso bool // writeBatch takes datagrams with a segment
	gro bool // readBatch returns such ones
}

// batchConn is all that the loops know of a UDP socket. One goroutine may call
// readBatch while another calls writeBatch.
type batchConn interface {
	// readBatch waits for at least one datagram and fills in as many as are
	// there, at most len(ms). The error is nil if n > 0. After the socket has
	// been closed, errors.Is(err, net.ErrClosed) holds.
	readBatch(ms []datagram) (n int, err error)

	// writeBatch sends in order, waits while the socket's buffer is full, and
	// returns how many it has sent. With an error the datagram behind those was
	// refused; without one n may still be less than len(ms).
	writeBatch(ms []datagram) (n int, err error)

	// send sends one datagram, on any goroutine.
	send(b []byte, to netip.AddrPort) error

	// dropped is how many datagrams the kernel has not queued for lack of room,
	// where it can be told. It may be called by any goroutine.
	dropped() uint64

	// admit has the kernel drop what does not come from one of these addresses, with
	// a filter that takes the place of any before it; it may be unable to. admitAll
	// takes the filter away. Any goroutine may call them.
	admit(known []netip.Addr) error
	admitAll()

	// close wakes the other calls.
	close() error
}

// xnetConn is a batchConn made of golang.org/x/net: recvmmsg(2), sendmmsg(2).
type xnetConn struct {
	*net.UDPConn
	pc interface {
		ReadBatch([]ipv4.Message, int) (int, error)
		WriteBatch([]ipv4.Message, int) (int, error)
	}
	rx, tx []ipv4.Message
	// addrs and ips hold the destinations of tx, which are overwritten in
	// place: a new net.UDPAddr per message would be garbage per packet.
	addrs []net.UDPAddr
	ips   [][16]byte
}

// newXNetConn makes a batchConn for up to n datagrams per call.
func newXNetConn(c *net.UDPConn, is6 bool, n int) *xnetConn {
	x := &xnetConn{
		UDPConn: c,

		rx:    make([]ipv4.Message, n),
		tx:    make([]ipv4.Message, n),
		addrs: make([]net.UDPAddr, n),
		ips:   make([][16]byte, n),
	}
	// ipv4.Message and ipv6.Message are one type.
	if is6 {
		x.pc = ipv6.NewPacketConn(c)
	} else {
		x.pc = ipv4.NewPacketConn(c)
	}
	for i := range x.tx {
		x.tx[i].Addr = &x.addrs[i]
	}
	return x
}

func (x *xnetConn) dropped() uint64 { return 0 }

func (x *xnetConn) admit([]netip.Addr) error { return errors.ErrUnsupported }
func (x *xnetConn) admitAll()                {}

func (x *xnetConn) close() error { return x.Close() }

func (x *xnetConn) send(b []byte, to netip.AddrPort) error {
	_, err := x.WriteToUDPAddrPort(b, to)
	return err
}

func (x *xnetConn) readBatch(ms []datagram) (int, error) {
	ms = ms[:min(len(ms), len(x.rx))]
	for i := range ms {
		x.rx[i].Buffers = ms[i].bufs
	}
	n, err := x.pc.ReadBatch(x.rx[:len(ms)], 0)
	if err != nil || n <= 0 {
		return 0, err
	}
	for i := range ms[:n] {
		m, d := &x.rx[i], &ms[i]
		d.segment, d.class = 0, 0
		d.n, d.truncated, d.addr = m.N, m.Flags&unix.MSG_TRUNC != 0, netip.AddrPort{}
		if a, ok := m.Addr.(*net.UDPAddr); ok {
			ip, _ := netip.AddrFromSlice(a.IP)
			d.addr = netip.AddrPortFrom(ip.Unmap(), uint16(a.Port))
		}
	}
	return n, nil
}

func (x *xnetConn) writeBatch(ms []datagram) (int, error) {
	ms = ms[:min(len(ms), len(x.tx))]
	for i := range ms {
		d, a, ip := &ms[i], &x.addrs[i], &x.ips[i]
		x.tx[i].Buffers = d.bufs
		a.Port = int(d.addr.Port())
		if d.addr.Addr().Is4() {
			b := d.addr.Addr().As4()
			a.IP = append(ip[:0], b[:]...)
		} else {
			*ip = d.addr.Addr().As16()
			a.IP = ip[:]
		}
	}
	n, err := x.pc.WriteBatch(x.tx[:len(ms)], 0)
	return max(n, 0), err // -1 beside an error
}
