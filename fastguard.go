package overlayd

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/path"
)

// setGuard has the guard let in what the peers may send, and nothing else. Without it
// nobody is sent anything by the kernel, and nothing comes in.
func (f *fastPaths) setGuard(held []netip.Prefix, keep bool) {
	g := f.wantedGuard(held)
	if f.guard != nil && reflect.DeepEqual(f.guard, g) && keep == f.keptGuard {
		return
	}
	switch err := f.k.SetGuard(*g, keep); {
	case errors.Is(err, kernel.ErrNoGuard):
		f.guardLost(err)
		return
	case err != nil: // it stands, but for what somebody may not have
		f.say("the guard of the kernel paths", err.Error())
	}
	if f.guardErr.Swap(nil) != nil {
		f.n.log.Info("the guard of the kernel paths stands")
	}
	f.guard, f.keptGuard = g, keep
	for _, k := range []path.Kind{path.KernelVXLAN, path.Direct} {
		f.n.parts.prober.Break(k, "")
	}
}

// guardLost takes everything back to userspace.
func (f *fastPaths) guardLost(err error) {
	f.guard = nil
	f.triedAt = time.Now()
	why := strings.TrimPrefix(err.Error(), "kernel: ")
	if old := f.guardErr.Swap(&why); old == nil || *old != why {
		f.n.log.Warn("no kernel paths", "error", err)
	}
	for _, k := range []path.Kind{path.KernelVXLAN, path.Direct} {
		f.n.parts.prober.Break(k, why)
	}
	f.setUp(false)
}

// wantedGuard is what may come in.
func (f *fastPaths) wantedGuard(held []netip.Prefix) *kernel.Guard {
	n := f.n
	v4, v6 := kernel.VXLANNames(n.cfg.Device)
	g := &kernel.Guard{
		Device: n.cfg.Device, VXLANs: []string{v4, v6}, Underlays: f.underlays(), Locals: slices.Clone(n.parts.endpoints),
		VNI: n.cfg.VNI, Port: n.cfg.KernelVXLANPort, Networks: n.cfg.Networks, Own: slices.Clone(held),
		Inside: f.k.Inside(n.cfg.Device, held),
	}
	for i, p := range n.cfg.Networks {
		if p.Addr().Is4() {
			g.Len4 = n.cfg.SubnetLens[i]
		} else {
			g.Len6 = n.cfg.SubnetLens[i]
		}
	}
	for _, p := range f.peers {
		for _, s := range p.senders {
			if !slices.Contains(g.Underlays, s.Link) {
				g.Underlays = append(g.Underlays, s.Link)
			}
		}
	}
	slices.Sort(g.Underlays)
	g.Indexes = f.indexes(g)
	ports := []uint16{n.cfg.UDPPort, n.cfg.VXLANPort, n.cfg.KernelVXLANPort}
	for _, p := range f.peers {
		for _, port := range []uint16{p.Ports.UDP, p.Ports.VXLAN, p.Ports.KernelVXLAN} {
			if port != 0 {
				ports = append(ports, port)
			}
		}
		inner := slices.Clone(p.prefixes)
		for _, a := range p.Addrs {
			inner = append(inner, netip.PrefixFrom(a, a.BitLen()))
		}
		g.Peers = append(g.Peers, kernel.GuardPeer{
			ID: p.ID, Outer: p.Addrs, Inner: append(inner, n.live().AllowSource...), Prefixes: p.prefixes, Direct: p.senders,
		})
	}
	slices.Sort(ports)
	g.Ports = slices.Compact(ports)
	slices.SortFunc(g.Peers, func(a, b kernel.GuardPeer) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return g
}

// indexes are those of the interfaces that a guard names.
func (f *fastPaths) indexes(g *kernel.Guard) map[string]uint32 {
	return f.k.Indexes(slices.Concat(g.VXLANs, g.Underlays, g.Inside)...)
}

// underlays are the interfaces that have our endpoints.
func (f *fastPaths) underlays() (names []string) {
	for _, a := range f.n.parts.endpoints {
		if l, err := f.k.UnderlayByAddr(a); err == nil && !slices.Contains(names, l.Name) {
			names = append(names, l.Name)
		}
	}
	return names
}

// ruleEvery is the least time between two looks at the firewall.
const ruleEvery = 2 * time.Second

// rule finds out whether this host's firewall lets what comes by kernel paths on to
// containers, if anybody has changed it. It reports whether that has changed.
func (f *fastPaths) rule(held []netip.Prefix, now time.Time) (changed bool) {
	gen, err := f.k.RulesetGeneration()
	if err != nil || gen == f.rules || now.Sub(f.ruledAt) < ruleEvery {
		return false
	}
	f.rules, f.ruledAt = gen, now
	v4, v6 := kernel.VXLANNames(f.n.cfg.Device)
	var found [2]string
	for i, devices := range [][]string{{v4, v6}, f.underlays()} {
		for _, d := range devices {
			for _, finding := range f.k.Diagnose(kernel.DiagnoseConfig{Device: d, Networks: f.n.cfg.Networks, Own: held}) {
				if finding.Code == kernel.CodeForwardPolicy || finding.Code == kernel.CodeForwardRule {
					found[i] = finding.Text
				}
			}
		}
	}
	changed = found != f.firewall
	f.firewall = found
	f.rulings.Store(&found)
	return changed
}
