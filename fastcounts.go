package overlayd

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/path"
	"github.com/overlayd/overlayd/internal/probe"
	"github.com/overlayd/overlayd/membership"
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

// sentCounts tells what of all that was sent to peers the kernel has carried. The guard
// counts it as it comes from containers and this host, and does not know where it goes: so
// what is new counts as the kernel's while the peer's path is one of the kernel's.
type sentCounts struct {
	mu      sync.Mutex
	carried map[membership.NodeID]kernel.PathCounts // Tx alone
	last    map[membership.NodeID]kernel.PathCounts // the guard's, less our own frames
}

// read reads the kernel's counters.
func (f *fastPaths) read() {
	if f == nil || f.fast == nil {
		return
	}
	c, err := f.k.GuardCounts()
	if err != nil {
		return
	}
	f.counts.Store(&c)
	f.sent.mu.Lock()
	defer f.sent.mu.Unlock()
	if f.sent.last == nil {
		f.sent.last, f.sent.carried = map[membership.NodeID]kernel.PathCounts{}, map[membership.NodeID]kernel.PathCounts{}
	}
	m := f.n.mesh.Load()
	for id, now := range c.Peers {
		packets, bytes, _, _ := f.n.parts.prober.KernelFrames(id)
		now.TxPackets, now.TxBytes = less(now.TxPackets, packets), less(now.TxBytes, bytes)
		was := f.sent.last[id]
		f.sent.last[id] = now
		if p := m.peer(id); p != nil && p.kernel {
			sum := f.sent.carried[id]
			sum.TxPackets += less(now.TxPackets, was.TxPackets)
			sum.TxBytes += less(now.TxBytes, was.TxBytes)
			f.sent.carried[id] = sum
		}
	}
}

// less subtracts, down to 0.
func less(a, b uint64) uint64 { return a - min(a, b) }

// counted is what went to a peer and came from it by all paths, without our own
// frames. Superpackets that the kernel carries count as one packet each.
func (f *fastPaths) counted(p *meshPeer) kernel.PathCounts {
	own := p.fwd.Counters
	c := kernel.PathCounts{TxPackets: own.TxPackets.Load(), TxBytes: own.TxBytes.Load(), RxPackets: own.RxPackets.Load(), RxBytes: own.RxBytes.Load()}
	if f == nil || f.fast == nil {
		return c
	}
	by := f.counts.Load().Peers[p.ID]
	_, _, rxPackets, rxBytes := f.n.parts.prober.KernelFrames(p.ID)
	c.RxPackets += less(by.RxPackets, rxPackets)
	c.RxBytes += less(by.RxBytes, rxBytes)
	f.sent.mu.Lock()
	defer f.sent.mu.Unlock()
	c.TxPackets += f.sent.carried[p.ID].TxPackets
	c.TxBytes += f.sent.carried[p.ID].TxBytes
	return c
}

// warnings are why there are no kernel paths on this host.
func (f *fastPaths) warnings() (all []string) {
	if f == nil {
		return nil
	}
	if f.why != "" {
		all = append(all, "no kernel paths: "+f.why)
	}
	if why := f.guardErr.Load(); why != nil {
		all = append(all, "no kernel paths: "+*why)
	}
	for i, why := range *f.rulings.Load() {
		if why != "" {
			all = append(all, fmt.Sprintf("this node takes no packets by %v: %s", []path.Kind{path.KernelVXLAN, path.Direct}[i], why))
		}
	}
	return all
}
