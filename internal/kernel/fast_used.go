package kernel

import (
	"time"
)

// userHZ is in how many ticks a second the kernel counts towards programs:
// USER_HZ in linux/include/asm-generic/param.h.
const userHZ = 100

// Used returns how long ago the kernel last looked up each peer's FDB entry to
// send something to it by VXLAN, in steps of 10 ms. Peers without an entry of ours
// are not in it. Reading does not count as use, and takes time in proportion to the
// number of peers, some 2 ms for 1000.
//
// An entry that is new counts as used when it was made. Probes by VXLAN count as
// well: they are sent by the same entry. Whoever wants to know of other traffic
// looks before it sends its own.
func (f *Fast) Used() (map[[16]byte]time.Duration, error) {
	if err := f.k.lock(); err != nil {
		return nil, err
	}
	defer f.k.mu.Unlock()
	used := make(map[[16]byte]time.Duration)
	if f.have == nil {
		return used, nil
	}
	for i := range f.vteps {
		if f.vteps[i].index == 0 {
			continue
		}
		all, err := f.k.readFDB(f.vteps[i].index)
		if err != nil {
			return nil, err
		}
		for _, e := range all {
			if h, ok := f.have.fdb[fdbKey{i, e.mac}]; ok && h.owner != (peerID{}) {
				used[h.owner] = time.Duration(e.used) * (time.Second / userHZ)
			}
		}
	}
	return used, nil
}
