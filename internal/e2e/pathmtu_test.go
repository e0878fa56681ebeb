package e2e_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// routed makes two nodes on different switches, with a router between them.
func routed(t *testing.T, over6 bool, args ...string) (router *lab.Host, nodes []*node) {
	t.Helper()
	router, nodes = routedHosts(t)
	if over6 {
		nodes[0].start(t, append(args, "--advertise", nodes[0].Addr6().String())...)
		nodes[1].start(t, append(args, "--advertise", nodes[1].Addr6().String(), "--join", nodes[0].Addr6().String())...)
	} else {
		nodes[0].start(t, args...)
		nodes[1].start(t, append(args, "--join", nodes[0].Addr4().String())...)
	}
	for _, n := range nodes {
		n.lease(t)
		n.attach(t)
	}
	awaitMesh(t, nodes...)
	return router, nodes
}

// routedHosts is routed without daemons.
func routedHosts(t *testing.T) (router *lab.Host, nodes []*node) {
	t.Helper()
	l := labtest.New(t)
	router, err := l.Host("router")
	must(t, err)
	var ports []*lab.Port
	for i := range 2 {
		sw, err := l.Switch(fmt.Sprint("lan", i+1), lab.SwitchConfig{})
		must(t, err)
		p, err := router.Attach(sw, lab.PortConfig{})
		must(t, err)
		ports = append(ports, p)
		h, err := sw.Host(fmt.Sprint("host", i+1), lab.PortConfig{})
		must(t, err)
		nodes = append(nodes, &node{Host: h})
	}
	for i, n := range nodes {
		for j, there := range ports[1-i].Addrs() {
			must(t, n.AddRoute(there.Masked(), ports[i].Addrs()[j].Addr()))
		}
	}
	return router, nodes
}

// peerMTU is the MTU that a node uses towards its only peer, and why.
func peerMTU(t *testing.T, n *node) (mtu int, reason string) {
	t.Helper()
	p := n.status(t).Peers[0]
	return p.MTU, p.PathReason
}

// TestPathMTUDrops: the MTU of a link in the middle drops while TCP flows, and comes
// back. The flow goes on, its senders are told of the size that is left, and IPv6 is
// never told of less than 1280.
func TestPathMTUDrops(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		blackHole bool // the router does not tell
		local     bool // it is the host's own link
		over6     bool
		encap     string
		within    time.Duration
	}{
		{name: "a router says so", within: 10 * time.Second},
		{name: "nobody says so", blackHole: true, within: 60 * time.Second},
		{name: "on the own link", local: true, within: 10 * time.Second},
		{name: "a router of an IPv6 underlay says so", over6: true, within: 10 * time.Second},
		{name: "a router says so of vxlan", encap: "vxlan", within: 10 * time.Second},
		{name: "a router of an IPv6 underlay says so of vxlan", over6: true, encap: "vxlan", within: 10 * time.Second},
		{name: "on the own link to an IPv6 underlay", over6: true, local: true, within: 10 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			router, nodes := routed(t, tt.over6, "--encap", cmp.Or(tt.encap, "udp"))
			a, b := nodes[0], nodes[1]
			full, _ := peerMTU(t, a)
			want := 1500 - 40 - 8
			if tt.encap == "vxlan" {
				want -= 8 + 14
			}
			if full != want {
				t.Fatalf("the MTU is %d", full)
			}
			const link = 1350
			lower := func(mtu int) {
				if tt.local {
					must(t, a.SetMTU("eth0", mtu))
				} else {
					must(t, router.SetMTU("eth1", mtu))
				}
			}
			if tt.blackHole {
				must(t, router.Block(lab.Match{Proto: "icmp"}, lab.Out))
			}
			began := time.Now()
			done := make(chan error, 2)
			for _, dst := range b.container.Addrs() {
				go func() { done <- sendsOn(within(t, 2*time.Minute), a, b, dst, 3*time.Second, &began) }()
			}
			lower(link)
			limit := link - 20 - 8
			if tt.over6 {
				limit = link - 40 - 8
			}
			if tt.encap == "vxlan" {
				limit -= 8 + 14
			}
			labtest.Eventually(t, tt.within, func() error {
				if mtu, reason := peerMTU(t, a); mtu > limit || mtu < limit-8 {
					return fmt.Errorf("the MTU is %d (%s), and %d passes", mtu, reason, limit)
				}
				return nil
			})
			t.Logf("the MTU is right %v after the change", time.Since(began).Round(10*time.Millisecond))
			for range b.container.Addrs() {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			for _, dst := range b.container.Addrs() {
				res, err := a.container.Ping(within(t, 10*time.Second), lab.PingConfig{Dst: dst, Count: 2, Size: full, DontFragment: true, Timeout: time.Second})
				must(t, err)
				mtu, _ := peerMTU(t, a)
				if len(res.Errors) == 0 || !res.Errors[0].TooBig() || res.Errors[0].MTU != mtu || res.Errors[0].MTU < 1280 {
					t.Errorf("a full-size packet to %v is answered by %+v", dst, res.Errors)
				}
			}
			if tt.blackHole { // upwards it is the same search, a minute later
				return
			}
			lower(1500)
			began = time.Now()
			labtest.Eventually(t, 80*time.Second, func() error {
				if mtu, reason := peerMTU(t, a); mtu != full {
					return fmt.Errorf("the MTU is %d (%s)", mtu, reason)
				}
				return nil
			})
			t.Logf("it is full size again %v after the repair", time.Since(began).Round(10*time.Millisecond))
		})
	}
}

// sendsOn sends by TCP until some time after the moment that began points to, and
// compares what arrives.
func sendsOn(ctx context.Context, a, b *node, dst netip.Addr, length time.Duration, began *time.Time) error {
	for end := began.Add(length); time.Now().Before(end); {
		const size = 5e6
		res, err := lab.Transfer(ctx, lab.TransferConfig{From: a.container.Namespace, To: b.container.Namespace, Dst: dst, Bytes: size})
		if err != nil {
			return fmt.Errorf("to %v: %w", dst, err)
		}
		if res.Bytes != size || res.SentSHA256 != res.ReceivedSHA256 {
			return errors.New("other bytes arrived than were sent")
		}
	}
	return nil
}
