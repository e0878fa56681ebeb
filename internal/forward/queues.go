package forward

import (
	"fmt"
	"net"

	"github.com/overlayd/overlayd/tunnel"
)

// sock is a socket of a queue, nil if there is none of its family.
type sock struct {
	conn batchConn
	off  offloads
}

// queue is one queue of the device with its sockets, by address family. Nothing is
// shared between queues but the table and the counters.
type queue struct {
	dev    tunnel.Device
	out    *output
	tx, rx [sockCount]sock
}

// openQueues takes the sockets over.
func (e *Engine) openQueues() ([]*queue, error) {
	devices := []tunnel.Device{e.device}
	if m, ok := e.device.(tunnel.MultiQueue); ok && len(e.more) > 0 {
		devices = m.Queues()[:1+len(e.more)]
	}
	first := &queue{dev: devices[0], out: e.out}
	waiters := (1 + sockCount) * len(devices)
	for i, c := range e.conns {
		if c == nil {
			continue
		}
		s, err := e.take(c, i, waiters, false)
		if err != nil {
			return nil, err
		}
		first.rx[i], first.tx[i] = s, s
		e.running[i].Store(&s.conn) // so that send always has one of them
		if duplicates {
			c.Close()
		}
	}
	all := []*queue{first}
	for n, dev := range devices[1:] {
		q := &queue{dev: dev, out: &output{dev: dev, drops: &e.drops}}
		for _, set := range []struct {
			conns    []*net.UDPConn
			into     *[sockCount]sock
			sendOnly bool
		}{{e.more[n].Rx, &q.rx, false}, {e.more[n].Tx, &q.tx, true}} {
			conns, err := byFamily(set.conns)
			if err != nil {
				return nil, err
			}
			for i, c := range conns {
				if c == nil {
					continue
				}
				if set.into[i], err = e.take(c, i, waiters, set.sendOnly); err != nil {
					return nil, err
				}
				if duplicates {
					c.Close()
				}
			}
		}
		all = append(all, q)
	}
	return all, nil
}

// take makes a batchConn of a socket.
func (e *Engine) take(c *net.UDPConn, family, waiters int, sendOnly bool) (s sock, err error) {
	s.conn, s.off, err = newConn(c, family == sock6, max(maxBatch, rxBatch), waiters, e.offload, sendOnly, e.heardTooBig)
	if err != nil {
		return s, fmt.Errorf("%w: %w", ErrSocket, err)
	}
	e.taken = append(e.taken, s.conn)
	return s, nil
}
