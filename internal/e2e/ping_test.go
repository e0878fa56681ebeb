package e2e_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// pingAll pings and demands every answer, once, unharmed and without an error.
func pingAll(t testing.TB, from *lab.Namespace, cfg lab.PingConfig) {
	t.Helper()
	if cfg.Count == 0 {
		cfg.Count = 10
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 3 * time.Second
	}
	res, err := from.Ping(within(t, 30*time.Second), cfg)
	must(t, err)
	if res.Lost(cfg.Count) != 0 || res.Duplicates+res.Corrupt != 0 || len(res.Errors) != 0 {
		t.Errorf("%s pings %v with %d bytes: %d of %d lost, %d duplicates, %d corrupt, errors %+v, sending: %v",
			from, cfg.Dst, cfg.Size, res.Lost(cfg.Count), cfg.Count, res.Duplicates, res.Corrupt, res.Errors, res.SendErr)
	}
}

// pingOnce sends a single request and does not wait long.
func pingOnce(t testing.TB, from *lab.Namespace, dst netip.Addr) lab.PingResult {
	t.Helper()
	res, err := from.Ping(within(t, 10*time.Second), lab.PingConfig{Dst: dst, Count: 1, Timeout: 200 * time.Millisecond})
	must(t, err)
	return res
}

// awaitPing waits until a request is answered.
func awaitPing(t testing.TB, limit time.Duration, from *lab.Namespace, dst netip.Addr) {
	t.Helper()
	labtest.Eventually(t, limit, func() error {
		if res := pingOnce(t, from, dst); res.Received != 1 {
			return fmt.Errorf("%s gets no answer from %v: errors %+v, sending: %v", from, dst, res.Errors, res.SendErr)
		}
		return nil
	})
}

// awaitUnreachable waits until requests are answered with host unreachable
// (RFC 792 type 3 code 1) or address unreachable (RFC 4443 type 1 code 3).
func awaitUnreachable(t testing.TB, limit time.Duration, from *lab.Namespace, dst netip.Addr) lab.ICMPError {
	t.Helper()
	var got lab.ICMPError
	labtest.Eventually(t, limit, func() error {
		res := pingOnce(t, from, dst)
		for _, e := range res.Errors {
			if got = e; hostUnreachable(e) {
				return nil
			}
		}
		return fmt.Errorf("%s pings %v: %d answers, errors %+v, sending: %v", from, dst, res.Received, res.Errors, res.SendErr)
	})
	return got
}

// awaitRefusal is awaitUnreachable for the answers of an unreachable route,
// which says "no route" in IPv6 (RFC 4443 type 1 code 0).
func awaitRefusal(t testing.TB, limit time.Duration, from *lab.Namespace, dst netip.Addr) {
	t.Helper()
	labtest.Eventually(t, limit, func() error {
		res := pingOnce(t, from, dst)
		for _, e := range res.Errors {
			if e.Unreachable() {
				return nil
			}
		}
		return fmt.Errorf("%s pings %v: %d answers, errors %+v, sending: %v", from, dst, res.Received, res.Errors, res.SendErr)
	})
}

func hostUnreachable(e lab.ICMPError) bool {
	if e.From.Is4() {
		return e.Type == 3 && e.Code == 1
	}
	return e.Type == 1 && e.Code == 3
}

// flow is a stream of datagrams that runs beside a test.
type flow struct {
	name string
	stop context.CancelFunc
	done sync.WaitGroup
	res  lab.FloodResult
	err  error
}

// startFlow sends datagrams from one container to another until end is called.
func startFlow(t testing.TB, from, to *node, dst netip.Addr, rate int) *flow {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	f := &flow{name: fmt.Sprintf("%s to %v", from.container, dst), stop: cancel}
	t.Cleanup(f.stop)
	f.done.Go(func() {
		f.res, f.err = lab.Flood(ctx, lab.FloodConfig{
			From: from.container.Namespace, To: to.container.Namespace, Dst: dst, Rate: rate, Size: 200, Linger: time.Second,
		})
	})
	return f
}

// end stops the flow and returns what came of it.
func (f *flow) end(t testing.TB) lab.FloodResult {
	t.Helper()
	f.stop()
	f.done.Wait()
	must(t, f.err)
	if f.res.Sent < 100 {
		t.Errorf("%s: only %d datagrams were sent", f.name, f.res.Sent)
	}
	return f.res
}

// endLossless stops the flow and demands that nothing was lost, doubled or
// overtaken.
func (f *flow) endLossless(t testing.TB) {
	t.Helper()
	res := f.end(t)
	if res.Lost() != 0 || res.Duplicates+res.Reordered+res.SendErrors != 0 {
		t.Errorf("%s: %d of %d lost, %d duplicates, %d reordered, %d not sent", f.name, res.Lost(), res.Sent, res.Duplicates, res.Reordered, res.SendErrors)
	}
}
