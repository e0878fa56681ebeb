package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// measurement is one line of the table.
type measurement struct {
	name    string
	title   string
	unit    string
	goal    float64
	less    bool // whether less is better
	measure func(ctx context.Context, s *system, length time.Duration) (float64, error)
}

var measurements = []measurement{
	{"tcp1", "TCP, one stream", "Gb/s", 0.60, false, tcp(1)},
	{"tcp4", "TCP, four streams", "Gb/s", 0.60, false, tcp(4)},
	{"udp64", "UDP 64 bytes, delivered", "kpps", 0.80, false, udp64},
	{"pingpong", "TCP ping-pong p50", "us", 3.0, true, pingPong},
}

// program is a process that plays a role with a socket.
type program struct {
	cmd *exec.Cmd
	out strings.Builder
}

// play starts a process for a role of roles, with a socket that is this
// program's no longer.
func play(ctx context.Context, role string, length time.Duration, fd int) (*program, error) {
	return feed(ctx, role, length, fd, nil)
}

// feed is play with something to read for the role.
func feed(ctx context.Context, role string, length time.Duration, fd int, input io.Reader) (*program, error) {
	f := os.NewFile(uintptr(fd), role)
	defer f.Close()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &program{cmd: exec.CommandContext(ctx, self, roleCommand, role, length.String())}
	p.cmd.ExtraFiles, p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = []*os.File{f}, input, &p.out, os.Stderr
	// A goroutine that waits in a raw system call looks like one that runs for too
	// long, and would be interrupted every 10 ms.
	p.cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	return p, p.cmd.Start()
}

// result waits for the process and returns the number that it printed.
func (p *program) result() (int64, error) {
	if err := p.cmd.Wait(); err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(p.out.String()), 10, 64)
}

// kill ends the process, whatever it does.
func (p *program) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// socket makes a blocking socket in a namespace.
func socket(ns *lab.Namespace, typ int) (fd int, err error) {
	err = ns.Do(func() error {
		fd, err = unix.Socket(unix.AF_INET, typ|unix.SOCK_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// connect makes a TCP connection from a to b.
func connect(s *system) (client, server int, err error) {
	l, err := socket(s.b.Namespace, unix.SOCK_STREAM)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(l)
	at := &unix.SockaddrInet4{Addr: s.b.Addr4().As4()}
	if err := unix.Bind(l, at); err != nil {
		return 0, 0, err
	}
	if err := unix.Listen(l, 1); err != nil {
		return 0, 0, err
	}
	bound, err := unix.Getsockname(l)
	if err != nil {
		return 0, 0, err
	}
	if client, err = socket(s.a.Namespace, unix.SOCK_STREAM); err != nil {
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
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return 0, 0, err
		}
	}
	return client, server, nil
}

// tcp sends from a to b over some connections at once and measures Gb/s.
func tcp(streams int) func(context.Context, *system, time.Duration) (float64, error) {
	return func(ctx context.Context, s *system, length time.Duration) (float64, error) {
		n, err := transfer(ctx, s, streams, length)
		return float64(n) * 8 / length.Seconds() / 1e9, err
	}
}

// transfer sends from a to b for a time and returns how many bytes have arrived.
func transfer(ctx context.Context, s *system, streams int, length time.Duration) (total int64, err error) {
	var sources, sinks []*program
	for range streams {
		client, server, err := connect(s)
		if err != nil {
			return 0, err
		}
		sink, err := play(ctx, "sink", length, server)
		if err != nil {
			return 0, err
		}
		source, err := play(ctx, "source", length, client)
		if err != nil {
			return 0, err
		}
		sinks, sources = append(sinks, sink), append(sources, source)
	}
	for i := range streams {
		if _, err := sources[i].result(); err != nil {
			return 0, err
		}
		n, err := sinks[i].result()
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// udp64 sends datagrams with a payload of 64 bytes, one per call, as fast as a can,
// and returns how many thousand of them a second b has read.
func udp64(ctx context.Context, s *system, length time.Duration) (float64, error) {
	const buffer = 4 << 20
	rx, err := socket(s.b.Namespace, unix.SOCK_DGRAM)
	if err != nil {
		return 0, err
	}
	quiet := unix.NsecToTimeval(int64(500 * time.Millisecond))
	if err := unix.SetsockoptTimeval(rx, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &quiet); err != nil {
		return 0, err
	}
	if err := unix.SetsockoptInt(rx, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer); err != nil {
		return 0, err
	}
	if err := unix.Bind(rx, &unix.SockaddrInet4{Addr: s.b.Addr4().As4()}); err != nil {
		return 0, err
	}
	bound, err := unix.Getsockname(rx)
	if err != nil {
		return 0, err
	}
	tx, err := socket(s.a.Namespace, unix.SOCK_DGRAM)
	if err != nil {
		return 0, err
	}
	if err := unix.Connect(tx, bound); err != nil {
		return 0, err
	}
	sink, err := play(ctx, "udp-sink", length, rx)
	if err != nil {
		return 0, err
	}
	source, err := play(ctx, "udp-source", length, tx)
	if err != nil {
		return 0, err
	}
	if _, err := source.result(); err != nil {
		return 0, err
	}
	n, err := sink.result()
	return float64(n) / length.Seconds() / 1000, err
}

// pingPong sends one byte back and forth over a connection and returns the median
// of the round-trip times in microseconds.
func pingPong(ctx context.Context, s *system, length time.Duration) (float64, error) {
	client, server, err := connect(s)
	if err != nil {
		return 0, err
	}
	echo, err := play(ctx, "echo", length, server)
	if err != nil {
		return 0, err
	}
	ping, err := play(ctx, "ping", length, client)
	if err != nil {
		return 0, err
	}
	p50, err := ping.result()
	if err != nil {
		return 0, err
	}
	_, err = echo.result()
	return float64(p50) / 1000, err
}
