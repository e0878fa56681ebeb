package load

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/system"
	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// Transferred is what came of a TCP transfer.
type Transferred struct {
	// Gbps is what arrived within the time.
	Gbps float64
	// Bytes is all that was sent, and arrived.
	Bytes int64
}

// NewSocket makes a blocking IPv4 socket in a namespace.
func NewSocket(ns *lab.Namespace, typ int) (fd int, err error) {
	err = ns.Do(func() error {
		fd, err = unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// Connect makes a TCP connection from s.A to s.B.
func Connect(s *system.System) (client, server int, err error) {
	l, err := NewSocket(s.B.Namespace, unix.SOCK_STREAM)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(l)
	if err := unix.Bind(l, &unix.SockaddrInet4{Addr: s.B.Addr.As4()}); err != nil {
		return 0, 0, err
	}
	if err := unix.Listen(l, 1); err != nil {
		return 0, 0, err
	}
	bound, err := unix.Getsockname(l)
	if err != nil {
		return 0, 0, err
	}
	if client, err = NewSocket(s.A.Namespace, unix.SOCK_STREAM); err != nil {
		return 0, 0, err
	}
	if err := unix.Connect(client, bound); err != nil {
		unix.Close(client)
		return 0, 0, fmt.Errorf("connect: %w", err)
	}
	server, _, err = unix.Accept4(l, unix.SOCK_CLOEXEC)
	if err != nil {
		unix.Close(client)
		return 0, 0, err
	}
	for _, fd := range []int{client, server} {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	}
	if err != nil {
		unix.Close(client)
		unix.Close(server)
	}
	return client, server, err
}

// TCP sends from s.A to s.B over some connections at once.
func TCP(ctx context.Context, s *system.System, streams int, length time.Duration) (t Transferred, err error) {
	var sources, sinks []*Program
	defer func() {
		if err != nil {
			for _, p := range append(sources, sinks...) {
				p.Kill()
			}
		}
	}()
	for range streams {
		client, server, err := Connect(s)
		if err != nil {
			return t, err
		}
		sink, err := Start(ctx, s.B.Namespace, "sink", length, server, nil)
		if err != nil {
			unix.Close(client)
			return t, err
		}
		sinks = append(sinks, sink)
		source, err := Start(ctx, s.A.Namespace, "source", length, client, nil)
		if err != nil {
			return t, err
		}
		sources = append(sources, source)
	}
	for i := range streams {
		sent, err := sources[i].Result()
		if err != nil {
			return t, err
		}
		came, err := sinks[i].Result()
		if err != nil {
			return t, err
		}
		if came[1] != sent[0] {
			return t, fmt.Errorf("%d bytes were sent, and %d arrived", sent[0], came[1])
		}
		t.Gbps += float64(came[0]) * 8 / length.Seconds() / 1e9
		t.Bytes += sent[0]
	}
	return t, nil
}

// udpBuffer is the receiver's, so that it loses nothing while it waits for a processor.
const udpBuffer = 4 << 20

// UDP sends datagrams with a payload of 64 or 1400 bytes, one for each call, as fast as
// s.A can, and returns how many of them a second s.B has read.
func UDP(ctx context.Context, s *system.System, size int, length time.Duration) (perSecond float64, err error) {
	rx, err := NewSocket(s.B.Namespace, unix.SOCK_DGRAM)
	if err != nil {
		return 0, err
	}
	quiet := unix.NsecToTimeval(int64(300 * time.Millisecond))
	err = errors.Join(unix.SetsockoptTimeval(rx, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &quiet),
		unix.SetsockoptInt(rx, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpBuffer),
		unix.Bind(rx, &unix.SockaddrInet4{Addr: s.B.Addr.As4()}))
	bound, nerr := unix.Getsockname(rx)
	if err = errors.Join(err, nerr); err != nil {
		unix.Close(rx)
		return 0, err
	}
	tx, err := NewSocket(s.A.Namespace, unix.SOCK_DGRAM)
	if err == nil {
		err = unix.Connect(tx, bound)
	}
	if err != nil {
		unix.Close(rx)
		return 0, err
	}
	// The sender is started first: a receiver that hears nothing for a while ends.
	source, err := Start(ctx, s.A.Namespace, fmt.Sprintf("udp-source-%d", size), length, tx, nil)
	if err != nil {
		unix.Close(rx)
		return 0, err
	}
	sink, err := Start(ctx, s.B.Namespace, "udp-sink", length, rx, nil)
	if err != nil {
		source.Kill()
		return 0, err
	}
	if _, err := source.Result(); err != nil {
		sink.Kill()
		return 0, err
	}
	n, err := sink.Result()
	if err != nil {
		return 0, err
	}
	return float64(n[0]) / length.Seconds(), nil
}

// PingPong sends one byte back and forth over a TCP connection and returns the 50th and
// the 99th percentile of the round-trip times.
func PingPong(ctx context.Context, s *system.System, length time.Duration) (p50, p99 time.Duration, err error) {
	client, server, err := Connect(s)
	if err != nil {
		return 0, 0, err
	}
	echo, err := Start(ctx, s.B.Namespace, "echo", length, server, nil)
	if err != nil {
		unix.Close(client)
		return 0, 0, err
	}
	ping, err := Start(ctx, s.A.Namespace, "ping", length, client, nil)
	if err != nil {
		echo.Kill()
		return 0, 0, err
	}
	times, err := ping.Result()
	if err != nil {
		echo.Kill()
		return 0, 0, err
	}
	_, err = echo.Result()
	return time.Duration(times[0]), time.Duration(times[1]), err
}
