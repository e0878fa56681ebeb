package kernel

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// GuardCounts is what has passed the guard and what it has dropped since
// SetGuard was first called. The numbers never become smaller, also when the
// table is made anew; what passes between the last reading and that moment is
// not counted.
type GuardCounts struct {
	// Peers has every peer that was ever in the guard.
	Peers map[[16]byte]PathCounts
	// Drops is packets by reason; every reason is in it.
	Drops map[string]uint64
}

// PathCounts is what came from a peer by the kernel's paths, and what containers and
// this host have sent to it by any path, as inner packets with their IP headers. A superpacket of the kernel's offloads
// counts as one packet, with the bytes of its payload and one header.
type PathCounts struct {
	TxPackets, TxBytes, RxPackets, RxBytes uint64
	// PlainPackets and PlainBytes are what of Rx came plainly, the rest came by VXLAN.
	PlainPackets, PlainBytes uint64
}

func newGuardCounts() GuardCounts {
	c := GuardCounts{Peers: make(map[[16]byte]PathCounts), Drops: make(map[string]uint64)}
	for _, r := range guardReasons {
		c.Drops[r] = 0
	}
	return c
}

// GuardReasons are the keys of GuardCounts.Drops.
func GuardReasons() []string { return slices.Clone(guardReasons) }

// GuardCounts reads the counters. Without a guard all reasons are 0; what cannot
// be read is as it was before, and comes with the error.
func (k *Kernel) GuardCounts() (GuardCounts, error) {
	if err := k.lock(); err != nil {
		return newGuardCounts(), err
	}
	defer k.mu.Unlock()
	st := k.guard
	if st == nil {
		return newGuardCounts(), nil
	}
	err := k.inNamespace(func() error {
		c, err := openNF()
		if err != nil {
			return err
		}
		defer c.close()
		return st.count(c)
	})
	if err != nil {
		err = fmt.Errorf("kernel: reading the guard's counters: %w", guardCause(err))
	}
	return GuardCounts{Peers: maps.Clone(st.counts.Peers), Drops: maps.Clone(st.counts.Drops)}, err
}

// since is what a counter has counted since it was last read; it begins anew when
// somebody sets it back.
func since(now, before uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

// count adds to st.counts what the kernel's counters have counted since they were
// last read.
func (st *guardState) count(c *nfConn) error {
	if st.elements == nil {
		return nil // nothing of ours is there yet
	}
	elements, err := c.readSets(guardTable(st.device))
	if err != nil {
		return err
	}
	for _, e := range elements {
		peer, ours := st.elements[e.guardKey]
		if !ours || e.set.isMap() {
			continue
		}
		last, sum := st.read[e.guardKey], st.counts.Peers[peer]
		now := last
		switch {
		case e.set.sent():
			now.TxPackets, now.TxBytes = e.packets, e.bytes
			sum.TxPackets += since(e.packets, last.TxPackets)
			sum.TxBytes += since(e.bytes, last.TxBytes)
		default:
			now.RxPackets, now.RxBytes = e.packets, e.bytes
			sum.RxPackets += since(e.packets, last.RxPackets)
			sum.RxBytes += since(e.bytes, last.RxBytes)
			if e.set.plain() {
				sum.PlainPackets += since(e.packets, last.RxPackets)
				sum.PlainBytes += since(e.bytes, last.RxBytes)
			}
		}
		st.read[e.guardKey], st.counts.Peers[peer] = now, sum
	}
	counters, err := c.get(unix.NFT_MSG_GETOBJ, unix.NLM_F_DUMP, unix.NFPROTO_INET,
		nfString(nil, unix.NFTA_OBJ_TABLE, guardTable(st.device)))
	if err != nil {
		return err
	}
	for _, m := range counters {
		if string(nfFind(m, unix.NFTA_OBJ_TABLE)) != guardTable(st.device)+"\x00" {
			continue
		}
		reason := strings.TrimSuffix(string(nfFind(m, unix.NFTA_OBJ_NAME)), "\x00")
		if _, known := st.counts.Drops[reason]; known {
			packets, _ := parseCounter(nfFind(m, unix.NFTA_OBJ_DATA))
			st.counts.Drops[reason] += since(packets, st.drops[reason])
			st.drops[reason] = packets
		}
	}
	return nil
}
