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

// carriedCounts is what the kernel has carried, without our own frames. What is sent the guard
// counts as it comes from containers and this host, and does not know where it goes: so
// what is new counts as that kernel path's which is the peer's path now.
type carriedCounts struct {
	reading sync.Mutex // one at a time: an older reading after a newer one would count twice
	mu      sync.Mutex
	carried map[membership.NodeID]*pathCounts
	last    map[membership.NodeID]forward.Counts // the guard's Tx, less our own frames
	came    map[membership.NodeID]*arrivals
}

// arrivals is what the guard says of a peer's Rx, less our own frames, which it counts
// some time before we do: what is new is taken when a later reading has it as well.
type arrivals struct {
	least pathCounts // of the readings since at
	at    time.Time
}

// settleTime is longer than a frame of ours is under way from the guard to who counts it.
const settleTime = 200 * time.Millisecond

// take gives sum what a reading has of Rx.
func (a *arrivals) take(now time.Time, read *pathCounts, sum *pathCounts) {
	settled := now.Sub(a.at) >= settleTime
	for k := range read {
		r, l, s := &read[k], &a.least[k], &sum[k]
		l.RxPackets, l.RxBytes = min(l.RxPackets, r.RxPackets), min(l.RxBytes, r.RxBytes)
		if settled {
			s.RxPackets, s.RxBytes = max(s.RxPackets, l.RxPackets), max(s.RxBytes, l.RxBytes)
			l.RxPackets, l.RxBytes = r.RxPackets, r.RxBytes
		}
	}
	if settled {
		a.at = now
	}
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
	f.kept.reading.Lock()
	defer f.kept.reading.Unlock()
	c, err := f.k.GuardCounts()
	if err != nil {
		return
	}
	f.counts.Store(&c)
	f.kept.mu.Lock()
	defer f.kept.mu.Unlock()
	if f.kept.last == nil {
		f.kept.last, f.kept.carried = map[membership.NodeID]forward.Counts{}, map[membership.NodeID]*pathCounts{}
		f.kept.came = map[membership.NodeID]*arrivals{}
	}
	m, at := f.n.mesh.Load(), time.Now()
	for id, guard := range c.Peers {
		// Our own frames are read after what the guard has of them: one that was sent in
		// between makes a number too small, until the next reading. It is not taken then,
		// since counters do not go back.
		tx, rx := f.n.parts.prober.KernelFrames(id)
		sum := f.kept.carried[id]
		if sum == nil {
			sum = new(pathCounts)
			f.kept.carried[id] = sum
		}
		was := f.kept.last[id]
		now := forward.Counts{
			TxPackets: max(was.TxPackets, less(guard.TxPackets, tx.Packets)), TxBytes: max(was.TxBytes, less(guard.TxBytes, tx.Bytes)),
		}
		f.kept.last[id] = now
		if p := m.peer(id); p != nil && p.kernel {
			k := &sum[kernelKind(p.path)]
			k.TxPackets += now.TxPackets - was.TxPackets
			k.TxBytes += now.TxBytes - was.TxBytes
		}
		var read pathCounts
		came := func(k path.Kind, packets, bytes uint64) {
			read[k].RxPackets, read[k].RxBytes = less(packets, rx[k].Packets), less(bytes, rx[k].Bytes)
		}
		came(path.KernelVXLAN, guard.RxPackets-guard.PlainPackets, guard.RxBytes-guard.PlainBytes)
		came(path.Direct, guard.PlainPackets, guard.PlainBytes)
		if f.kept.came[id] == nil {
			f.kept.came[id] = new(arrivals)
		}
		f.kept.came[id].take(at, &read, sum)
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
	if f != nil && f.fast != nil {
		f.kept.mu.Lock()
		if carried := f.kept.carried[p.ID]; carried != nil {
			c = *carried
		}
		f.kept.mu.Unlock()
	}
	c[path.Userspace] = p.fwd.Counters.Load()
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
