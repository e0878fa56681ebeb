package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// watchGroups are the rtnetlink multicast groups of what Fast depends on.
var watchGroups = []uint{
	unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
}

// watchBuffer is the size of Watch's socket buffer in bytes: a route is some 150
// of them, and 1000 peers have four.
const watchBuffer = 1 << 20

// interest is what Watch looks for among the news.
type interest struct {
	links    map[int]bool // our VXLAN devices
	hops     map[netip.Addr]bool
	networks []netip.Prefix
}

// watch tells Watch what to look for from now on. The caller holds k.mu.
func (f *Fast) watch(w *fastWant) {
	n := &interest{links: make(map[int]bool), hops: make(map[netip.Addr]bool), networks: f.cfg.Networks}
	for i := range f.vteps {
		if f.vteps[i].index != 0 {
			n.links[f.vteps[i].index] = true
		}
	}
	if w != nil {
		for i := range f.wish.peers {
			for _, hop := range f.wish.peers[i].Hops {
				n.hops[hop.Addr] = true
			}
		}
	}
	f.watched.Store(n)
}

// Watch calls notify when something has changed in the kernel that may make
// Check or OnLink say something else: links, addresses, policy rules; FDB entries
// and neighbours of our VXLAN devices, neighbours that are peers' hops; routes of
// ours, into the overlay networks, and to hops. Our own changes are told as well.
// News that were lost, because too many came at once, are told as one.
//
// notify must not block: the news would be lost. Watch returns nil when ctx ends.
func (f *Fast) Watch(ctx context.Context, notify func()) error {
	if err := f.k.lock(); err != nil {
		return err
	}
	var socket *os.File
	err := f.k.inNamespace(func() (err error) {
		socket, err = watchSocket()
		return err
	})
	f.k.mu.Unlock()
	if err != nil {
		return fmt.Errorf("kernel paths: watching the kernel: %w", err)
	}
	defer socket.Close()
	defer context.AfterFunc(ctx, func() { socket.SetReadDeadline(time.Unix(1, 0)) })()

	raw, err := socket.SyscallConn()
	if err != nil {
		return fmt.Errorf("kernel paths: watching the kernel: %w", err)
	}
	buf := make([]byte, 1<<16) // the kernel's messages to a group are far smaller
	for {
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, _, rerr = unix.Recvfrom(int(fd), buf, 0)
			return rerr != unix.EAGAIN && rerr != unix.EINTR
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("kernel paths: watching the kernel: %w", err)
		case errors.Is(rerr, unix.ENOBUFS):
			notify()
			continue
		case rerr != nil:
			return fmt.Errorf("kernel paths: watching the kernel: %w", rerr)
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil || slices.ContainsFunc(msgs, f.watched.Load().concerns) {
			notify()
		}
	}
}

// watchSocket opens a socket of the calling thread's namespace that gets the news.
func watchSocket() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	// Best effort: with less, more is told as lost.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, watchBuffer) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, watchBuffer)
	}
	sa := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for _, g := range watchGroups {
		sa.Groups |= 1 << (g - 1)
	}
	if err := unix.Bind(fd, sa); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "rtnetlink"), nil
}

// concerns tells whether the message is about something of ours. On a host with
// many containers or a routing daemon most are not.
func (n *interest) concerns(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		e, err := netlink.NeighDeserialize(m.Data)
		if err != nil || n.links[e.LinkIndex] {
			return true
		}
		a, _ := netip.AddrFromSlice(e.IP)
		return e.Family != unix.AF_BRIDGE && n.hops[a.Unmap()]
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return n.route(m.Data)
	}
	return true
}

// route tells whether a message about a route is of interest.
func (n *interest) route(m []byte) bool {
	if len(m) < unix.SizeofRtMsg {
		return true
	}
	head := nl.DeserializeRtMsg(m)
	attrs, err := nl.ParseRouteAttr(m[unix.SizeofRtMsg:])
	if err != nil || head.Protocol == RouteProtocol {
		return true
	}
	dst := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	if head.Family == unix.AF_INET {
		dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	for _, a := range attrs {
		switch attrType(a.Attr.Type) {
		case unix.RTA_DST:
			if addr, ok := netip.AddrFromSlice(a.Value); ok {
				dst = netip.PrefixFrom(addr, int(head.Dst_len))
			}
		case unix.RTA_OIF:
			if n.links[int(number(a.Value))] {
				return true
			}
		}
	}
	if insideAny(dst, n.networks) {
		return true
	}
	for hop := range n.hops {
		if dst.Contains(hop) {
			return true
		}
	}
	return false
}
