package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// captureLimit is how many packets a capture keeps; it counts on beyond.
const captureLimit = 4096

// captureBuffer is the receive buffer of a capture's socket, in bytes.
const captureBuffer = 16 << 20

// Captured is one packet as a capture saw it.
type Captured struct {
	// Time is when it was read, shortly after it passed.
	Time time.Time
	// Outgoing tells that the namespace sent it.
	Outgoing bool
	// Data starts with the Ethernet header, on an interface that has one, else
	// with the IP header.
	Data []byte
}

// Capture collects the packets that pass an interface.
type Capture struct {
	file   *os.File
	filter func([]byte) bool
	done   chan struct{}

	stop    sync.Once
	reading sync.Mutex // held while packets are taken from the socket
	buf     []byte     // a superpacket and its Ethernet header
	mu      sync.Mutex
	got     []Captured
	n       int
	news    chan struct{} // closed and replaced when a packet is added
}

// Capture starts to collect what passes an interface of the namespace, both
// ways. The filter chooses packets, which it must not keep; nil chooses all.
// At most 4,096 packets are kept, all are counted. The capture ends with Stop,
// or with the lab.
func (n *Namespace) Capture(iface string, filter func(packet []byte) bool) (*Capture, error) {
	link, err := n.nl.LinkByName(iface)
	if err != nil {
		return nil, fmt.Errorf("lab: %s: capture on %s: %w", n.short, iface, err)
	}
	c := &Capture{filter: filter, buf: make([]byte, 1<<16+64), done: make(chan struct{}), news: make(chan struct{})}
	err = n.Do(func() (err error) {
		c.file, err = packetSocket(link)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: %s: capture on %s: %w", n.short, iface, err)
	}
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	if n.lab.closed {
		c.file.Close()
		return nil, ErrClosed
	}
	n.lab.captures = append(n.lab.captures, c)
	go c.run()
	return c, nil
}

// packetSocket opens a packet socket (packet(7)) that the runtime polls.
func packetSocket(link netlink.Link) (*os.File, error) {
	// Protocol 0: nothing is received before the socket is bound to the link.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer)
	if err == nil {
		all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff}) // htons
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind: %w", err)
	}
	return os.NewFile(uintptr(fd), "capture on "+link.Attrs().Name), nil
}

// run reads until Stop sets a deadline. Everything that had passed by then is
// in the socket's queue and still read.
func (c *Capture) run() {
	defer close(c.done)
	raw, err := c.file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(c.drain) // until the deadline, which leaves packets unread, or until the socket fails
	_ = raw.Control(func(fd uintptr) { c.drain(fd) })
}

// drain reads what is in the queue. It tells whether the socket has failed.
func (c *Capture) drain(fd uintptr) bool {
	c.reading.Lock()
	defer c.reading.Unlock()
	for {
		switch size, from, err := unix.Recvfrom(int(fd), c.buf, unix.MSG_DONTWAIT); err {
		case nil:
			c.add(c.buf[:size], from)
		case unix.EINTR, unix.ENETDOWN: // a link that went down may come back
		case unix.EAGAIN:
			return false
		default:
			return true
		}
	}
}

func (c *Capture) add(packet []byte, from unix.Sockaddr) {
	if c.filter != nil && !c.filter(packet) {
		return
	}
	ll, _ := from.(*unix.SockaddrLinklayer)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	if len(c.got) < captureLimit {
		c.got = append(c.got, Captured{
			Time:     time.Now(),
			Outgoing: ll != nil && ll.Pkttype == unix.PACKET_OUTGOING,
			Data:     append([]byte(nil), packet...),
		})
	}
	close(c.news)
	c.news = make(chan struct{})
}

// Count returns how many of the packets that have passed were chosen: also those
// that the reader has not come to yet.
func (c *Capture) Count() int {
	if raw, err := c.file.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { c.drain(fd) }) // an error: it is stopped, and all is read
	}
	return c.count()
}

func (c *Capture) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// Packets returns the packets collected so far.
func (c *Capture) Packets() []Captured {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Captured(nil), c.got...)
}

// Wait waits until at least n packets were chosen.
func (c *Capture) Wait(ctx context.Context, n int) error {
	for {
		c.mu.Lock()
		have, news := c.n, c.news
		c.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-news:
		case <-c.done:
			return fmt.Errorf("lab: capture ended with %d packets of %d", c.count(), n)
		case <-ctx.Done():
			return fmt.Errorf("lab: %d packets of %d captured: %w", have, n, context.Cause(ctx))
		}
	}
}

// Stop ends the capture; everything that passed before is in it. It may be
// called more than once.
func (c *Capture) Stop() {
	c.stop.Do(func() {
		if err := c.file.SetReadDeadline(time.Now()); err != nil {
			// Without a deadline only closing wakes the reader.
			c.file.Close()
		}
		<-c.done
		c.file.Close()
	})
}
