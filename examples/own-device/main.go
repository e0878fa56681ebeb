// Own-device joins an overlay with a device of its own instead of a TUN. Such a
// node needs no root, no /dev/net/tun and changes nothing in the kernel: the
// program itself takes the place of the network stack behind the device.
//
// To have somebody to talk to, it runs two nodes in one process, alpha and beta,
// which meet over the loopback interface. alpha sends a UDP datagram through the
// overlay and beta answers it:
//
//	go run ./examples/own-device
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/netip"
	"os"
	"os/signal"
	"time"

	"github.com/overlayd/overlayd"
	"github.com/overlayd/overlayd/tunnel"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, out io.Writer) error {
	// Two nodes on one machine tell each other apart by their addresses. All of
	// 127.0.0.0/8 is the loopback interface's, so there are enough for several
	// runs at once.
	pid := os.Getpid()
	first := netip.AddrFrom4([4]byte{127, byte(pid >> 8), byte(pid), 1})
	second := first.Next()

	alpha, err := join(ctx, "alpha", first)
	if err != nil {
		return err
	}
	defer alpha.leave()
	beta, err := join(ctx, "beta", second, first.String())
	if err != nil {
		return err
	}
	defer beta.leave()

	// A joiner takes a few seconds: its claim on a subnet has to spread before
	// it counts.
	for _, m := range []*member{alpha, beta} {
		if err := m.waitReady(ctx); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s has the subnet %v\n", m.name, m.subnet)
	}

	a := netip.AddrPortFrom(alpha.host(10), 4000)
	b := netip.AddrPortFrom(beta.host(20), 5000)
	if err := send(ctx, out, alpha, beta, udpPacket(a, b, "hello from alpha")); err != nil {
		return err
	}
	return send(ctx, out, beta, alpha, udpPacket(b, a, "hello from beta"))
}

// send sends a packet until it arrives. An overlay carries IP, which promises
// nothing: here, the first packet may be sent before beta's subnet is known to
// alpha.
func send(ctx context.Context, out io.Writer, from, to *member, packet []byte) error {
	const attempts, wait = 40, 500 * time.Millisecond
	for range attempts {
		// What is injected into one device is what a kernel would route into a
		// TUN, and comes out of the device of the node whose subnet it is for.
		if err := from.device.Inject(packet); err != nil {
			return err
		}
		err := to.receive(ctx, out, wait)
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	return fmt.Errorf("%s got nothing from %s in %d attempts", to.name, from.name, attempts)
}

// member is a node with the device that we gave it.
type member struct {
	name   string
	node   *overlayd.Node
	device *tunnel.Memory
	subnet netip.Prefix
	state  string // directory of its identity and lease
}

// join starts a node on an in-memory device.
func join(ctx context.Context, name string, address netip.Addr, seeds ...string) (_ *member, err error) {
	// A real program keeps this directory: in it is who the node is, and which
	// subnet it had, for the next start.
	state, err := os.MkdirTemp("", "own-device-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(state)
		}
	}()
	device := tunnel.NewMemory(tunnel.MemoryConfig{Name: name})
	node, err := overlayd.New(overlayd.Config{
		Networks:  []netip.Prefix{netip.MustParsePrefix("100.96.0.0/16")},
		Advertise: []netip.Addr{address},
		Join:      seeds,
		Name:      name,
		StateDir:  state,
		Tunnel:    device,
		// The loopback interface would allow more; our device takes 1500.
		MTU: 1400,
	})
	if err != nil {
		return nil, err
	}
	if err := node.Start(ctx); err != nil {
		return nil, err
	}
	return &member{name: name, node: node, device: device, state: state}, nil
}

// leave stops the node, which closes the device too.
func (m *member) leave() {
	if err := m.node.Stop(); err != nil {
		log.Printf("%s: %v", m.name, err)
	}
	os.RemoveAll(m.state)
}

// waitReady waits until the node holds a subnet.
func (m *member) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	select {
	case <-m.node.Ready():
		m.subnet = m.node.Status().Node.Subnets[0]
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s has no subnet: %w", m.name, ctx.Err())
	}
}

// host is the n-th address of the member's subnet. The first belongs to the
// node, the second is the host's bridge by custom; all others are for whoever
// lives behind the device.
func (m *member) host(n byte) netip.Addr {
	b := m.subnet.Addr().As4()
	b[3] += n
	return netip.AddrFrom4(b)
}

// receive waits for a UDP datagram and prints it. Other packets may come as
// well, such as ICMP errors about what the node could not deliver.
func (m *member) receive(ctx context.Context, out io.Writer, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	buf := make([]byte, m.device.Features().MaxPacket)
	for {
		n, err := m.device.Receive(ctx, buf)
		if err != nil {
			return err
		}
		if from, to, text, ok := parseUDP(buf[:n]); ok {
			_, err = fmt.Fprintf(out, "%s received %q, %v -> %v\n", m.name, text, from, to)
			return err
		}
	}
}
