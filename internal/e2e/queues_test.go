package e2e_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	library "github.com/overlayd/overlayd"
	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// manyQueues is more than this machine may have processors for.
const manyQueues = 3

// goroutinesLine begins the lines in which runQueues tells how many there are.
const goroutinesLine = "goroutines:"

// runQueues runs a node with several queues until SIGTERM. Its arguments are the
// node's name, its run and state directory, the address of another node, and the
// encap.
func runQueues(args []string) error {
	if len(args) != 5 {
		return fmt.Errorf("%d arguments", len(args))
	}
	n, err := library.New(library.Config{
		Name: args[0], RunDir: args[1], StateDir: args[2], Join: []string{args[3]}, Encap: args[4],
		Networks: []netip.Prefix{network4, network6}, Interface: "eth0", Queues: manyQueues, FastPath: "off",
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	if err := n.Start(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(time.Second)
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			fmt.Fprintln(os.Stderr, goroutinesLine, runtime.NumGoroutine())
		}
	}
	if err := n.Stop(); err != nil {
		return err
	}
	os.Exit(0)
	return nil
}

// startQueues starts nodes with several queues, and waits until their containers
// reach each other.
func startQueues(t *testing.T, encap string, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		n.networks = 2
		var err error
		n.daemon, err = n.Host.Start(asRole(roleQueues, n.Name(), n.runDir(), n.stateDir(), nodes[0].Addr4().String(), encap), lab.StartOptions{Name: "overlayd"})
		must(t, err)
	}
	for _, n := range nodes {
		n.lease(t)
		n.attach(t)
	}
	awaitMesh(t, nodes...)
}

// TestQueues: nodes with several queues carry many flows at once, each in order and
// with the bytes that were sent, over several flows of the underlay, and leave nothing
// behind.
func TestQueues(t *testing.T) {
	t.Parallel()
	for encap, port := range map[string]uint16{"udp": 8285, "vxlan": vxlanPort} {
		t.Run(encap, func(t *testing.T) {
			t.Parallel()
			manyFlows(t, encap, port)
		})
	}
}

func manyFlows(t *testing.T, encap string, port uint16) {
	_, _, nodes := cluster(t, 2)
	startQueues(t, encap, nodes...)
	a, b := nodes[0], nodes[1]
	var mu sync.Mutex
	ports := map[uint16]int{}
	underlay, err := b.Capture("eth0", func(p []byte) bool {
		// Ethernet, IPv4, UDP to the data port.
		if len(p) < 42 || p[12] != 8 || p[13] != 0 || p[23] != 17 || binary.BigEndian.Uint16(p[36:]) != port {
			return false
		}
		mu.Lock()
		ports[binary.BigEndian.Uint16(p[34:])]++
		mu.Unlock()
		return false
	})
	must(t, err)
	defer underlay.Stop()

	var flows sync.WaitGroup
	for i := range 12 {
		dst := b.container.Addrs()[i%2]
		flows.Go(func() {
			const size = 2e6
			res, err := lab.Transfer(within(t, time.Minute), lab.TransferConfig{From: a.container.Namespace, To: b.container.Namespace, Dst: dst, Bytes: size})
			if err != nil || res.Bytes != size || res.SentSHA256 != res.ReceivedSHA256 {
				t.Errorf("TCP to %v: %d bytes, %v", dst, res.Bytes, err)
			}
		})
		flows.Go(func() {
			res, err := lab.Flood(within(t, time.Minute), lab.FloodConfig{From: a.container.Namespace, To: b.container.Namespace, Dst: dst, Rate: 500, Count: 500})
			if err != nil || res.Received == 0 || res.Reordered > 0 || res.Duplicates > 0 {
				t.Errorf("UDP to %v: %+v, %v", dst, res, err)
			}
		})
	}
	flows.Wait()
	mu.Lock()
	t.Logf("outer source ports: %v", ports)
	if len(ports) < 2 {
		t.Errorf("24 flows came by the outer source ports %v, want more", ports)
	}
	mu.Unlock()
	for _, n := range nodes {
		checkDrops(t, n)
		must(t, n.daemon.Stop(within(t, 10*time.Second))) // the race detector may be in it
		if _, err := n.MTU("overlay0"); err == nil {
			t.Errorf("%s still has its device", n)
		}
	}
}
