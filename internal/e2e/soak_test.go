package e2e_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// For how long TestSoak loads two nodes:
//
//	go test ./internal/e2e -run TestSoak -soak 10m -v -timeout 20m
var soak = flag.Duration("soak", 10*time.Second, "how long TestSoak takes")

// level is what must not grow.
type level struct {
	goroutines, fds, kilobytes int
}

// levelOf reads it off a node that runQueues runs.
func levelOf(n *node) (l level, err error) {
	pid := strconv.Itoa(n.daemon.PID())
	fds, err := os.ReadDir("/proc/" + pid + "/fd")
	if err != nil {
		return l, err
	}
	l.fds = len(fds)
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return l, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			if l.kilobytes, err = strconv.Atoi(strings.Fields(rest)[0]); err != nil {
				return l, err
			}
		}
	}
	tail, err := n.daemon.Tail(100)
	if err != nil {
		return l, err
	}
	for line := range strings.Lines(tail) {
		if rest, ok := strings.CutPrefix(line, goroutinesLine); ok {
			if l.goroutines, err = strconv.Atoi(strings.TrimSpace(rest)); err != nil {
				return l, err
			}
		}
	}
	if l.goroutines == 0 {
		return l, fmt.Errorf("%s does not tell its goroutines", n)
	}
	return l, nil
}

// TestSoak sends TCP and UDP of all sizes and both families, pings, junk of a
// stranger and of a neighbour, while a third node comes and goes and a link's MTU
// changes: in the end there are as many goroutines and descriptors and as much memory
// as when all that was under way for a while.
func TestSoak(t *testing.T) {
	t.Parallel()
	_, _, nodes := cluster(t, 4)
	a, b, third, stranger := nodes[0], nodes[1], nodes[2], nodes[3]
	startQueues(t, "udp", a, b)
	ctx := within(t, *soak)
	over := func() bool { return ctx.Err() != nil }
	var load sync.WaitGroup
	for i, dst := range b.container.Addrs() {
		load.Go(func() {
			for !over() {
				const size = 20e6
				res, err := lab.Transfer(within(t, time.Minute), lab.TransferConfig{From: a.container.Namespace, To: b.container.Namespace, Dst: dst, Bytes: size})
				if err != nil || res.Bytes != size || res.SentSHA256 != res.ReceivedSHA256 {
					t.Errorf("TCP to %v: %d bytes, %v", dst, res.Bytes, err)
					return
				}
			}
		})
		load.Go(func() {
			for size := 16; !over(); size = (size*3 + 7) % 1300 {
				_, err := lab.Flood(within(t, time.Minute), lab.FloodConfig{From: b.container.Namespace, To: a.container.Namespace, Dst: a.container.Addrs()[i], Rate: 2000, Count: 2000, Size: max(size, 16)})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
		load.Go(func() {
			for !over() {
				if _, err := a.container.Ping(within(t, time.Minute), lab.PingConfig{Dst: dst, Count: 50, Size: 1000}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	load.Go(func() { // junk, from who is no peer
		conn, err := stranger.Dial(within(t, time.Minute), "udp", netip.AddrPortFrom(b.Addr4(), 8285))
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		junk := make([]byte, 200)
		pace := time.NewTicker(time.Millisecond)
		defer pace.Stop()
		for !over() {
			for i := range junk {
				junk[i] += byte(i)
				conn.Write(junk[:i]) // ECONNREFUSED is no matter
			}
			<-pace.C
		}
	})
	load.Go(func() { // a node that comes and goes, and a link that changes
		for i := 0; !over(); i++ {
			third.start(t, "--join", a.Addr4().String())
			third.lease(t)
			mtu := 1500 - 100*(i%2)
			if err := b.SetMTU("eth0", mtu); err != nil {
				t.Error(err)
			}
			if err := third.daemon.Stop(within(t, 10*time.Second)); err != nil {
				t.Error(err)
			}
		}
	})

	var before, after [2]level
	read := func(into *[2]level) {
		for i, n := range []*node{a, b} {
			labtest.Eventually(t, 10*time.Second, func() (err error) {
				into[i], err = levelOf(n)
				return err
			})
		}
	}
	warm := time.NewTimer(*soak / 5)
	<-warm.C
	read(&before)
	<-ctx.Done()
	read(&after)
	load.Wait()
	for i, n := range []*node{a, b} {
		t.Logf("%s: %+v at a fifth of %v, %+v at the end", n, before[i], *soak, after[i])
		// Some come and go with each connection of gossip and of the control socket.
		if b, a := before[i], after[i]; a.goroutines > b.goroutines+15 || a.fds > b.fds+10 || a.kilobytes > b.kilobytes*5/4+20000 {
			t.Errorf("%s has grown from %+v to %+v", n, b, a)
		}
	}
}
