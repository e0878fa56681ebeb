package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// control is called with each new socket before it is bound.
type control = func(network, address string, c syscall.RawConn) error

// Listen makes a TCP listener in the namespace. It, and the connections it
// accepts, stay there, whoever uses them.
func (n *Namespace) Listen(addr netip.AddrPort) (*net.TCPListener, error) {
	var l *net.TCPListener
	err := n.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: %s: %w", n.short, err)
	}
	return l, nil
}

// ListenUDP makes a UDP socket in the namespace.
func (n *Namespace) ListenUDP(addr netip.AddrPort) (*net.UDPConn, error) {
	c, err := n.listenPacket("udp", addr.String(), nil)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// Dial makes a connection from the namespace; network is "tcp" or "udp". The
// address is a literal one on purpose: a name would be looked up by goroutines
// that run elsewhere.
func (n *Namespace) Dial(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := n.Do(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, network, addr.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: %s: %w", n.short, err)
	}
	return c, nil
}

func (n *Namespace) listenPacket(network, address string, ctl control) (net.PacketConn, error) {
	var c net.PacketConn
	err := n.Do(func() (err error) {
		lc := net.ListenConfig{Control: ctl}
		c, err = lc.ListenPacket(context.Background(), network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: %s: %w", n.short, err)
	}
	return c, nil
}
