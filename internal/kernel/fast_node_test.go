package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// fastNode is a host of a lab with kernel paths, and a hand of its own there to
// do what overlayd does not expect.
type fastNode struct {
	*testing.T
	host *lab.Host
	h    *netlink.Handle
	k    *kernel.Kernel
	f    *kernel.Fast
	cfg  kernel.FastConfig
	own  []netip.Addr
	nets []netip.Prefix
}

const (
	vx4 = "overlay0-v4"
	vx6 = "overlay0-v6"
)

// fastNodes makes n hosts on one switch. Number i has the subnets 100.96.i.0/24 and
// fd96:0:0:i::/64 and the VTEP MAC 02:00:00:00:00:0i, and nothing in its kernel.
func fastNodes(t *testing.T, n int) []*fastNode {
	t.Helper()
	_, _, hosts := labtest.Hosts(t, n)
	var all []*fastNode
	for i, host := range hosts {
		all = append(all, newFastNode(t, host, i+1))
	}
	return all
}

func newFastNode(t *testing.T, host *lab.Host, i int) *fastNode {
	t.Helper()
	x := &fastNode{T: t, host: host}
	x.nets = prefixes(fmt.Sprintf("100.96.%d.0/24", i), fmt.Sprintf("fd96:0:0:%x::/64", i))
	x.own = []netip.Addr{x.nets[0].Addr(), x.nets[1].Addr()}
	x.cfg = kernel.FastConfig{
		Device: "overlay0", VNI: 1, Port: 4789, MAC: [6]byte{2, 0, 0, 0, 0, byte(i)}, MTU: 1430,
		Locals: []netip.Addr{host.Addr4(), host.Addr6()}, Networks: overlay, IPv6: true,
	}
	x.ok(host.Do(func() (err error) {
		if x.k, err = kernel.Open(kernel.Config{Logger: labtest.Logger(t)}); err == nil {
			x.h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		}
		return err
	}))
	t.Cleanup(func() {
		x.k.Close()
		x.h.Close()
	})
	x.restart()
	return x
}

func (x *fastNode) ok(err error) {
	x.Helper()
	if err != nil {
		x.Fatal(err)
	}
}

// restart is a daemon that starts.
func (x *fastNode) restart() {
	x.Helper()
	var err error
	x.f, err = x.k.NewFast(x.cfg)
	x.ok(err)
}

// remove takes everything out again.
func (x *fastNode) remove() {
	x.Helper()
	_, err := x.f.Remove()
	x.ok(err)
}

// peer is y as a peer that is reached by VXLAN to outer.
func (y *fastNode) peer(outer netip.Addr, route kernel.FastKind) kernel.FastPeer {
	return kernel.FastPeer{
		ID: [16]byte{y.cfg.MAC[5]}, Name: y.host.String(), Prefixes: y.nets, Outer: outer, MAC: y.cfg.MAC, Route: route,
	}
}

// direct is y as a peer on the same link.
func (y *fastNode) direct(route kernel.FastKind) kernel.FastPeer {
	p := y.peer(netip.Addr{}, route)
	p.Hops = []kernel.DirectHop{{Link: "eth0", Addr: y.host.Addr4()}, {Link: "eth0", Addr: y.host.Addr6()}}
	return p
}

// apply expects that all is as asked.
func (x *fastNode) apply(peers ...kernel.FastPeer) {
	x.Helper()
	x.clean(x.f.Apply(x.own, peers, false))
}

func (x *fastNode) clean(res kernel.Result) {
	x.Helper()
	if res.Err != nil || len(res.Peers) > 0 || res.VXLAN4 != nil || res.VXLAN6 != nil {
		x.Fatalf("%s: %s", x.host, resultText(res))
	}
}

func resultText(res kernel.Result) string {
	return fmt.Sprintf("err %v, VXLAN4 %v, VXLAN6 %v, peers %v", res.Err, res.VXLAN4, res.VXLAN6, res.Peers)
}

// repaired expects that Check has work to do, and none the second time.
func (x *fastNode) repaired() []string {
	x.Helper()
	did, res := x.f.Check()
	x.clean(res)
	if len(did) == 0 {
		x.Errorf("%s: nothing repaired", x.host)
	}
	x.stands()
	return did
}

// stands expects that Check has nothing to do.
func (x *fastNode) stands() {
	x.Helper()
	did, res := x.f.Check()
	x.clean(res)
	if len(did) > 0 {
		x.Errorf("%s: %q where all stands", x.host, did)
	}
}

func (x *fastNode) link(name string) netlink.Link {
	x.Helper()
	l, err := x.h.LinkByName(name)
	if err != nil {
		x.Fatalf("%s: link %s: %v", x.host, name, err)
	}
	return l
}

// probeTables are the tables for probes, whose numbers go with the links' indexes.
var probeTables = regexp.MustCompile(`\btable 96\d\d\b`)

// state is all that is in the namespace, as lab.State tells it. It waits for the
// local routes of IPv6 addresses, which the kernel adds a moment after those
// (addrconf_dad_work in linux/net/ipv6/addrconf.c).
func (x *fastNode) state() []string {
	x.Helper()
	labtest.Eventually(x, 5*time.Second, func() error {
		addrs, err := x.h.AddrList(nil, netlink.FAMILY_V6)
		x.ok(err)
		routes, err := x.h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
		x.ok(err)
		for _, a := range addrs {
			if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.LinkIndex == a.LinkIndex && r.Dst.IP.Equal(a.IP) }) {
				return fmt.Errorf("no local route for %s", a.IPNet)
			}
		}
		return nil
	})
	lines, err := x.host.State()
	x.ok(err)
	for i := range lines {
		lines[i] = probeTables.ReplaceAllString(lines[i], "table 96xx")
	}
	slices.Sort(lines)
	return lines
}

func (x *fastNode) same(want []string) {
	x.Helper()
	if d := cmp.Diff(want, x.state()); d != "" {
		x.Errorf("%s: before (-) and after (+):\n%s", x.host, d)
	}
}

// pings sends from this node's addresses to y's, by whatever way the routes say.
func (x *fastNode) pings(y *fastNode) {
	x.Helper()
	for i, dst := range y.own {
		res, err := x.host.Ping(context.Background(), lab.PingConfig{Dst: dst, Src: x.own[i], Size: x.cfg.MTU, DontFragment: true, Timeout: 5 * time.Second})
		x.ok(err)
		if res.Received != 3 {
			x.Errorf("%s to %s: %+v", x.host, dst, res)
		}
	}
}

// way is where the kernel sends a packet from x, by link if that is not empty: the
// link, the gateway and the source.
func (x *fastNode) way(dst netip.Addr, link string) string {
	x.Helper()
	opt := &netlink.RouteGetOptions{Oif: link}
	var list []netlink.Route
	// The library finds the link by a socket of the calling thread.
	err := x.host.Do(func() (err error) {
		list, err = netlink.RouteGetWithOptions(dst.AsSlice(), opt)
		return err
	})
	if err != nil {
		return err.Error()
	}
	l, err := x.h.LinkByIndex(list[0].LinkIndex)
	x.ok(err)
	return strings.TrimSpace(fmt.Sprintf("%s via %v src %v mtu %d", l.Attrs().Name, list[0].Gw, list[0].Src, list[0].MTU))
}

func (x *fastNode) wayIs(dst netip.Addr, link, want string) {
	x.Helper()
	if got := x.way(dst, link); got != want {
		x.Errorf("%s: to %s by %q: %s, want %s", x.host, dst, link, got, want)
	}
}

// ready sets the nodes up with each other as peers, by VXLAN over IPv4.
func ready(nodes ...*fastNode) {
	for _, x := range nodes {
		var peers []kernel.FastPeer
		for _, y := range nodes {
			if y != x {
				peers = append(peers, y.peer(y.host.Addr4(), kernel.FastVXLAN))
			}
		}
		x.f.Apply(x.own, peers, false)
		x.ok(x.f.SetUp(true))
		x.apply(peers...)
	}
}

// failsWith expects one error, in one line.
func (x *fastNode) failsWith(err, is error, parts ...string) {
	x.Helper()
	if err == nil || is != nil && !errors.Is(err, is) || strings.Contains(err.Error(), "\n") {
		x.Errorf("got %v, want one line that is %v", err, is)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			x.Errorf("%q is not in %v", p, err)
		}
	}
}

// tun makes a TUN device, as the daemon does, which is gone when it is closed.
func (x *fastNode) tun(name string) *os.File {
	x.Helper()
	var f *os.File
	x.ok(x.host.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), "tun")
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}))
	x.Cleanup(func() { f.Close() })
	return f
}
