package overlayd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/forward"
	"github.com/overlayd/overlayd/tunnel"
)

const maxQueues = 8

// DefaultQueues is what Config.Queues is if it is 0. A queue has one goroutine that
// reads the TUN and one for each underlay family, and all of them may wait at the
// same time: a program whose GOMAXPROCS is larger than three times the queues spares
// them some work.
func DefaultQueues() int {
	// GOMAXPROCS also knows of a quota (runtime.SetDefaultGOMAXPROCS).
	return min(max(min(runtime.NumCPU(), runtime.GOMAXPROCS(0))/2, 1), maxQueues)
}

// socketBuffer is how many bytes a data socket may hold for us in each
// direction: a few milliseconds at 10 Gb/s, so that a busy scheduler loses
// nothing.
const socketBuffer = 4 << 20

func (n *Node) bindSockets() error {
	for _, a := range n.parts.endpoints {
		at := netip.AddrPortFrom(a, n.cfg.dataPort())
		conn, err := listenUDP(at, false)
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			return fmt.Errorf("the UDP port %v is in use: stop the program, or remove the VXLAN device, that has it, or choose another --%s-port", at, n.cfg.Encap)
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			return fmt.Errorf("%v is not an address of this host: advertise one that is", a)
		case err != nil:
			return fmt.Errorf("UDP port %v: %w", at, err)
		}
		n.parts.conns = append(n.parts.conns, conn)
	}
	return nil
}

// vxlanPorts is from how many outer source ports VXLAN is sent over each family, so
// that the underlay and the receiver can tell flows apart (RFC 7348 section 5).
const vxlanPorts = 16

// bindMore binds the sockets beside the first ones: those of the device's further
// queues, if it has any, and of the vxlan encap all that only send.
func (n *Node) bindMore() error {
	queues := 1
	if m, ok := n.parts.device.(tunnel.MultiQueue); ok && n.cfg.Tunnel == nil {
		queues = len(m.Queues())
	}
	lanes := 1
	if n.cfg.Encap == "vxlan" {
		lanes = max(vxlanPorts/queues, 2)
	}
	bind := func(into *[]*net.UDPConn, count int, port uint16) error {
		for _, a := range n.parts.endpoints {
			for range count {
				c, err := listenUDP(netip.AddrPortFrom(a, port), port != 0)
				if err != nil {
					return fmt.Errorf("further sockets at %v: %w", a, err)
				}
				*into = append(*into, c)
			}
		}
		return nil
	}
	if n.cfg.Encap == "vxlan" {
		if err := bind(&n.parts.sending, lanes, 0); err != nil {
			return err
		}
	}
	n.parts.more = make([]forward.QueueConns, queues-1)
	for i := range n.parts.more {
		q := &n.parts.more[i]
		if err := errors.Join(bind(&q.Rx, 1, n.cfg.dataPort()), bind(&q.Tx, lanes, 0)); err != nil {
			return err
		}
	}
	return nil
}

// listenUDP binds a data socket. One that shares its address joins another that is
// bound there already: that one was bound without sharing, so that nobody else's
// socket can be there, and shares from then on.
func listenUDP(at netip.AddrPort, share bool) (*net.UDPConn, error) {
	network := "udp4"
	if at.Addr().Is6() {
		network = "udp6"
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if share {
			return setReusePort(c)
		}
		return nil
	}}
	pc, err := lc.ListenPacket(context.Background(), network, at.String())
	if err != nil {
		return nil, err
	}
	conn := pc.(*net.UDPConn)
	enlargeBuffers(conn)
	raw, err := conn.SyscallConn()
	if err == nil {
		err = setReusePort(raw)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// setReusePort lets further sockets of this user share a socket's address.
func setReusePort(c syscall.RawConn) (err error) {
	closed := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
	return errors.Join(closed, err)
}

// enlargeBuffers asks for socketBuffer, above the sysctl limits if it may. A
// smaller buffer is no error: it loses packets only under load.
func enlargeBuffers(conn *net.UDPConn) {
	conn.SetReadBuffer(socketBuffer)
	conn.SetWriteBuffer(socketBuffer)
	if raw, err := conn.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer)
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer)
		})
	}
}
