package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// TestFullQueue: a daemon that is stopped for a moment leaves its TUN's queue full.
// What is lost is counted under its name, and when the daemon goes on, so does
// everything, a TCP connection that was open all the time among it.
func TestFullQueue(t *testing.T) {
	t.Parallel()
	_, _, nodes := seeded(t, 2, "--http-listen", httpPort)
	a, b := nodes[0], nodes[1]
	open := make(chan error, 1)
	began := time.Now()
	go func() {
		open <- sendsOn(within(t, time.Minute), a, b, b.container.Addr4(), 4*time.Second, &began)
	}()
	before := a.status(t).Drops["tx_device_queue_full"]
	must(t, a.daemon.Pause())
	res, err := lab.Flood(within(t, 30*time.Second), lab.FloodConfig{From: a.container.Namespace, To: b.container.Namespace, Dst: b.container.Addr6(), Rate: 5000, Count: 3000})
	must(t, err, a.daemon.Resume())
	if res.Received > 0 {
		t.Fatalf("a stopped daemon has carried %d datagrams", res.Received)
	}
	// The queue has 500 places, some of which the TCP flow has. A status reads what the
	// kernel has counted, metrics tell what the daemon has read by itself.
	metrics := func() uint64 { return uint64(a.scrape(t)[`overlayd_drops_total{reason="tx_device_queue_full"}`]) }
	status := func() uint64 { return a.status(t).Drops["tx_device_queue_full"] }
	for i, count := range []func() uint64{metrics, status} {
		labtest.Eventually(t, 10*time.Second, func() error {
			if got := count() - before; got < 2500 {
				return fmt.Errorf("%d of %d packets are counted as lost in the queue by %s", got, res.Sent, []string{"metrics", "status"}[i])
			}
			return nil
		})
	}
	if err := <-open; err != nil {
		t.Error(err)
	}
	after, err := lab.Flood(within(t, 30*time.Second), lab.FloodConfig{From: a.container.Namespace, To: b.container.Namespace, Dst: b.container.Addr6(), Rate: 1000, Count: 500})
	must(t, err)
	if after.Lost() > 0 || after.Reordered > 0 {
		t.Errorf("afterwards: %+v", after)
	}
}

// TestSlowPeer: a peer that takes nothing more holds up nobody else. What its socket
// has no room for is counted there.
func TestSlowPeer(t *testing.T) {
	t.Parallel()
	_, _, nodes := seeded(t, 3)
	a, b, slow := nodes[0], nodes[1], nodes[2]
	must(t, slow.daemon.Pause())
	done := make(chan error, 1)
	go func() { // 30 MB, of which its socket takes 8
		_, err := lab.Flood(within(t, 30*time.Second), lab.FloodConfig{From: a.container.Namespace, To: slow.container.Namespace, Dst: slow.container.Addr4(), Rate: 10000, Size: 1200, Count: 25000})
		done <- err
	}()
	res, err := lab.Flood(within(t, 30*time.Second), lab.FloodConfig{From: a.container.Namespace, To: b.container.Namespace, Dst: b.container.Addr4(), Rate: 1000, Count: 2000})
	must(t, err, <-done, slow.daemon.Resume())
	if res.Lost() > 0 || res.Reordered > 0 {
		t.Errorf("beside a peer that takes nothing: %+v", res)
	}
	labtest.Eventually(t, 10*time.Second, func() error {
		if n := slow.status(t).Drops["rx_socket_full"]; n == 0 {
			return fmt.Errorf("nothing is counted as lost at the slow peer's socket")
		}
		return nil
	})
	if n := a.status(t).Drops["tx_socket_no_buffers"]; n > 0 {
		t.Errorf("%d packets found no room in the sender's socket", n)
	}
}
