package overlayd

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/overlayd/overlayd/internal/forward"
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
		counts := f.counted(p)
		c := counts.all()
		all = append(all, probe.Traffic{ID: p.ID, Tx: c.TxPackets, Rx: c.RxPackets})
	}
	return all
}

// sentCounts tells what of all that was sent to peers the kernel has carried. The guard
// counts it as it comes from containers and this host, and does not know where it goes: so
// what is new counts as that kernel path's which is the peer's path now.
type sentCounts struct {
	mu      sync.Mutex
	carried map[membership.NodeID]*pathCounts    // Tx alone
	last    map[membership.NodeID]forward.Counts // the guard's, less our own frames
}

// pathCounts is what went to a peer and came from it, by path.Kind.
type pathCounts [path.Direct + 1]forward.Counts

// all is the sum of all kinds.
func (c *pathCounts) all() (sum forward.Counts) {
	for _, k := range c {
		sum.TxPackets += k.TxPackets
		sum.TxBytes += k.TxBytes
		sum.RxPackets += k.RxPackets
		sum.RxBytes += k.RxBytes
	}
	return sum
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
		f.sent.last, f.sent.carried = map[membership.NodeID]forward.Counts{}, map[membership.NodeID]*pathCounts{}
	}
	m := f.n.mesh.Load()
	for id, guard := range c.Peers {
		own, _ := f.n.parts.prober.KernelFrames(id)
		now := forward.Counts{TxPackets: less(guard.TxPackets, own.Packets), TxBytes: less(guard.TxBytes, own.Bytes)}
		was := f.sent.last[id]
		f.sent.last[id] = now
		if p := m.peer(id); p != nil && p.kernel {
			if f.sent.carried[id] == nil {
				f.sent.carried[id] = new(pathCounts)
			}
			sum := &f.sent.carried[id][kernelKind(p.path)]
			sum.TxPackets += less(now.TxPackets, was.TxPackets)
			sum.TxBytes += less(now.TxBytes, was.TxBytes)
		}
	}
}

// kernelKind is the kind of a path that is one of the kernel's.
func kernelKind(name string) path.Kind {
	if name == PathDirect {
		return path.Direct
	}
	return path.KernelVXLAN
}

// less subtracts, down to 0.
func less(a, b uint64) uint64 { return a - min(a, b) }

// counted is what went to a peer and came from it by each path, as it was read last,
// without our own frames. Superpackets that the kernel carries count as one packet each.
func (f *fastPaths) counted(p *meshPeer) (c pathCounts) {
	c[path.Userspace] = p.fwd.Counters.Load()
	if f == nil || f.fast == nil {
		return c
	}
	by := f.counts.Load().Peers[p.ID]
	_, own := f.n.parts.prober.KernelFrames(p.ID)
	vxlan, direct := &c[path.KernelVXLAN], &c[path.Direct]
	vxlan.RxPackets = less(by.RxPackets-by.PlainPackets, own[path.KernelVXLAN].Packets)
	vxlan.RxBytes = less(by.RxBytes-by.PlainBytes, own[path.KernelVXLAN].Bytes)
	direct.RxPackets = less(by.PlainPackets, own[path.Direct].Packets)
	direct.RxBytes = less(by.PlainBytes, own[path.Direct].Bytes)
	f.sent.mu.Lock()
	defer f.sent.mu.Unlock()
	if sent := f.sent.carried[p.ID]; sent != nil {
		for _, k := range []path.Kind{path.KernelVXLAN, path.Direct} {
			c[k].TxPackets, c[k].TxBytes = sent[k].TxPackets, sent[k].TxBytes
		}
	}
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
