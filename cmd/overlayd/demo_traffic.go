package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// demoPings is how many echo requests each pair of containers exchanges.
const demoPings = 10

// demoPair is a container that sends, and an address of another that answers.
type demoPair struct {
	from, to *demoHost
	dst      netip.Addr
}

func (p demoPair) String() string {
	return fmt.Sprintf("%s -> %s %v", p.from.container, p.to.container, p.dst)
}

func (p demoPair) fail(err error) error {
	return &demoError{fmt.Errorf("%v: %w", p, err), []*demoHost{p.from, p.to}}
}

// pairs are all pairs of different containers, in both directions and all
// address families.
func (d *demo) pairs() []demoPair {
	var out []demoPair
	for _, a := range d.hosts {
		for _, b := range d.hosts {
			if a != b {
				for _, dst := range b.container.Addrs() {
					out = append(out, demoPair{a, b, dst})
				}
			}
		}
	}
	return out
}

// everyPair runs do for all pairs, those of different senders at the same time,
// and returns the first error in the order of the pairs.
func (d *demo) everyPair(do func(i int, p demoPair) error) error {
	pairs := d.pairs()
	errs := make([]error, len(pairs))
	var all sync.WaitGroup
	for _, h := range d.hosts {
		all.Go(func() {
			for i, p := range pairs {
				if p.from == h {
					errs[i] = do(i, p)
				}
			}
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// meetLimit is how long the hosts have to find each other once all hold their
// leases.
const meetLimit = 20 * time.Second

// meet waits until a first packet has come through between each two containers:
// a new lease has to spread first.
func (d *demo) meet(ctx context.Context) error {
	d.out.begin("waiting for the hosts to learn of each other")
	ctx, cancel := context.WithTimeoutCause(ctx, meetLimit, fmt.Errorf("no packet came through in %v", meetLimit))
	defer cancel()
	err := d.everyPair(func(_ int, p demoPair) error {
		err := poll(ctx, func() (bool, error) {
			for _, h := range []*demoHost{p.from, p.to} {
				if !h.daemon.Running() {
					return false, fmt.Errorf("the daemon of %s has ended: %v", h, h.daemon.Err())
				}
			}
			res, err := p.from.container.Ping(ctx, lab.PingConfig{Dst: p.dst, Count: 1, Timeout: 250 * time.Millisecond})
			return res.Received > 0, err
		})
		if err != nil {
			return p.fail(err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.out.done("each container has reached each other one")
	return nil
}

// pingAll measures loss and round trip with packets that fill the MTU and must
// not be fragmented.
func (d *demo) pingAll(ctx context.Context) error {
	d.out.begin("pinging each pair")
	pairs := d.pairs()
	results := make([]lab.PingResult, len(pairs))
	err := d.everyPair(func(i int, p demoPair) error {
		var err error
		results[i], err = p.from.container.Ping(ctx, lab.PingConfig{Dst: p.dst, Count: demoPings, Size: p.from.env.MTU, DontFragment: true})
		switch {
		case err != nil:
		case results[i].Lost(demoPings) > 0:
			err = fmt.Errorf("%d of %d pings lost", results[i].Lost(demoPings), demoPings)
			if results[i].SendErr != nil {
				err = fmt.Errorf("%w: %w", err, results[i].SendErr)
			}
		case results[i].Duplicates+results[i].Corrupt > 0:
			err = fmt.Errorf("%d answers came twice, %d were corrupt", results[i].Duplicates, results[i].Corrupt)
		}
		if err != nil {
			return p.fail(err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var rtts []time.Duration
	for _, r := range results {
		rtts = append(rtts, r.RTTs...)
	}
	all := lab.PingResult{RTTs: rtts}
	d.out.done("%d pings of %d bytes, don't fragment, between all %d pairs: none lost", len(rtts), d.hosts[0].env.MTU, len(pairs))
	if len(pairs) <= 4 {
		for i, p := range pairs {
			d.out.detail("%v: round trip %v", p, results[i].RTT(0.5).Round(time.Microsecond))
		}
	}
	d.out.detail("round trip: least %v, median %v, most %v", all.RTT(0).Round(time.Microsecond), all.RTT(0.5).Round(time.Microsecond), all.RTT(1).Round(time.Microsecond))
	return nil
}

// sendFiles sends a file from the first container to the last, over each
// address family.
func (d *demo) sendFiles(ctx context.Context) error {
	from, to := d.hosts[0], d.hosts[len(d.hosts)-1]
	for _, dst := range to.container.Addrs() {
		p := demoPair{from, to, dst}
		d.out.begin("sending %s over TCP, %v", megabytes(d.opt.bytes), p)
		res, err := lab.Transfer(ctx, lab.TransferConfig{From: from.container.Namespace, To: to.container.Namespace, Dst: dst, Bytes: d.opt.bytes})
		if err != nil && !errors.Is(err, lab.ErrCorrupt) {
			return p.fail(err)
		}
		if err != nil {
			return p.fail(fmt.Errorf("sent SHA-256 %x, received %x: %w", res.SentSHA256, res.ReceivedSHA256, err))
		}
		d.out.done("%s of random bytes over TCP, %v: %.2f Gb/s", megabytes(res.Bytes), p, res.BitsPerSecond()/1e9)
		d.out.detail("SHA-256 sent     %x", res.SentSHA256)
		d.out.detail("SHA-256 received %x", res.ReceivedSHA256)
	}
	return nil
}

func megabytes(n int64) string {
	if n < 1e6 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.4g MB", float64(n)/1e6)
}

// hostsOf are the hosts that an error is about, all if it does not say.
func (d *demo) hostsOf(err error) []*demoHost {
	var e *demoError
	if errors.As(err, &e) {
		return slices.Clone(e.hosts)
	}
	return d.hosts
}
