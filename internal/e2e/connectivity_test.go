package e2e_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"golang.org/x/sys/unix"
)

// smallMTU is the underlay MTU of the last host in TestConnectivity. What is
// left inside is more than IPv6 needs.
const smallMTU = 1400

// innerMTU is what the overlay leaves of an underlay MTU: IPv6 and UDP headers off,
// and, for the largest path that a node may come to use, those of VXLAN and Ethernet.
func innerMTU(underlay int, vxlan bool) int {
	if vxlan {
		underlay -= 8 + 14
	}
	return underlay - 40 - 8
}

// TestConnectivity is the main job: four hosts that joined through one seed,
// the last of them on a link with a smaller MTU, and their containers.
//
// It runs before the parallel tests, since it loads the machine.
func TestConnectivity(t *testing.T) {
	l, sw, nodes := cluster(t, 3)
	small, err := sw.Host("host4", lab.PortConfig{MTU: smallMTU})
	must(t, err)
	stranger, err := sw.Host("stranger", lab.PortConfig{})
	must(t, err)
	nodes = append(nodes, &node{Host: small})
	nodes[0].start(t, "--fast-path", "auto")
	for _, n := range nodes[1:] {
		n.start(t, "--fast-path", "auto", "--join", nodes[0].Addr4().String())
	}
	for i, n := range nodes {
		n.lease(t)
		want := innerMTU(1500, true)
		if i == 3 {
			want = innerMTU(smallMTU, true)
		}
		if n.env.MTU != want {
			t.Errorf("%s has the inner MTU %d, want %d", n, n.env.MTU, want)
		}
		n.attach(t)
	}
	awaitMesh(t, nodes...)
	for _, a := range nodes {
		for _, b := range nodes {
			if a != b {
				a.awaitPath(t, meshLimit, b, "direct")
			}
		}
	}

	t.Run("EveryPairOfContainers", func(t *testing.T) { everyPair(t, nodes) })
	t.Run("OneByteMore", func(t *testing.T) { oneByteMore(t, nodes) })
	t.Run("SmallerPeer", func(t *testing.T) { smallerPeer(t, nodes) })
	t.Run("HostsAndContainers", func(t *testing.T) { hostsAndContainers(t, nodes) })
	t.Run("HopLimit", func(t *testing.T) { hopLimit(t, nodes) })
	t.Run("NobodysAddress", func(t *testing.T) { nobodysAddress(t, nodes) })
	t.Run("Datagrams", func(t *testing.T) { datagrams(t, nodes) })
	t.Run("Quiet", func(t *testing.T) { quiet(t, nodes[:3]) })
	t.Run("JSON", func(t *testing.T) { jsonDocuments(t, nodes) })
	t.Run("Commands", func(t *testing.T) { commands(t, nodes) })
	t.Run("TCP", func(t *testing.T) { transfers(t, nodes) })
	t.Run("Memory", func(t *testing.T) { memory(t, nodes) })
	t.Run("HostileDatagrams", func(t *testing.T) { hostile(t, l, nodes, stranger) })
}

func everyPair(t *testing.T, nodes []*node) {
	for _, a := range nodes {
		for _, b := range nodes {
			if a == b {
				continue
			}
			for _, dst := range b.container.Addrs() {
				pingAll(t, a.container.Namespace, lab.PingConfig{Dst: dst})
				pingAll(t, a.container.Namespace, lab.PingConfig{Dst: dst, Size: min(a.env.MTU, b.env.MTU), DontFragment: true})
			}
		}
	}
}

// oneByteMore sends what the overlay does not carry, from a container whose own
// link would.
func oneByteMore(t *testing.T, nodes []*node) {
	a, b := nodes[1], nodes[2]
	mtu := func(size int) {
		must(t, a.SetMTU("br0", size), a.SetMTU("veth1", size), a.container.SetMTU("eth0", size))
	}
	mtu(1500)
	defer mtu(a.env.MTU)
	for _, dst := range b.container.Addrs() {
		refused(t, a, dst, a.env.MTU+1, a.env.MTU)
		pingAll(t, a.container.Namespace, lab.PingConfig{Dst: dst, Size: a.env.MTU, DontFragment: true})
	}
}

// smallerPeer sends to a peer with a smaller MTU what other peers take.
func smallerPeer(t *testing.T, nodes []*node) {
	a, b := nodes[1], nodes[3]
	for _, dst := range b.container.Addrs() {
		refused(t, a, dst, b.env.MTU+1, b.env.MTU)
		refused(t, a, dst, a.env.MTU, b.env.MTU)
	}
	p, err := a.status(t).peer(b)
	must(t, err)
	if p.MTU != b.env.MTU {
		t.Errorf("%s says that the MTU to %s is %d, want %d", a, b, p.MTU, b.env.MTU)
	}
}

// refused checks that packets of a size are answered with the MTU.
func refused(t *testing.T, a *node, dst netip.Addr, size, mtu int) {
	t.Helper()
	res, err := a.container.Ping(within(t, 10*time.Second), lab.PingConfig{Dst: dst, Count: 2, Size: size, DontFragment: true, Timeout: 300 * time.Millisecond})
	must(t, err)
	if res.Received != 0 || len(res.Errors) == 0 {
		t.Errorf("%d bytes to %v, want a refusal: %+v", size, dst, res)
	}
	for _, e := range res.Errors {
		if !e.TooBig() || e.MTU != mtu {
			t.Errorf("%d bytes to %v: %+v, want too big and MTU %d", size, dst, e, mtu)
		}
	}
}

func hostsAndContainers(t *testing.T, nodes []*node) {
	for _, a := range nodes[:2] {
		b := nodes[2]
		for _, dst := range b.container.Addrs() { // a host uses its overlay address as source
			pingAll(t, a.Namespace, lab.PingConfig{Dst: dst})
		}
		for _, dst := range []netip.Addr{b.own4(), b.own6()} {
			pingAll(t, a.Namespace, lab.PingConfig{Dst: dst})
			pingAll(t, a.container.Namespace, lab.PingConfig{Dst: dst})
		}
		// Without address translation a container reaches another host over the
		// plain underlay, and the host's answer, from its underlay address, comes
		// back over the overlay.
		for _, dst := range []netip.Addr{b.Addr4(), b.Addr6()} {
			pingAll(t, a.container.Namespace, lab.PingConfig{Dst: dst})
		}
	}
}

// hopLimit checks that a packet loses exactly two hops on its way from
// container to container: one at each host, as if they were routers.
func hopLimit(t *testing.T, nodes []*node) {
	a, b := nodes[0], nodes[1]
	for _, dst := range b.container.Addrs() {
		offset, first, second := 14+8, a.env.Subnet4.Addr(), b.own4() // TTL, RFC 791
		if dst.Is6() {
			offset, first, second = 14+7, a.env.Subnet6.Addr(), b.own6() // hop limit, RFC 8200
		}
		arrived, err := b.container.Capture("eth0", func(p []byte) bool { return echoTo(p, dst) })
		must(t, err)
		pingAll(t, a.container.Namespace, lab.PingConfig{Dst: dst, TTL: 9, Count: 1})
		pingAll(t, a.container.Namespace, lab.PingConfig{Dst: dst, TTL: 3, Count: 1})
		must(t, arrived.Wait(within(t, 5*time.Second), 2))
		arrived.Stop()
		for i, want := range []byte{7, 1} {
			if got := arrived.Packets()[i].Data[offset]; got != want {
				t.Errorf("a packet to %v arrived with %d hops left, want %d", dst, got, want)
			}
		}
		for ttl, from := range map[int]netip.Addr{1: first, 2: second} {
			res, err := a.container.Ping(within(t, 10*time.Second), lab.PingConfig{Dst: dst, TTL: ttl, Count: 1, Timeout: 500 * time.Millisecond})
			must(t, err)
			if len(res.Errors) != 1 || !timeExceeded(res.Errors[0]) || res.Errors[0].From != from {
				t.Errorf("a packet to %v with %d hops: %+v, want time exceeded from %v", dst, ttl, res, from)
			}
		}
	}
}

// timeExceeded tells a "time to live exceeded in transit" (RFC 792 type 11 code
// 0, RFC 4443 type 3 code 0).
func timeExceeded(e lab.ICMPError) bool {
	if e.From.Is4() {
		return e.Type == 11 && e.Code == 0
	}
	return e.Type == 3 && e.Code == 0
}

// echoTo tells whether an Ethernet frame is an echo request to dst.
func echoTo(frame []byte, dst netip.Addr) bool {
	if len(frame) < 14+40+1 {
		return false
	}
	ip := frame[14:]
	if dst.Is4() {
		return ip[0]>>4 == 4 && ip[9] == unix.IPPROTO_ICMP && netip.AddrFrom4([4]byte(ip[16:20])) == dst && ip[int(ip[0]&15)*4] == 8
	}
	return ip[0]>>4 == 6 && ip[6] == unix.IPPROTO_ICMPV6 && netip.AddrFrom16([16]byte(ip[24:40])) == dst && ip[40] == 128
}

// nobodysAddress asks for overlay addresses that no node owns.
func nobodysAddress(t *testing.T, nodes []*node) {
	for _, dst := range []netip.Addr{unowned(t, nodes, network4), unowned(t, nodes, network6)} {
		e := awaitUnreachable(t, 5*time.Second, nodes[0].container.Namespace, dst)
		if want := nodes[0].own4(); dst.Is4() && e.From != want {
			t.Errorf("%v is called unreachable by %v, want %v", dst, e.From, want)
		}
	}
}

// unowned picks an address of the overlay that is in no node's subnet.
func unowned(t *testing.T, nodes []*node, network netip.Prefix) netip.Addr {
	for range 1000 {
		b := network.Addr().AsSlice()
		for i := network.Bits() / 8; i < len(b); i++ {
			b[i] = byte(rand.Uint32())
		}
		a, _ := netip.AddrFromSlice(b)
		owned := false
		for _, n := range nodes {
			owned = owned || n.env.Subnet4.Contains(a) || n.env.Subnet6.Contains(a)
		}
		if !owned {
			return a
		}
	}
	t.Fatalf("%v has no free address", network)
	return netip.Addr{}
}

// datagrams sends streams both ways at a rate that the slowest machine carries.
func datagrams(t *testing.T, nodes []*node) {
	a, b := nodes[1].container, nodes[2].container
	for _, pair := range [][2]netip.Addr{{a.Addr4(), b.Addr4()}, {a.Addr6(), b.Addr6()}} {
		var streams sync.WaitGroup
		stream := func(from, to *lab.Container, dst netip.Addr) {
			streams.Go(func() {
				const count = 4000
				res, err := lab.Flood(within(t, 30*time.Second), lab.FloodConfig{
					From: from.Namespace, To: to.Namespace, Dst: dst, Rate: 2000, Count: count, Size: 600, Linger: time.Second,
				})
				if err != nil || res.Received != count || res.Duplicates+res.Reordered+res.SendErrors != 0 {
					t.Errorf("%d datagrams to %v: %+v, %v", count, dst, res, err)
				}
			})
		}
		stream(a, b, pair[1])
		stream(b, a, pair[0])
		streams.Wait()
	}
}

// quiet checks that a cluster in which nothing went wrong has dropped nothing
// but what every kernel sends by itself and what the tests before provoked.
func quiet(t *testing.T, nodes []*node) {
	expected := map[string]bool{
		"tx_multicast": true, // neighbour and listener discovery of the kernel
		"tx_no_owner":  true, // nobodysAddress
		"tx_too_big":   true, // smallerPeer
		// A new peer's first probe may overtake the gossip that tells of it.
		"rx_unknown_source": true,
	}
	for _, n := range nodes {
		for reason, count := range n.status(t).Drops {
			if count > 0 && !expected[reason] {
				t.Errorf("%s has dropped %d: %s", n, count, reason)
			}
		}
		if w := n.status(t).Node.Warnings; len(w) > 0 {
			t.Errorf("%s warns of %q", n, w)
		}
	}
}

func transfers(t *testing.T, nodes []*node) {
	a, b := nodes[0].container, nodes[1].container
	for dst, size := range map[netip.Addr]int64{b.Addr4(): 300e6, b.Addr6(): 60e6} {
		res, err := lab.Transfer(within(t, 90*time.Second), lab.TransferConfig{From: a.Namespace, To: b.Namespace, Dst: dst, Bytes: size})
		must(t, err)
		if res.Bytes != size || res.SentSHA256 != res.ReceivedSHA256 || res.SentSHA256 == [32]byte{} {
			t.Errorf("to %v: %d of %d bytes, SHA-256 %x sent, %x received", dst, res.Bytes, size, res.SentSHA256, res.ReceivedSHA256)
		}
		t.Logf("%d MB to %v at %.2f Gb/s", size/1e6, dst, res.BitsPerSecond()/1e9)
	}
}

// memory checks what the daemons hold after traffic, with three peers each.
func memory(t *testing.T, nodes []*node) {
	const limit = 40 << 20
	for _, n := range nodes {
		rss, err := residentBytes(n.daemon.PID())
		must(t, err)
		if rss > limit {
			t.Errorf("the daemon of %s has %d MiB resident, want at most %d", n, rss>>20, limit>>20)
		}
		t.Logf("%s: %.1f MiB", n, float64(rss)/(1<<20))
	}
}

// residentBytes reads VmRSS (proc_pid_status(5)).
func residentBytes(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if text, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(text), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("no VmRSS")
}
