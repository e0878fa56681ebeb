package e2e_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// vxlanPort is the port of the vxlan encap and of the kernel's devices here: a
// kernel's device sends to its own port.
const vxlanPort = 8472

// kernelPeer is a host whose overlay is a VXLAN device of the kernel.
type kernelPeer struct {
	*lab.Host
	subnets   []netip.Prefix
	container *lab.Container
}

// address is where a host is reached on the underlay, by IPv4 or IPv6.
func address(h *lab.Host, six bool) netip.Addr {
	if six {
		return h.Addr6()
	}
	return h.Addr4()
}

// subnetsOf are those of host i in the tests with static subnets.
func subnetsOf(i int) []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("100.96.%d.0/24", i)), netip.MustParsePrefix(fmt.Sprintf("fd96:0:0:%d::/64", i))}
}

// bridged are the addresses of a bridge in subnets.
func bridged(subnets []netip.Prefix) (out []netip.Prefix) {
	for _, s := range subnets {
		out = append(out, netip.PrefixFrom(s.Addr().Next(), s.Bits()))
	}
	return out
}

// asKernelPeer makes host i one, with a container.
func asKernelPeer(t *testing.T, h *lab.Host, i int, six bool, cfg lab.VXLANConfig, peers []lab.VTEPPeer) *kernelPeer {
	t.Helper()
	k := &kernelPeer{Host: h, subnets: subnetsOf(i)}
	cfg.Port, cfg.MTU = vxlanPort, 1450
	if six {
		cfg.MTU = 1430
	}
	br, err := h.Bridge(lab.BridgeConfig{Addrs: bridged(k.subnets), MTU: cfg.MTU})
	must(t, err)
	k.container, err = br.Container("c-" + h.Name())
	must(t, err, h.VTEP(address(h, six), cfg, peers), h.FinishChecksums("eth0"))
	return k
}

// staticPeer is the argument that tells a node of a kernel peer.
func (k *kernelPeer) staticPeer(six bool) string {
	return fmt.Sprintf("--static-peer=name=%s,endpoint=%v,subnet=%v,subnet=%v", k.Name(), address(k.Host, six), k.subnets[0], k.subnets[1])
}

// awaitStatic waits until a node reaches a static peer.
func (n *node) awaitStatic(t *testing.T, name string) (found peer) {
	t.Helper()
	labtest.Eventually(t, meshLimit, func() error {
		s, err := n.ask()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(s.Peers, func(p peer) bool { return p.Name == name })
		if i < 0 || s.Peers[i].State != "static" || s.Peers[i].Path != "userspace-vxlan" || s.Peers[i].LastProofMS == nil {
			return fmt.Errorf("%s says: %+v", n, s.Peers)
		}
		found = s.Peers[i]
		return nil
	})
	return found
}

// talk checks what containers can do: ping with packets of full size that may not
// be cut, and TCP, whose hashes are compared.
func talk(t *testing.T, from, to *lab.Container, mtu int) {
	t.Helper()
	for _, dst := range to.Addrs() {
		res, err := from.Ping(within(t, 10*time.Second), lab.PingConfig{Dst: dst, Count: 3, Interval: 10 * time.Millisecond, Size: mtu, DontFragment: true})
		must(t, err)
		if res.Received != 3 {
			t.Errorf("%s to %v with %d bytes: %+v", from.Name(), dst, mtu, res)
		}
		_, err = lab.Transfer(within(t, 30*time.Second), lab.TransferConfig{From: from.Namespace, To: to.Namespace, Dst: dst, Bytes: 3e6})
		must(t, err)
	}
}

// TestKernelPeer: a VXLAN device of the kernel that was told no MAC of ours, and that
// learns nothing, is a peer like any other.
func TestKernelPeer(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		six     bool
		cfg     lab.VXLANConfig
		offload string
		nd      bool // its VTEP is asked for by neighbour discovery
	}{
		{"IPv4", false, lab.VXLANConfig{}, "on", false},
		{"IPv6", true, lab.VXLANConfig{}, "on", true},
		{"without offloads, VNI 77", false, lab.VXLANConfig{VNI: 77}, "off", true},
		{"IPv6 without checksums", true, lab.VXLANConfig{NoChecksum6: true}, "on", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, _, nodes := cluster(t, 2)
			a, subnets := nodes[0], subnetsOf(1)
			k := asKernelPeer(t, nodes[1].Host, 200, tt.six, tt.cfg, []lab.VTEPPeer{{Remote: address(a.Host, tt.six), Subnets: subnets}})
			if tt.nd {
				slices.Reverse(k.subnets) // the first one counts
			}
			a.start(t, "--encap", "vxlan", "--vni", fmt.Sprint(max(tt.cfg.VNI, 1)), "--offload", tt.offload, "--advertise", address(a.Host, tt.six).String(),
				"--subnet", subnets[0].String()+","+subnets[1].String(), k.staticPeer(tt.six))
			a.lease(t)
			a.attach(t)
			p := a.awaitStatic(t, k.Name())
			reason := "its VTEP 100.96.200.0 answers ARP"
			if tt.nd {
				reason = "its VTEP fd96:0:0:200:: answers neighbour discovery"
			}
			if p.PathReason != reason || p.Endpoint != netip.AddrPortFrom(address(k.Host, tt.six), vxlanPort).String() {
				t.Errorf("%+v", p)
			}
			want := 1450
			if tt.six {
				want = 1430
			}
			if p.MTU != want || a.env.MTU != want {
				t.Errorf("MTU %d, of the node %d, want %d", p.MTU, a.env.MTU, want)
			}
			talk(t, a.container, k.container, want)
			talk(t, k.container, a.container, want)
			// The hosts themselves, whose address is the VTEP's.
			for _, dst := range subnets {
				res, err := k.Ping(within(t, 10*time.Second), lab.PingConfig{Dst: dst.Addr(), Count: 2, Interval: 10 * time.Millisecond})
				must(t, err)
				if res.Received != 2 {
					t.Errorf("host to %v: %+v", dst.Addr(), res)
				}
			}
			if out, stderr, code := a.overlaydCommand(t, "ping", k.Name(), "--count", "2"); code != 0 {
				t.Errorf("ping: %s%s", out, stderr)
			}
			began, proofs := time.Now(), 0 // asked directly by now, and answered each time
			labtest.Eventually(t, 20*time.Second, func() error {
				if p := a.awaitStatic(t, k.Name()); *p.LastProofMS > 2500 {
					t.Fatalf("the last answer came %d ms ago", *p.LastProofMS)
				}
				if proofs++; time.Since(began) < 5*time.Second {
					return errNotYet
				}
				return nil
			})
			for reason, n := range a.status(t).Drops {
				// Kernels send multicast by themselves, also before the peer is known.
				if n > 0 && !slices.Contains([]string{"tx_multicast", "rx_multicast", "rx_unknown_source"}, reason) {
					t.Errorf("%d dropped as %s", n, reason)
				}
			}
		})
	}
}

// TestKernelPeersMixed: three VXLAN devices of the kernel and three nodes on one
// switch; everybody reaches everybody.
func TestKernelPeersMixed(t *testing.T) {
	t.Parallel()
	_, _, nodes := cluster(t, 6)
	var all []lab.VTEPPeer
	for i, n := range nodes {
		all = append(all, lab.VTEPPeer{Remote: n.Addr4(), Subnets: subnetsOf(i + 1)})
	}
	others := func(i int) []lab.VTEPPeer { return slices.Delete(slices.Clone(all), i, i+1) }
	var kernels []*kernelPeer
	args := []string{"--encap", "vxlan"}
	for i, n := range nodes[3:] {
		k := asKernelPeer(t, n.Host, i+4, false, lab.VXLANConfig{}, others(i+3))
		kernels = append(kernels, k)
		args = append(args, k.staticPeer(false))
	}
	nodes = nodes[:3]
	for i, n := range nodes {
		own := append(slices.Clone(args), "--subnet", all[i].Subnets[0].String()+","+all[i].Subnets[1].String())
		if i > 0 {
			own = append(own, "--join", nodes[0].Addr4().String())
		}
		n.start(t, own...)
	}
	var containers []*lab.Container
	for _, n := range nodes {
		n.lease(t)
		n.attach(t)
		containers = append(containers, n.container)
	}
	for _, n := range nodes {
		for _, k := range kernels {
			n.awaitStatic(t, k.Name())
		}
		for _, other := range nodes {
			if other != n {
				n.awaitPeer(t, meshLimit, other, "alive by vxlan", func(p peer) bool {
					return p.State == "alive" && p.Path == "userspace-vxlan" && p.LastProofMS != nil
				})
			}
		}
	}
	for _, k := range kernels {
		containers = append(containers, k.container)
	}
	for i, from := range containers {
		for j, to := range containers {
			if i != j && (i < 3 || j < 3) { // the kernel's own way needs no test
				talk(t, from, to, 1430) // the nodes have IPv6 endpoints as well
			}
		}
	}
}

// TestStaticPeerPathMTU: towards a peer that answers no probes, what a router says of
// the size of packets counts.
func TestStaticPeerPathMTU(t *testing.T) {
	t.Parallel()
	router, nodes := routedHosts(t)
	a, subnets := nodes[0], subnetsOf(1)
	k := asKernelPeer(t, nodes[1].Host, 200, false, lab.VXLANConfig{}, []lab.VTEPPeer{{Remote: a.Addr4(), Subnets: subnets}})
	a.start(t, "--encap", "vxlan", "--subnet", subnets[0].String()+","+subnets[1].String(), k.staticPeer(false))
	a.lease(t)
	a.attach(t)
	a.awaitStatic(t, k.Name())
	talk(t, a.container, k.container, 1430)
	must(t, router.SetMTU("eth1", 1350))
	for _, dst := range k.container.Addrs() {
		_, err := lab.Transfer(within(t, 30*time.Second), lab.TransferConfig{From: a.container.Namespace, To: k.container.Namespace, Dst: dst, Bytes: 3e6})
		must(t, err)
	}
	if mtu, reason := peerMTU(t, a); mtu != 1300 {
		t.Errorf("the MTU is %d (%s)", mtu, reason)
	}
	talk(t, a.container, k.container, 1300)
}

// TestVXLANAlone: where nothing but gossip and VXLAN may pass, that is enough.
func TestVXLANAlone(t *testing.T) {
	t.Parallel()
	_, sw, nodes := cluster(t, 2)
	must(t, sw.Block(lab.Match{Proto: "udp", Port: 8285}))
	for i, n := range nodes {
		args := []string{"--encap", "vxlan", "--vxlan-port", "4790"}
		if i > 0 {
			args = append(args, "--join", nodes[0].Addr4().String())
		}
		n.start(t, args...)
	}
	for _, n := range nodes {
		n.lease(t)
		n.attach(t)
	}
	awaitMesh(t, nodes...)
	data, err := nodes[0].Count(lab.Match{Proto: "udp", Port: 4790}, lab.Out)
	must(t, err)
	talk(t, nodes[0].container, nodes[1].container, nodes[0].env.MTU)
	if n, _, err := data.Read(); n < 100 || err != nil {
		t.Errorf("%d datagrams went to the port: %v", n, err)
	}
}

// TestVXLANSourcePorts: the outer source port tells inner flows apart, and stays the
// same for each.
func TestVXLANSourcePorts(t *testing.T) {
	t.Parallel()
	a, f := forged(t)
	c, err := a.Capture("eth0", func(p []byte) bool { return bytes.Contains(p, []byte("vxlan-flow")) })
	must(t, err)
	defer c.Stop()
	const flows, each = 64, 3
	dst := netip.AddrPortFrom(f.inner, 9)
	for i := range flows {
		out, err := a.container.ListenUDP(netip.AddrPortFrom(a.container.Addr4(), uint16(20000+i)))
		must(t, err)
		defer out.Close()
		for range each {
			_, err := out.WriteToUDPAddrPort(fmt.Appendf(nil, "vxlan-flow %2d", i), dst)
			must(t, err)
		}
	}
	var ports map[uint16]int
	var byFlow map[string]uint16
	labtest.Eventually(t, 10*time.Second, func() error {
		ports, byFlow = map[uint16]int{}, map[string]uint16{}
		for _, p := range c.Packets() { // some of which the kernel cuts later than here
			udp := p.Data[14+20:]
			port := binary.BigEndian.Uint16(udp)
			for _, rest := range bytes.Split(udp, []byte("vxlan-flow "))[1:] {
				flow := string(rest[:2])
				if was, ok := byFlow[flow]; ok && was != port {
					t.Fatalf("flow %s comes from the ports %d and %d", flow, was, port)
				}
				byFlow[flow] = port
				ports[port]++
			}
		}
		if len(byFlow) < flows {
			return fmt.Errorf("%d flows were seen", len(byFlow))
		}
		return nil
	})
	if len(ports) < 8 || ports[vxlanPort] > 0 {
		t.Errorf("%d flows come from the ports %v", flows, ports)
	}
}

// TestVXLANHostileNeighbors: spoofed ARP and neighbour discovery, floods of it, and a
// stranger's frames change nothing, and the log stays quiet.
func TestVXLANHostileNeighbors(t *testing.T) {
	t.Parallel()
	_, _, nodes := cluster(t, 4)
	a, subnets := nodes[0], subnetsOf(1)
	peers := []lab.VTEPPeer{{Remote: a.Addr4(), Subnets: subnets}}
	k1 := asKernelPeer(t, nodes[1].Host, 200, false, lab.VXLANConfig{}, peers)
	k2 := asKernelPeer(t, nodes[2].Host, 201, false, lab.VXLANConfig{}, peers)
	stranger := nodes[3].Host
	a.start(t, "--encap", "vxlan", "--subnet", subnets[0].String()+","+subnets[1].String(), k1.staticPeer(false), k2.staticPeer(false))
	a.lease(t)
	a.attach(t)
	a.awaitStatic(t, k1.Name())
	a.awaitStatic(t, k2.Name())
	own, err := net.ParseMAC(a.status(t).Node.VTEPMAC)
	must(t, err)

	arp := func(op uint16, sender, target netip.Addr, to net.HardwareAddr) []byte {
		return serialized(t, &layers.VXLAN{ValidIDFlag: true, VNI: 1}, &layers.Ethernet{SrcMAC: forgerMAC, DstMAC: to, EthernetType: layers.EthernetTypeARP},
			&layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: op,
				SourceHwAddress: forgerMAC, SourceProtAddress: sender.AsSlice(), DstHwAddress: own, DstProtAddress: target.AsSlice()})
	}
	all := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	vtep1, vtep2, ours := k1.subnets[0].Addr(), k2.subnets[0].Addr(), subnets[0].Addr()
	evil := [][]byte{
		arp(layers.ARPReply, vtep2, ours, own),    // k2 is where I am
		arp(layers.ARPReply, ours, ours, all),     // so are you
		arp(layers.ARPRequest, vtep2, vtep2, all), // gratuitous
		arp(layers.ARPReply, vtep2, vtep2, all),   // the same
		arp(layers.ARPRequest, vtep2, ours, all),  // k2 asks
		arp(layers.ARPRequest, vtep1, ours, own),  // in a flood
		arp(layers.ARPRequest, a.container.Addr4(), ours, own),
	}
	skip, began := len(a.log(t)), time.Now()
	flood := make(chan error, 2)
	const floods = 20000
	for _, from := range []*lab.Host{k1.Host, stranger} {
		go func() {
			c, err := from.ListenUDP(netip.AddrPortFrom(from.Addr4(), 0))
			for i := 0; err == nil && i < floods; i++ {
				_, err = c.WriteToUDPAddrPort(evil[i%len(evil)], netip.AddrPortFrom(a.Addr4(), vxlanPort))
			}
			if c != nil {
				c.Close()
			}
			flood <- err
		}()
	}
	must(t, <-flood, <-flood)
	for _, k := range []*kernelPeer{k1, k2} {
		talk(t, a.container, k.container, 1430)
		talk(t, k.container, a.container, 1430)
	}
	labtest.Eventually(t, 10*time.Second, func() error { // the kernel's counts come each second
		d := a.status(t).Drops
		for _, reason := range []string{"neighbor_unsolicited", "neighbor_spoofed", "neighbor_not_ours", "neighbor_queue_full", "rx_unknown_source"} {
			if d[reason] == 0 {
				return fmt.Errorf("nothing is counted as %s: %v", reason, d)
			}
		}
		return nil
	})
	log := a.log(t)[skip:]
	if strings.Contains(log, "peer-down") {
		t.Error("a peer went down")
	}
	lines, limit := map[string]int{}, int(time.Since(began).Seconds())+2
	for line := range strings.Lines(log) {
		if _, reason, ok := strings.Cut(line, "packets dropped\" reason="); ok {
			lines[strings.Fields(reason)[0]]++
		}
	}
	for reason, n := range lines {
		if n > limit {
			t.Errorf("%d lines in the log about %s", n, reason)
		}
	}
}
