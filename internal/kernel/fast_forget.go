package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// sysctlFlush4 drops, when written, all that IPv4 has learned about paths, path
// MTUs among it (ipv4_sysctl_rtcache_flush in linux/net/ipv4/route.c). There is no
// way to drop what was learned about one address: changes of routes do not do it.
const sysctlFlush4 sysctl = "ipv4/route/flush"

// Forget makes the kernel forget the path MTUs that it has learned to outer, and
// to what is behind it: the subnets of the peers that are reached by it. Otherwise it keeps them for 10 minutes (mtu_expires), also when
// the path has long been mended. Of IPv4 it forgets all of them: they are learned
// again from the next packet that is too long.
func (f *Fast) Forget(outer netip.Addr) error {
	if err := f.k.lock(); err != nil {
		return err
	}
	defer f.k.mu.Unlock()
	outer = outer.Unmap()
	behind := []netip.Prefix{single(outer)}
	if f.wish != nil {
		for i := range f.wish.peers {
			p := &f.wish.peers[i]
			if p.Outer == outer || slices.ContainsFunc(p.Hops, func(h DirectHop) bool { return h.Addr == outer }) {
				behind = append(behind, p.Prefixes...)
			}
		}
	}
	err4 := f.k.sysctlSet(sysctlFlush4, 1)
	if err4 != nil {
		err4 = fmt.Errorf("forgetting IPv4 path MTUs (sysctl -w %s=1): %w", sysctlFlush4, err4)
	}
	return errors.Join(err4, f.k.forget6(behind))
}

// forget6 removes the exceptions of IPv6 routes for addresses in nets: what was
// learned about single destinations. The caller holds k.mu.
func (k *Kernel) forget6(nets []netip.Prefix) error {
	msgs, err := dump(k.exceptions6)
	if err != nil {
		return fmt.Errorf("listing IPv6 path MTUs: %w", err)
	}
	for _, m := range msgs {
		if len(m) < unix.SizeofRtMsg {
			continue
		}
		head := nl.DeserializeRtMsg(m)
		if head.Flags&unix.RTM_F_CLONED == 0 || head.Dst_len != 128 {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[unix.SizeofRtMsg:])
		if err != nil {
			return fmt.Errorf("listing IPv6 path MTUs: %w", err)
		}
		var dst netip.Addr
		for _, a := range attrs {
			if attrType(a.Attr.Type) == unix.RTA_DST {
				dst, _ = netip.AddrFromSlice(a.Value)
			}
		}
		if !dst.IsValid() || !insideAny(single(dst), nets) {
			continue
		}
		if err := k.forgetException(head.Table, dst, attrs); gone(err) != nil {
			return fmt.Errorf("forgetting the path MTU to %s: %w", dst, permission(err))
		}
	}
	return nil
}

// exceptions6 lists the exceptions of all IPv6 routes. With strict checking the
// kernel lists them alone; without, before Linux 4.20, the routes as well
// (inet6_dump_fib in linux/net/ipv6/ip6_fib.c). The caller holds k.mu.
func (k *Kernel) exceptions6() (msgs [][]byte, err error) {
	err = k.inNamespace(func() error {
		s, err := nl.Subscribe(unix.NETLINK_ROUTE) // to nothing: it is a plain socket
		if err != nil {
			return err
		}
		defer s.Close()
		// An older kernel refuses, and then the caller picks.
		_ = unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
		req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
		req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: unix.AF_INET6, Flags: unix.RTM_F_CLONED}})
		msgs, err = req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
		return err
	})
	return msgs, err
}

// forgetException removes one: RTM_F_CLONED keeps the route itself out of it
// (ip6_route_del in linux/net/ipv6/route.c). The caller holds k.mu.
func (k *Kernel) forgetException(table uint8, dst netip.Addr, listed []syscall.NetlinkRouteAttr) error {
	msg := nl.NewRtDelMsg()
	msg.Family, msg.Dst_len, msg.Table, msg.Flags = unix.AF_INET6, 128, table, unix.RTM_F_CLONED
	data := []nl.NetlinkRequestData{msg, nl.NewRtAttr(unix.RTA_DST, dst.AsSlice())}
	for _, a := range listed {
		switch kind := attrType(a.Attr.Type); kind {
		case unix.RTA_TABLE, unix.RTA_OIF:
			data = append(data, nl.NewRtAttr(kind, a.Value))
		}
	}
	_, err := k.request(unix.RTM_DELROUTE, unix.NLM_F_ACK, 0, data...)
	return err
}
