package probe

import (
	"context"
	"errors"
	"time"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/internal/path"
)

// Run probes and answers until ctx ends or Close is called. It is called
// once: afterwards the Prober is closed, and another call returns at once.
func (p *Prober) Run(ctx context.Context) {
	p.run.Lock()
	defer p.run.Unlock()
	select {
	case <-p.stop:
		return
	case <-p.done:
		return
	default:
	}
	defer p.doneOnce.Do(func() { close(p.done) })

	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.stop:
			return
		case f := <-p.inbox:
			p.take(f)
		case <-p.wake:
		case <-timer.C:
		}
		// What has arrived comes before the conclusion that nothing did.
		for range len(p.inbox) {
			p.take(<-p.inbox)
		}
		p.sendPings()
		next := p.sendDue()
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
	}
}

// take works off a frame and gives its buffer back.
func (p *Prober) take(q *frame) {
	p.work(q)
	q.share.Add(-1)
	p.free <- q // has room: there are no more frames than that
}

// work acts upon a frame that Handle has let through.
func (p *Prober) work(q *frame) {
	f, err := encap.Parse(q.b, p.auth.Load())
	if err != nil {
		p.drops.addError(err)
		if peeked, err2 := encap.Peek(q.b); err2 == nil {
			p.mu.Lock()
			p.core.Refused(peeked.Sender, err)
			p.mu.Unlock()
		}
		return
	}
	if f.Type == encap.Probe {
		p.answer(q, f)
		return
	}

	p.mu.Lock()
	var changed bool
	if f.Path == encap.Userspace {
		var rtt time.Duration
		rtt, changed, err = p.core.Answer(q.at, q.by, q.from, f)
		if g := p.pings[f.Nonce]; err == nil && g != nil {
			g.result <- pong{rtt: rtt} // once: the core takes no answer twice
		}
		if err == nil {
			p.trips.observe(path.Userspace, rtt)
			p.kern.core.UserspaceAnswered(q.at, f.Sender, q.at.Add(-rtt), rtt)
		}
	} else {
		err = p.kern.answer(q.at, f)
	}
	if err == nil {
		p.kern.told(q.at, q.by, f)
		changed = len(p.kern.reached(q.at, p.core, f.Sender)) > 0 || changed
	} else if errors.Is(err, ErrUnexpected) && p.kern.again(q.by, f) {
		err = nil // the same answer by another path
	}
	p.mu.Unlock()
	if err != nil {
		p.drops.addError(err)
	}
	if changed {
		signal(p.changed)
	}
}

// answer answers a probe: by userspace, by the path that it came by, and by the one
// that data for the peer takes, so that a path which is blocked on the way back hides
// none that works on the way here.
func (p *Prober) answer(q *frame, f encap.Frame) {
	p.mu.Lock()
	out, err := p.core.Probed(q.at, q.by, q.from, f)
	var more []kernelFrame
	if err == nil {
		more = p.kern.probed(q.at, q.by, q.from.Addr().Unmap(), out.Frame)
	}
	p.mu.Unlock()
	if err != nil {
		p.drops.addError(err)
		return
	}
	sent := false
	if out.To.IsValid() && p.transmit(out) == nil {
		sent = true
	}
	for _, m := range more {
		if p.transmitKernel(m) == nil {
			sent = true
		}
	}
	if !sent {
		p.drops.add(dropSendFailed)
	}
}

// sendDue sends the probes that are due and returns when the next ones are.
func (p *Prober) sendDue() time.Time {
	p.mu.Lock()
	now := time.Now()
	due, next, changed := p.core.Poll(now)
	changed = append(changed, p.kern.reached(now, p.core, changed...)...)
	more, echoes, then := p.kern.poll(now, p.core)
	changed = append(changed, p.kern.core.Changed()...)
	if next.IsZero() || !then.IsZero() && then.Before(next) {
		next = then
	}
	p.mu.Unlock()
	p.sendKernelDue(more, echoes)
	for _, out := range due {
		if err := p.transmit(out); err != nil {
			p.drops.add(dropSendFailed)
			p.mu.Lock()
			p.core.SendFailed(out.Frame.Receiver, out.Frame.Nonce, err)
			p.mu.Unlock()
		}
	}
	p.notify(changed)
	return next
}

// sendPings sends the probes that Ping has asked for.
func (p *Prober) sendPings() {
	for {
		p.mu.Lock()
		if len(p.asked) == 0 {
			p.mu.Unlock()
			return
		}
		g := p.asked[0]
		p.asked = p.asked[1:]
		out, err := p.core.Ping(time.Now(), g.id)
		if err == nil {
			g.nonce = out.Frame.Nonce
			p.pings[g.nonce] = g
		}
		p.mu.Unlock()
		if err == nil {
			if err = p.transmit(out); err != nil {
				p.drops.add(dropSendFailed)
			}
		}
		if err != nil {
			// The slot is free: no answer to this ping can have come meanwhile,
			// since answers are taken by this goroutine.
			g.result <- pong{err: err}
		}
	}
}

// transmit encodes and sends a frame.
func (p *Prober) transmit(out Outgoing) error {
	b, err := out.Frame.Append(p.buf[:0], out.Size, p.auth.Load())
	if err != nil {
		return err
	}
	p.buf = b
	return p.send(b, out.Frame.Receiver, out.To)
}
