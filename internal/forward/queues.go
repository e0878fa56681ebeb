package forward

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/overlayd/overlayd/tunnel"
)

// sock is a socket of a queue, nil if there is none of its family.
type sock struct {
	conn  batchConn
	off   offloads
	local netip.AddrPort
}

// localOf is the address that a socket is bound to.
func localOf(c *net.UDPConn) netip.AddrPort {
	a, _ := c.LocalAddr().(*net.UDPAddr)
	p := a.AddrPort() // nil-safe
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// queue is one queue of the device with its sockets, by address family. Nothing is
// shared between queues but the table and the counters.
type queue struct {
	dev tunnel.Device
	out *output
	rx  [sockCount]sock
	tx  [sockCount][]sock
}

// openQueues takes the sockets over.
func (e *Engine) openQueues() ([]*queue, error) {
	devices := []tunnel.Device{e.device}
	if m, ok := e.device.(tunnel.MultiQueue); ok && len(e.more) > 0 {
		devices = m.Queues()[:1+len(e.more)]
	}
	waiters := (1 + sockCount) * len(devices)
	first := &queue{dev: devices[0], out: e.out}
	if err := e.takeRx(first, e.conns, waiters); err != nil {
		return nil, err
	}
	for i, s := range first.rx {
		if s.conn != nil && len(e.sending) == 0 {
			first.tx[i] = []sock{s}
		}
	}
	if err := e.takeTx(first, e.sending, waiters); err != nil {
		return nil, err
	}
	all := []*queue{first}
	for n, dev := range devices[1:] {
		q := &queue{dev: dev, out: &output{dev: dev, drops: &e.drops}}
		conns, err := byFamily(e.more[n].Rx)
		if err == nil {
			err = e.takeRx(q, conns, waiters)
		}
		if err == nil {
			err = e.takeTx(q, e.more[n].Tx, waiters)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, q)
	}
	return all, nil
}

func (e *Engine) takeRx(q *queue, conns [sockCount]*net.UDPConn, waiters int) (err error) {
	for i, c := range conns {
		if c == nil {
			continue
		}
		if q.rx[i], err = e.take(c, i, waiters, false); err != nil {
			return err
		}
		if c == e.conns[i] {
			e.running[i].Store(&q.rx[i].conn) // before the other is closed: send always has one of them
		}
		if duplicates {
			c.Close()
		}
	}
	return nil
}

func (e *Engine) takeTx(q *queue, conns []*net.UDPConn, waiters int) error {
	sorted, err := families(conns)
	if err != nil {
		return err
	}
	for i, list := range sorted {
		for _, c := range list {
			s, err := e.take(c, i, waiters, true)
			if err != nil {
				return err
			}
			q.tx[i] = append(q.tx[i], s)
			if duplicates {
				c.Close()
			}
		}
	}
	return nil
}

// take makes a batchConn of a socket.
func (e *Engine) take(c *net.UDPConn, family, waiters int, sendOnly bool) (s sock, err error) {
	s.local = localOf(c)
	s.conn, s.off, err = newConn(c, family == sock6, max(maxBatch, rxBatch), waiters, e.offload, sendOnly, e.heardTooBig)
	if err != nil {
		return s, fmt.Errorf("%w: %w", ErrSocket, err)
	}
	e.taken = append(e.taken, s.conn)
	return s, nil
}
