package kernel_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/kernel/kerneltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// host is a network namespace with a Kernel in it, and a hand of its own to
// put things there that are not overlayd's.
type host struct {
	*testing.T
	h *netlink.Handle
	k *kernel.Kernel
}

func newHost(t *testing.T) *host {
	t.Helper()
	kerneltest.Namespace(t)
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	k, err := kernel.Open(kernel.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	x := &host{T: t, h: h, k: k}
	x.ok(h.LinkSetUp(x.link("lo")))
	return x
}

func (x *host) ok(err error) {
	x.Helper()
	if err != nil {
		x.Fatal(err)
	}
}

func (x *host) link(name string) netlink.Link {
	x.Helper()
	l, err := x.h.LinkByName(name)
	if err != nil {
		x.Fatalf("link %s: %v", name, err)
	}
	return l
}

// veth makes an interface that is up, with carrier and these addresses, and
// without a link-local one.
func (x *host) veth(name string, addrs ...string) netlink.Link {
	x.Helper()
	a := netlink.NewLinkAttrs()
	a.Name = name
	x.ok(x.h.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: name + "p"}))
	for _, n := range []string{name + "p", name} {
		x.ok(x.h.LinkSetIP6AddrGenMode(x.link(n), 1))
		x.ok(x.h.LinkSetUp(x.link(n)))
	}
	l := x.link(name)
	for _, s := range addrs {
		x.addr(l, s, 0)
	}
	return l
}

func (x *host) addr(l netlink.Link, s string, flags int) {
	x.Helper()
	if netip.MustParsePrefix(s).Addr().Is6() && flags&unix.IFA_F_TENTATIVE == 0 {
		flags |= unix.IFA_F_NODAD
	}
	n, err := netlink.ParseIPNet(s)
	x.ok(err)
	add := func() { x.ok(x.h.AddrAdd(l, &netlink.Addr{IPNet: n, Flags: flags})) }
	if flags&unix.IFA_F_NODAD != 0 {
		x.settled(add, netip.MustParsePrefix(s).Addr())
	} else {
		add()
	}
}

// settled runs do, which adds IPv6 addresses, and waits until they have their
// local routes, so that lists of routes can be compared: the kernel adds those a
// moment later (addrconf_dad_work in linux/net/ipv6/addrconf.c).
func (x *host) settled(do func(), ips ...netip.Addr) {
	x.Helper()
	updates := make(chan netlink.RouteUpdate, 256)
	done := make(chan struct{})
	x.ok(netlink.RouteSubscribe(updates, done)) // on this thread: in this namespace
	defer func() {
		close(done)
		for range updates {
		}
	}()
	do()
	missing := make(map[string]bool)
	for _, ip := range ips {
		if ip.Is6() {
			missing[single(ip).String()] = true
		}
	}
	list, err := x.h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
	x.ok(err)
	for _, r := range list {
		delete(missing, r.Dst.String())
	}
	deadline := time.After(30 * time.Second)
	for len(missing) > 0 {
		select {
		case u := <-updates:
			if u.Type == unix.RTM_NEWROUTE && u.Table == unix.RT_TABLE_LOCAL && u.Dst != nil {
				delete(missing, u.Dst.String())
			}
		case <-deadline:
			x.Fatalf("no local route for %v", missing)
		}
	}
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// configure sets the TUN device dev up, as the daemon does it.
func (x *host) configure(dev string, addrs []netip.Addr) {
	x.Helper()
	x.settled(func() { x.ok(x.k.ConfigureDevice(dev, 1472, false, addrs)) }, addrs...)
}

// tun opens a TUN (or other tuntap) device the way the daemon does: it is gone
// when the file is closed, however the process ends.
func (x *host) tun(name string, flags uint16) *os.File {
	x.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		x.Skip("needs /dev/net/tun")
	}
	x.ok(err)
	req, err := unix.NewIfreq(name)
	x.ok(err)
	req.SetUint16(flags | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		x.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "tun")
	x.Cleanup(func() { f.Close() })
	return f
}

// route adds a route of somebody else's (RTPROT_STATIC unless set).
func (x *host) route(dst string, r netlink.Route) {
	x.Helper()
	r.Dst = mustNet(dst)
	if r.Protocol == 0 {
		r.Protocol = unix.RTPROT_STATIC
	}
	if r.LinkIndex != 0 && r.Gw == nil && r.Dst.IP.To4() != nil {
		r.Scope = unix.RT_SCOPE_LINK
	}
	if r.Type == unix.RTN_LOCAL {
		r.Scope = unix.RT_SCOPE_HOST
	}
	x.ok(x.h.RouteAdd(&r))
}

func mustNet(s string) *net.IPNet {
	p := netip.MustParsePrefix(s)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// routes is every route of every table, one per line, sorted; but for ff00::/8,
// which the kernel adds in its own time to every device that comes up.
func (x *host) routes() []string {
	x.Helper()
	var all []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := x.h.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		x.ok(err)
		for _, r := range list {
			if r.Type == unix.RTN_MULTICAST && r.Protocol == unix.RTPROT_KERNEL {
				continue
			}
			all = append(all, fmt.Sprintf("%v table %d type %d proto %d dev %d via %v src %v scope %d metric %d flags %d %v",
				r.Dst, r.Table, r.Type, r.Protocol, r.LinkIndex, r.Gw, r.Src, r.Scope, r.Priority, r.Flags, r.MultiPath))
		}
	}
	slices.Sort(all)
	return all
}

// same fails the test where two lists of routes differ.
func (x *host) same(before, after []string) {
	x.Helper()
	if d := cmp.Diff(before, after); d != "" {
		x.Errorf("routes before (-) and after (+):\n%s", d)
	}
}

// ours is the routes with our protocol number.
func (x *host) ours() []netlink.Route {
	x.Helper()
	var all []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := x.h.RouteListFiltered(family, &netlink.Route{Protocol: kernel.RouteProtocol},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		x.ok(err)
		for _, r := range list {
			if r.Protocol == kernel.RouteProtocol {
				all = append(all, r)
			}
		}
	}
	return all
}

// addrsOf is the addresses of an interface with their flags, sorted.
func (x *host) addrsOf(name string) []string {
	x.Helper()
	list, err := x.h.AddrList(x.link(name), netlink.FAMILY_ALL)
	x.ok(err)
	all := []string{}
	for _, a := range list {
		all = append(all, fmt.Sprintf("%s flags %#x", a.IPNet, a.Flags))
	}
	slices.Sort(all)
	return all
}

func sysctlPath(name string) string { return "/proc/sys/net/" + name }

func (x *host) sysctl(name, value string) {
	x.Helper()
	x.ok(os.WriteFile(sysctlPath(name), []byte(value), 0))
}

func (x *host) sysctlIs(name, want string) {
	x.Helper()
	got, err := os.ReadFile(sysctlPath(name))
	x.ok(err)
	if string(got) != want+"\n" {
		x.Errorf("%s is %q, want %s", name, got, want)
	}
}

func prefixes(s ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, p := range s {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}

func addrs(s ...string) []netip.Addr {
	var all []netip.Addr
	for _, a := range s {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

var (
	overlay  = prefixes("100.96.0.0/16", "fd96::/48")
	ownAddrs = addrs("100.96.1.0", "fd96:0:0:1::")
	ownNets  = prefixes("100.96.1.0/24", "fd96:0:0:1::/64")
)

// configured is a host with a TUN that is set up as the daemon does it.
func configured(t *testing.T) (*host, *os.File) {
	t.Helper()
	x := newHost(t)
	f := x.tun("overlay0", unix.IFF_TUN)
	x.configure("overlay0", ownAddrs)
	x.ok(x.k.SetRoutes("overlay0", overlay, ownAddrs))
	return x, f
}
