package e2e_test

import (
	"flag"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// proofLimit is how soon both directions are handed to the kernel once both nodes are
// ready (the limit), and homeLimit how soon sending is back in userspace
// once a kernel path is dead, while there is traffic.
const (
	proofLimit = 5 * time.Second
	homeLimit  = time.Second
)

// fast makes a cluster whose nodes may use one kind of kernel path, and waits until
// all of them do.
func fast(t *testing.T, n int, kind string, args ...string) (*lab.Lab, *lab.Switch, []*node) {
	t.Helper()
	l, sw, nodes := seeded(t, n, append([]string{"--fast-path", kind}, args...)...)
	for _, a := range nodes {
		for _, b := range nodes {
			if a != b {
				a.awaitPath(t, meshLimit, b, kind)
			}
		}
	}
	return l, sw, nodes
}

// awaitPath waits until a node sends to another by a path.
func (n *node) awaitPath(t testing.TB, limit time.Duration, other *node, path string) peer {
	t.Helper()
	return n.awaitPeer(t, limit, other, path, func(p peer) bool { return p.Path == path })
}

// setPath runs "overlayd path", which must work.
func (n *node) setPath(t testing.TB, other *node, path string) {
	t.Helper()
	if stdout, stderr, code := n.overlaydCommand(t, "path", other.Name(), path); code != 0 {
		t.Fatalf("%s: path %s %s: exit code %d: %s%s", n, other, path, code, stdout, stderr)
	}
}

// TestHandOff: two nodes that are ready hand their traffic to the kernel, in both
// directions, while it flows, and lose nothing of it.
func TestHandOff(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"kernel-vxlan", "direct"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			_, _, nodes := cluster(t, 2)
			a, b := nodes[0], nodes[1]
			a.start(t, "--fast-path", kind)
			b.start(t, "--fast-path", kind, "--join", a.Addr4().String())
			for _, n := range nodes {
				n.lease(t)
				n.attach(t)
			}
			began := time.Now()
			awaitMesh(t, nodes...)
			flows := []*flow{
				startFlow(t, a, b, b.container.Addr4(), 500),
				startFlow(t, b, a, a.container.Addr6(), 500),
			}
			a.awaitPath(t, proofLimit, b, kind)
			p := b.awaitPath(t, proofLimit, a, kind)
			t.Logf("by %s in both directions %v after both had their subnets", kind, time.Since(began).Round(10*time.Millisecond))
			if p.LastProofMS == nil || *p.LastProofMS > 2000 || p.MTU != a.env.MTU || !strings.Contains(p.PathReason, fmt.Sprintf("probes of %d bytes are answered", a.env.MTU)) {
				t.Errorf("b says of a: %+v", p)
			}
			if stdout, stderr, code := a.overlaydCommand(t, "ping", b.Name(), "--until", kind); code != 0 {
				t.Errorf("ping --until: exit code %d: %s%s", code, stdout, stderr)
			}
			before := a.status(t)
			pingAll(t, a.container.Namespace, lab.PingConfig{Dst: b.container.Addr4(), Size: a.env.MTU, DontFragment: true})
			pingAll(t, a.container.Namespace, lab.PingConfig{Dst: b.container.Addr6(), Size: a.env.MTU, DontFragment: true})
			pingAll(t, a.Namespace, lab.PingConfig{Dst: b.container.Addr4()})
			pingAll(t, b.container.Namespace, lab.PingConfig{Dst: a.own6()})
			labtest.Eventually(t, 2*time.Second, func() error {
				was, err := before.peer(b)
				must(t, err)
				is, err := a.status(t).peer(b)
				must(t, err)
				if is.TxBytes < was.TxBytes+2*uint64(a.env.MTU) || is.RxBytes < was.RxBytes+2*uint64(a.env.MTU) {
					return fmt.Errorf("the counters do not have what the kernel has carried: %+v, then %+v", was, is)
				}
				return nil
			})
			for _, f := range flows {
				f.endWhole(t)
			}
			for _, n := range nodes {
				for reason, count := range n.status(t).Drops {
					if count > 0 && (strings.HasPrefix(reason, "guard_") || strings.HasPrefix(reason, "control_")) {
						t.Errorf("%s: %d drops of %s", n, count, reason)
					}
				}
			}
			for _, n := range nodes {
				before := n.state(t)
				n.stop(t)
				for _, line := range n.state(t) {
					if strings.Contains(line, "overlay") || strings.Contains(line, "proto 96") {
						t.Errorf("%s: left behind: %s (there was: %s)", n, line, strings.Join(before, "; "))
					}
				}
			}
		})
	}
}

// pinsRate is how many datagrams a second TestPinsLossless sends in all. More than this
// a machine that is busy with other tests loses by itself.
var pinsRate = flag.Int("pins-rate", 2000, "how many datagrams a second TestPinsLossless sends")

// TestPinsLossless: twenty hand-offs and twenty fall-backs in each direction, under
// traffic of both families, of UDP and TCP. It runs before the parallel tests, since it
// loads the machine.
func TestPinsLossless(t *testing.T) {
	_, _, nodes := fast(t, 2, "kernel-vxlan")
	a, b := nodes[0], nodes[1]
	flows := []*flow{
		startFlow(t, a, b, b.container.Addr4(), *pinsRate/4), startFlow(t, a, b, b.container.Addr6(), *pinsRate/4),
		startFlow(t, b, a, a.container.Addr4(), *pinsRate/4), startFlow(t, b, a, a.container.Addr6(), *pinsRate/4),
	}
	sending := make(chan error, 2)
	stop := make(chan struct{})
	for _, dst := range b.container.Addrs() {
		go func() { sending <- transferUntil(t, stop, a, b, dst) }()
	}
	for range 20 {
		for _, path := range []string{"userspace", "kernel-vxlan"} {
			a.setPath(t, b, path)
			b.setPath(t, a, path)
		}
	}
	close(stop)
	for range 2 {
		if err := <-sending; err != nil {
			t.Error(err)
		}
	}
	for _, f := range flows {
		f.endWhole(t)
	}
	if log := a.log(t); strings.Contains(log, "held down") {
		t.Error("a pin counted as a failure")
	}
}

// endWhole stops the flow and demands that nothing was lost or doubled. A packet by a
// faster path may overtake one by a slower: that is told.
func (f *flow) endWhole(t testing.TB) {
	t.Helper()
	res := f.end(t)
	if res.Lost() != 0 || res.Duplicates+res.SendErrors != 0 {
		t.Errorf("%s: %d of %d lost, %d duplicates, %d not sent", f.name, res.Lost(), res.Sent, res.Duplicates, res.SendErrors)
	}
	t.Logf("%s: %d datagrams, %d reordered, the longest gap %v", f.name, res.Sent, res.Reordered, res.Gap.Round(time.Millisecond))
}

// transferUntil moves data by TCP, again and again; that other bytes arrive is an error.
func transferUntil(t testing.TB, stop <-chan struct{}, from, to *node, dst netip.Addr) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if _, err := lab.Transfer(within(t, 2*time.Minute), lab.TransferConfig{From: from.container.Namespace, To: to.container.Namespace, Dst: dst, Bytes: 50 << 20}); err != nil {
			return err
		}
	}
}
