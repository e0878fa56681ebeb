package kernel

import (
	"errors"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// forgetUntranslated has the kernel forget what containers have begun beyond the overlay
// while nothing was masqueraded, so that it begins anew. Where somebody else has
// connections tracked, as Docker does, such a flow would go on with the container's
// address for as long as it does not pause: no rule is asked about a connection that
// exists (nf_nat_setup_info in linux/net/netfilter/nf_nat_core.c). It runs in the
// namespace.
func forgetUntranslated(m *Masquerade) error {
	var all error
	has4, has6 := families(m.Own)
	for family, has := range map[netlink.InetFamily]bool{unix.AF_INET: has4, unix.AF_INET6: has6} {
		if has {
			_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, untranslated{m})
			all = errors.Join(all, err)
		}
	}
	return all
}

// untranslated matches connections that would have been masqueraded, and are not. Of
// those of TCP only the ones that wait for an answer: another one has found a way back.
type untranslated struct{ m *Masquerade }

// tcpSynSent is TCP_CONNTRACK_SYN_SENT (linux/include/uapi/linux/netfilter/nf_conntrack_tcp.h).
const tcpSynSent = 1

func (u untranslated) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	src, dst := prefixOfIP(f.Forward.SrcIP), prefixOfIP(f.Forward.DstIP)
	if !src.IsValid() || !dst.IsValid() || !insideAny(src, u.m.Own) || insideAny(dst, slices.Concat(u.m.Networks, neverMasqueraded)) {
		return false
	}
	if !f.Reverse.SrcIP.Equal(f.Forward.DstIP) || !f.Reverse.DstIP.Equal(f.Forward.SrcIP) ||
		f.Reverse.SrcPort != f.Forward.DstPort || f.Reverse.DstPort != f.Forward.SrcPort {
		return false // somebody translates it
	}
	tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
	return f.Forward.Protocol != unix.IPPROTO_TCP || ok && tcp.State == tcpSynSent
}

// prefixOfIP is an address alone, invalid if there is none.
func prefixOfIP(ip net.IP) netip.Prefix {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		return netip.Prefix{}
	}
	return single(a.Unmap())
}
