package probe

import (
	"errors"
	"time"

	"github.com/overlayd/overlayd/internal/path"
)

// errNoKernelPaths is why nothing can be sent by a kernel path.
var errNoKernelPaths = errors.New("probe: no kernel paths")

// sendKernelDue sends what is due by kernel paths.
func (p *Prober) sendKernelDue(frames []kernelFrame, echoes []kernelEcho) {
	for _, m := range frames {
		if err := p.transmitKernel(m); err != nil {
			p.drops.add(dropSendFailed)
			p.mu.Lock()
			p.kern.core.Failed(time.Now(), m.frame.Receiver, m.kind, m.round, cause(err))
			p.mu.Unlock()
		}
	}
	for _, e := range echoes {
		if p.echo == nil || p.echo(e.id, e.kind, e.to, e.round) != nil {
			p.drops.add(dropSendFailed)
		}
	}
}

// transmitKernel encodes and sends a frame by a kernel path.
func (p *Prober) transmitKernel(m kernelFrame) error {
	if p.sendK == nil {
		return errNoKernelPaths
	}
	b, err := m.frame.Append(p.buf[:0], m.size, p.auth.Load())
	if err != nil {
		return err
	}
	p.buf = b
	// Counted before it is sent: who reads the kernel's counters and then ours never takes
	// a frame of ours for data.
	var counts *kernelCounts
	if s := (*p.roster.Load())[m.frame.Receiver]; s != nil && s.counts != nil {
		counts = s.counts
		counts.going(len(b), m.to.Addr())
	}
	if err := p.sendK(b, m.frame.Receiver, m.kind, m.to, m.fresh); err != nil {
		if counts != nil {
			counts.stayed(len(b), m.to.Addr())
		}
		return err
	}
	return nil
}

// withPaths runs f on the path core, and passes on what follows.
func (p *Prober) withPaths(f func(now time.Time, c *path.Core)) {
	p.mu.Lock()
	now := time.Now()
	f(now, p.kern.core)
	changed := p.kern.core.Changed()
	p.mu.Unlock()
	p.notify(changed)
	signal(p.wake)
}

// PathState returns what was decided about a peer's path.
func (p *Prober) PathState(id [16]byte) path.State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kern.core.State(id)
}

// Pin keeps a peer on a kind of path, see path.Core.Pin.
func (p *Prober) Pin(id [16]byte, k path.Kind) (before path.Kind, err error) {
	p.withPaths(func(now time.Time, c *path.Core) { before, err = c.Pin(now, id, k) })
	return before, err
}

// Break takes a kind from all peers, or gives it back, see path.Core.Break.
func (p *Prober) Break(k path.Kind, why string) {
	p.withPaths(func(now time.Time, c *path.Core) { c.Break(now, k, why) })
}

// PathRefused takes note that a peer's path could not be set up, see
// path.Core.Refused.
func (p *Prober) PathRefused(id [16]byte, k path.Kind, why string) {
	p.withPaths(func(now time.Time, c *path.Core) { c.Refused(now, id, k, why) })
}

// Echoed takes note of the answer to an ICMP echo request.
func (p *Prober) Echoed(id [16]byte, k path.Kind, round uint64) {
	p.withPaths(func(now time.Time, c *path.Core) { c.EchoAnswered(now, id, k, round) })
}

// Traffic is what a peer was sent, and what came from it, in packets.
type Traffic struct {
	ID     [16]byte
	Tx, Rx uint64
}

// Traffic takes note of the peers' counters, see path.Core.Traffic: of all paths,
// without our own frames in kernel paths.
func (p *Prober) Traffic(all []Traffic) {
	p.withPaths(func(now time.Time, c *path.Core) {
		for _, t := range all {
			c.Traffic(now, t.ID, t.Tx, t.Rx)
		}
	})
}

// Frames counts inner packets and their bytes.
type Frames struct{ Packets, Bytes uint64 }

// KernelFrames returns how many of the inner packets and bytes in a peer's kernel
// paths were control frames: those sent, by any path, and those received, by kind. The
// numbers never become smaller, also when the peer goes and comes back.
func (p *Prober) KernelFrames(id [16]byte) (tx Frames, rx [path.Direct + 1]Frames) {
	p.mu.Lock()
	c := p.kern.counts[id]
	p.mu.Unlock()
	if c == nil {
		return tx, rx
	}
	tx = Frames{c.txPackets.Load(), c.txBytes.Load()}
	for k := range rx {
		rx[k] = Frames{c.came[k].packets.Load(), c.came[k].bytes.Load()}
	}
	return tx, rx
}

// Answered returns when a peer last answered by userspace, and the smoothed round trip; ok
// is false if there is no such peer.
func (p *Prober) Answered(id [16]byte) (last time.Time, rtt time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.core.peers[id]
	if q == nil {
		return last, rtt, false
	}
	return q.track.lastProof, q.track.srtt, true
}

// Proof returns when a peer last answered by the kernel path that is decided on, the
// smoothed round trip of that path, and what made it what it is.
func (p *Prober) Proof(id [16]byte) (last time.Time, rtt time.Duration, cause path.Cause) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kern.core.Proof(id)
}
