package overlayd

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/path"
	"github.com/overlayd/overlayd/internal/probe"
)

// sample tells the prober who is sent data, until ctx ends.
func (f *fastPaths) sample(ctx context.Context) {
	for {
		wait := sampleEvery
		if m := f.n.mesh.Load(); len(m.peers) > 0 {
			wait = max(wait, time.Duration(len(m.peers))*samplePerPeer)
			f.n.parts.prober.Traffic(f.traffic(m))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// traffic reads the counters of the peers.
func (f *fastPaths) traffic(m *mesh) (all []probe.Traffic) {
	f.read()
	for _, p := range m.peers {
		c := f.counted(p)
		all = append(all, probe.Traffic{ID: p.ID, Tx: c.TxPackets, Rx: c.RxPackets})
	}
	return all
}

// read reads the kernel's counters.
func (f *fastPaths) read() {
	if f == nil || f.fast == nil {
		return
	}
	if c, err := f.k.GuardCounts(); err == nil {
		f.counts.Store(&c)
	}
}

// counted is what went to a peer and came from it by all paths, without our own
// frames.
func (f *fastPaths) counted(p *meshPeer) kernel.PathCounts {
	own := p.fwd.Counters
	c := kernel.PathCounts{TxPackets: own.TxPackets.Load(), TxBytes: own.TxBytes.Load(), RxPackets: own.RxPackets.Load(), RxBytes: own.RxBytes.Load()}
	if f == nil {
		return c
	}
	less := func(n, frames uint64) uint64 { return n - min(n, frames) }
	by := f.counts.Load().Peers[p.ID]
	txPackets, txBytes, rxPackets, rxBytes := f.n.parts.prober.KernelFrames(p.ID)
	c.TxPackets += less(by.TxPackets, txPackets)
	c.TxBytes += less(by.TxBytes, txBytes)
	c.RxPackets += less(by.RxPackets, rxPackets)
	c.RxBytes += less(by.RxBytes, rxBytes)
	return c
}

// warnings are why there are no kernel paths on this host.
func (f *fastPaths) warnings() (all []string) {
	if f == nil {
		return nil
	}
	for _, why := range []string{f.why, f.guardErr} {
		if why != "" {
			all = append(all, "no kernel paths: "+strings.TrimPrefix(why, "kernel: "))
		}
	}
	for i, why := range *f.rulings.Load() {
		if why != "" {
			all = append(all, fmt.Sprintf("this node takes no packets by %v: %s", []path.Kind{path.KernelVXLAN, path.Direct}[i], why))
		}
	}
	return all
}
