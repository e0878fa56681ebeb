package overlayd

import (
	"net/netip"
	"time"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/path"
)

// leaveFor is how long data and probes are still taken by a kind of kernel path that is
// not allowed any more. Peers are told that we are not ready for it with the next probe
// of theirs, which comes within two seconds, and go back to userspace.
const leaveFor = 10 * time.Second

// narrow is told of a new Config before it counts: kinds that it does not allow any more
// are left by us at once, and by the peers a little later.
func (f *fastPaths) narrow(old, next *resolved, now time.Time) {
	if f == nil {
		return
	}
	for _, k := range []path.Kind{path.KernelVXLAN, path.Direct} {
		if old.allows(k.String()) && !next.allows(k.String()) {
			f.left[k] = now
		}
	}
}

// takes tells whether what comes by a kind is taken: one that is allowed, or was until
// a moment ago.
func (f *fastPaths) takes(k path.Kind, now time.Time) bool {
	return f.allows(k) || !f.left[k].IsZero() && now.Sub(f.left[k]) < leaveFor
}

// takenBy are the devices by which packets of kernel paths come, and leave.
func (f *fastPaths) takenBy(now time.Time) (devices []string) {
	if f == nil || f.fast == nil {
		return nil
	}
	if f.takes(path.KernelVXLAN, now) {
		v4, v6 := kernel.VXLANNames(f.n.cfg.Device)
		devices = append(devices, v4, v6)
	}
	if f.takes(path.Direct, now) {
		devices = append(devices, f.underlays()...)
	}
	return devices
}

// leftForGood reports, once, that peers have had their time to leave a kind.
func (f *fastPaths) leftForGood(now time.Time) (any bool) {
	for k, at := range f.left {
		if !at.IsZero() && now.Sub(at) >= leaveFor {
			f.left[k], any = time.Time{}, true
		}
	}
	return any
}

// onLink are the link-layer addresses by which a peer sends directly.
func (f *fastPaths) onLink(addrs []netip.Addr) (out []kernel.DirectSender) {
	for _, a := range addrs {
		if h := f.hop(a); h.MAC != [6]byte{} && h.Link != "" {
			out = append(out, kernel.DirectSender{Link: h.Link, MAC: h.MAC})
		}
	}
	return out
}
