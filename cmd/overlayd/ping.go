package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd"
)

// pingCount is how many probes a ping sends unless told otherwise.
const pingCount = 4

// pathNames are what --until takes.
func pathNames() []string {
	return []string{"userspace", overlayd.PathUserspaceUDP, overlayd.PathUserspaceVXLAN, overlayd.PathKernelVXLAN, overlayd.PathDirect}
}

func newPingCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ping PEER|ADDR",
		Short: "Probe the data path to a peer",
		Long: `Probes the data path to a peer, given by its name, its id or an overlay address
that it owns: one probe per second, or five per second with --until, which goes on
until traffic to the peer takes that path. Fails when nothing answers, or when
the path is not reached in time.`,
		Args: exactly("PEER|ADDR"),
	}
	dial := addRunDir(cmd, env)
	p := pinger{interval: time.Second, wait: 2 * time.Second}
	cmd.Flags().IntVar(&p.count, "count", 0, "send `N` probes (default 4, or without limit with --until)")
	cmd.Flags().StringVar(&p.until, "until", "", "go on until traffic takes `PATH`: "+strings.Join(pathNames(), ", "))
	cmd.Flags().DurationVar(&p.timeout, "timeout", 10*time.Second, "give up when nothing answers for `DURATION`, or when the path of --until is not reached in it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case cmd.Flags().Changed("count") && p.count < 1:
			return usagef("--count: %d is not a number of probes: write 1 or more", p.count)
		case p.until != "" && !slices.Contains(pathNames(), p.until):
			return usagef("--until: %q is not one of %s", p.until, strings.Join(pathNames(), ", "))
		case p.timeout <= 0:
			return usagef("--timeout: %s is not a time to wait: write one such as 10s", p.timeout)
		case args[0] == "":
			return usagef("PEER|ADDR is empty")
		}
		client, err := dial()
		if err != nil {
			return err
		}
		if p.until != "" {
			p.interval = 200 * time.Millisecond
		} else if p.count == 0 {
			p.count = pingCount
		}
		p.target, p.node, p.out = args[0], client, cmd.OutOrStdout()
		ctx, cancel := interruptible(cmd)
		defer cancel()
		return p.run(ctx)
	}
	return cmd
}

// prober is what ping asks of a running node.
type prober interface {
	Ping(ctx context.Context, target string) (overlayd.PingResult, error)
	Peers(ctx context.Context) (overlayd.Peers, error)
	Lookup(ctx context.Context, addr netip.Addr) (overlayd.RouteStatus, error)
}

// pinger sends probes one after the other.
type pinger struct {
	target   string
	node     prober
	out      io.Writer
	count    int           // of probes, 0 for no limit
	until    string        // path to wait for, "" for none
	timeout  time.Duration // see the flag's help
	interval time.Duration // between the starts of two probes
	wait     time.Duration // for one answer

	sent, received int
	low, high, sum time.Duration
	lastErr        error  // of the last probe without an answer
	lastReason     string // that was printed since the last answer, other than a missing answer
}

func (p *pinger) run(ctx context.Context) error {
	began := time.Now()
	answered := began // or the start, while nothing has answered
	reached := false
	tick := time.NewTicker(p.interval)
	defer tick.Stop()
probing:
	for p.count == 0 || p.sent < p.count {
		deadline := answered.Add(p.timeout)
		if p.until != "" {
			deadline = began.Add(p.timeout)
		}
		if !time.Now().Before(deadline) {
			break
		}
		ok, err := p.probe(ctx, deadline)
		if err != nil {
			return err
		}
		if ok {
			answered = time.Now()
		}
		if p.until != "" && ctx.Err() == nil {
			if now, _ := p.path(ctx); matches(p.until, now) {
				reached = true
				break
			}
		}
		if p.sent == p.count {
			break
		}
		rest := time.NewTimer(time.Until(deadline))
		select {
		case <-tick.C:
		case <-rest.C:
		case <-ctx.Done():
			rest.Stop()
			break probing
		}
		rest.Stop()
	}
	p.summary()
	return p.verdict(ctx, reached, time.Since(began))
}

// probe sends one probe and reports whether it was answered. The error is one
// that another probe would meet too.
func (p *pinger) probe(ctx context.Context, deadline time.Time) (bool, error) {
	if wait := time.Now().Add(p.wait); wait.Before(deadline) {
		deadline = wait
	}
	probing, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	res, err := p.node.Ping(probing, p.target)
	if ctx.Err() != nil && err != nil {
		return false, nil // interrupted: not a lost probe
	}
	p.sent++
	if err == nil {
		p.answer(res)
		return true, nil
	}
	p.lastErr = err
	// With --until the peer may still be on its way, else an error that is not
	// a missing answer will not get better.
	if !errors.Is(err, context.DeadlineExceeded) && p.until == "" || errors.Is(err, overlayd.ErrNotRunning) {
		return false, err
	}
	reason := "no answer"
	if !errors.Is(err, context.DeadlineExceeded) {
		if reason = oneLine(err); reason == p.lastReason {
			return false, nil // five times a second is too often
		}
		p.lastReason = reason
	}
	fmt.Fprintf(p.out, "%s: seq=%d\n", printable(reason), p.sent)
	return false, nil
}

func (p *pinger) answer(res overlayd.PingResult) {
	p.received++
	p.lastReason = ""
	p.sum += res.RTT
	p.high = max(p.high, res.RTT)
	if p.received == 1 || res.RTT < p.low {
		p.low = res.RTT
	}
	fmt.Fprintf(p.out, "answer from %s (%s): seq=%d path=%s time=%s ms\n",
		printable(res.Peer), printable(res.Endpoint), p.sent, res.Path, milliseconds(res.RTT))
}

func (p *pinger) summary() {
	fmt.Fprintf(p.out, "--- %s ping statistics ---\n", printable(p.target))
	loss := 0.0
	if p.sent > 0 {
		loss = 100 * float64(p.sent-p.received) / float64(p.sent)
	}
	fmt.Fprintf(p.out, "%d sent, %d received, %g%% loss\n", p.sent, p.received, math.Round(loss*10)/10)
	if p.received > 0 {
		fmt.Fprintf(p.out, "rtt min/avg/max = %s/%s/%s ms\n",
			milliseconds(p.low), milliseconds(p.sum/time.Duration(p.received)), milliseconds(p.high))
	}
}

// verdict decides how the command ends.
func (p *pinger) verdict(ctx context.Context, reached bool, took time.Duration) error {
	interrupted := ctx.Err() != nil
	// The reason is worth asking for, also after an interrupt.
	path, reason := p.path(context.WithoutCancel(ctx))
	because := ""
	if reason != "" {
		because = ": " + reason
	}
	switch {
	case reached:
		fmt.Fprintf(p.out, "path is %s after %s\n", path, took.Round(time.Millisecond))
		return nil
	case p.until != "" && path == "":
		return fmt.Errorf("path to %s is not %s after %s: %w", p.target, p.until, took.Round(100*time.Millisecond), p.unknown())
	case p.until != "":
		return fmt.Errorf("path to %s is not %s after %s but %s%s", p.target, p.until, took.Round(100*time.Millisecond), path, because)
	case p.received > 0 || interrupted && p.sent == 0:
		return nil
	case path == "":
		return fmt.Errorf("%s does not answer", p.target)
	}
	return fmt.Errorf("%s does not answer: path %s%s", p.target, path, because)
}

// unknown is why a peer has no path that could be asked for.
func (p *pinger) unknown() error {
	if p.lastErr != nil && !errors.Is(p.lastErr, context.DeadlineExceeded) {
		return p.lastErr
	}
	return errors.New("it is no peer of this node")
}

// path returns the path that traffic to the target takes now, and why; "" when
// the target is not known.
func (p *pinger) path(ctx context.Context) (path, reason string) {
	id := p.target
	if addr, err := netip.ParseAddr(p.target); err == nil {
		route, err := ask(ctx, func(ctx context.Context) (overlayd.RouteStatus, error) { return p.node.Lookup(ctx, addr) })
		if err != nil {
			return "", ""
		}
		id = route.PeerID
	}
	peers, err := ask(ctx, p.node.Peers)
	if err != nil {
		return "", ""
	}
	for _, peer := range peers.Peers {
		if peer.ID == id || peer.Name == id {
			return peer.Path, peer.PathReason
		}
	}
	return "", ""
}

// matches tells whether path is what --until asks for.
func matches(until, path string) bool {
	if until == "userspace" {
		return path == overlayd.PathUserspaceUDP || path == overlayd.PathUserspaceVXLAN
	}
	return until == path
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.3f", float64(d)/float64(time.Millisecond))
}
