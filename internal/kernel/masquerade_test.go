package kernel_test

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

func masquerade() kernel.Masquerade {
	return kernel.Masquerade{Device: "overlay0", Own: ownNets, Networks: overlay, Ports: []uint16{8285, 8472, 4789},
		Peers: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:9999"), netip.MustParseAddrPort("[2001:db8::2]:9999"),
			netip.MustParseAddrPort("192.0.2.3:0"), netip.MustParseAddrPort("224.0.0.1:5000"), {}}}
}

func (x *host) masqueradeStands(want bool) {
	x.Helper()
	stands, err := x.k.CheckMasquerade()
	x.ok(err)
	if stands != want {
		x.Errorf("the masquerade stands: %v, want %v", stands, want)
	}
}

// tables are the names of all nftables tables.
func (x *host) tables() (names []string) {
	x.Helper()
	conn, err := nftables.New() // on this thread: in this namespace
	x.ok(err)
	all, err := conn.ListTables()
	x.ok(err)
	for _, table := range all {
		names = append(names, table.Name)
	}
	slices.Sort(names)
	return names
}

func TestMasqueradeStands(t *testing.T) {
	x := newHost(t)
	x.masqueradeStands(false)
	x.ok(x.k.SetMasquerade(masquerade()))
	x.masqueradeStands(true)
	// A guard beside it, which is made anew at any time, and foreign tables.
	x.ok(x.k.SetGuard(guardOf(), false))
	x.addDropPolicy()
	x.masqueradeStands(true)
	g := guardOf(guardPeer(2))
	g.VNI = 7
	x.ok(x.k.SetGuard(g, false))
	x.masqueradeStands(true)
	x.guardStands(true)

	gen, err := x.k.RulesetGeneration()
	x.ok(err)
	x.ok(x.k.SetMasquerade(masquerade()))
	if now, err := x.k.RulesetGeneration(); err != nil || now != gen {
		t.Errorf("what stands was made anew: generation %d, then %d, %v", gen, now, err)
	}

	// What somebody else does to it is seen, and put right.
	conn, err := nftables.New()
	x.ok(err)
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "overlayd-overlay0/nat"}
	chain := &nftables.Chain{Table: table, Name: "postrouting"}
	for name, harm := range map[string]func(){
		"flushed chain": func() { conn.FlushChain(chain) },
		"another rule":  func() { conn.InsertRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Masq{}}}) },
		"deleted":       func() { conn.DelTable(table) },
	} {
		harm()
		x.ok(conn.Flush())
		if stands, err := x.k.CheckMasquerade(); stands || err != nil {
			t.Errorf("%s: it stands: %v, %v", name, stands, err)
		}
		x.ok(x.k.SetMasquerade(masquerade()))
		x.masqueradeStands(true)
	}

	removed, err := x.k.RemoveMasquerade("overlay0")
	if err != nil || !slices.Equal(removed, []string{"nftables table inet overlayd-overlay0/nat"}) {
		t.Errorf("removed %q, %v", removed, err)
	}
	x.masqueradeStands(false)
	if got, want := x.tables(), []string{"filter", "overlayd-overlay0"}; !slices.Equal(got, want) {
		t.Errorf("what is left: %q, want %q", got, want)
	}
	if removed, err := x.k.RemoveMasquerade("overlay0"); err != nil || len(removed) != 0 {
		t.Errorf("the second time: %q, %v", removed, err)
	}

	x.ok(x.k.SetMasquerade(masquerade()))
	removed, err = x.k.Cleanup("overlay0")
	if err != nil || !slices.Contains(removed, "nftables table inet overlayd-overlay0/nat") {
		t.Errorf("a cleanup removes %q, %v", removed, err)
	}
	if got := x.tables(); !slices.Equal(got, []string{"filter"}) {
		t.Errorf("after a cleanup there are %q", got)
	}
}

func TestMasqueradeRefused(t *testing.T) {
	x := newHost(t)
	for name, spoil := range map[string]func(*kernel.Masquerade){
		"no device":     func(m *kernel.Masquerade) { m.Device = "" },
		"no network":    func(m *kernel.Masquerade) { m.Networks = nil },
		"a port of 0":   func(m *kernel.Masquerade) { m.Ports = []uint16{8285, 0} },
		"a bad prefix":  func(m *kernel.Masquerade) { m.Own = []netip.Prefix{{}} },
		"a mixed-up v4": func(m *kernel.Masquerade) { m.Networks = prefixes("::ffff:100.96.0.0/112") },
	} {
		m := masquerade()
		spoil(&m)
		if err := x.k.SetMasquerade(m); !errors.Is(err, kernel.ErrNoMasquerade) {
			t.Errorf("%s: %v", name, err)
		}
	}
	x.masqueradeStands(false)
	x.ok(x.k.Close())
	if err := x.k.SetMasquerade(masquerade()); !errors.Is(err, kernel.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// TestMasquerade: what containers send beyond the overlay has the host's address, and
// the answers reach them; nothing else is touched.
func TestMasquerade(t *testing.T) {
	t.Parallel()
	_, _, hosts := labtest.Hosts(t, 3)
	host1, host2, outside := hosts[0], hosts[1], hosts[2] // outside has no route to the overlay
	var containers []*lab.Container
	for i, h := range hosts[:2] {
		nets := [][]netip.Prefix{prefixes("100.96.1.1/24", "fd96:0:0:1::1/64"), prefixes("100.96.2.1/24", "fd96:0:0:2::1/64")}
		br, err := h.Bridge(lab.BridgeConfig{Addrs: nets[i]})
		ok(t, err)
		for _, name := range [][]string{{"c1", "c1b"}, {"c2"}}[i] {
			c, err := br.Container(name)
			ok(t, err)
			containers = append(containers, c)
		}
		other := hosts[1-i] // as by a direct path
		for _, p := range nets[1-i] {
			via := other.Addr4()
			if p.Addr().Is6() {
				via = other.Addr6()
			}
			ok(t, h.AddRoute(p, via))
		}
	}
	c1, c1b, c2 := containers[0], containers[1], containers[2]
	before, err := host1.State()
	ok(t, err)
	var k *kernel.Kernel
	ok(t, host1.Do(func() (err error) {
		k, err = kernel.Open(kernel.Config{Logger: labtest.Logger(t)})
		return err
	}))
	defer k.Close()
	ok(t, k.SetMasquerade(masquerade()))

	type addresses interface {
		Addr4() netip.Addr
		Addr6() netip.Addr
	}
	for _, of := range []func(addresses) netip.Addr{addresses.Addr4, addresses.Addr6} {
		for _, tt := range []struct {
			name     string
			from, to *lab.Namespace
			dst      netip.Addr
			port     uint16
			want     netip.Addr
		}{
			{"to the outside", c1.Namespace, outside.Namespace, of(outside), 5000, of(host1)},
			{"to another host", c1.Namespace, host2.Namespace, of(host2), 5000, of(host1)},
			{"to a container of another host", c1.Namespace, c2.Namespace, of(c2), 5000, of(c1)},
			{"from a container of another host", c2.Namespace, c1.Namespace, of(c1), 5000, of(c2)},
			{"to a container beside it", c1.Namespace, c1b.Namespace, of(c1b), 5000, of(c1)},
			{"to its own host", c1.Namespace, host1.Namespace, of(host1), 5000, of(c1)},
			{"from the host", host1.Namespace, outside.Namespace, of(outside), 5000, of(host1)},
			{"to another host's overlay port", c1.Namespace, host2.Namespace, of(host2), 8285, of(c1)},
			{"to its unusual overlay port", c1.Namespace, host2.Namespace, of(host2), 9999, of(c1)},
			{"to such a port outside", c1.Namespace, outside.Namespace, of(outside), 9999, of(host1)},
		} {
			seen, err := lab.Ask(t.Context(), tt.from, tt.to, netip.AddrPortFrom(tt.dst, tt.port))
			if err != nil || seen.Addr() != tt.want {
				t.Errorf("%s (%v): the source seen is %v, want %v; %v", tt.name, tt.dst, seen, tt.want, err)
			}
		}
		for _, to := range []*lab.Namespace{outside.Namespace, c2.Namespace} {
			dst := of(outside)
			if to == c2.Namespace {
				dst = of(c2)
			}
			if _, err := lab.Transfer(t.Context(), lab.TransferConfig{From: c1.Namespace, To: to, Dst: dst}); err != nil {
				t.Error(err)
			}
		}
	}

	// What is for all on the bridge, whose packets the kernel shows to nftables as if they
	// were routed (br_netfilter).
	for _, group := range addrs("224.0.0.251", "255.255.255.255", "ff02::fb") {
		var ear, mouth *net.UDPConn
		ok(t, c1b.Do(func() (err error) {
			if !group.IsMulticast() {
				ear, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 5353})
				return err
			}
			eth, err := net.InterfaceByName("eth0")
			if err == nil {
				ear, err = net.ListenMulticastUDP("udp", eth, &net.UDPAddr{IP: group.AsSlice(), Port: 5353})
			}
			return err
		}))
		from := c1.Addr4()
		if group.Is6() {
			from = c1.Addr6()
		}
		ok(t, c1.Do(func() error {
			eth, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			if group.Is6() { // package net would remember a name's index, of whatever namespace
				group = group.WithZone(strconv.Itoa(eth.Index))
			}
			mouth, err = net.DialUDP("udp", &net.UDPAddr{IP: from.AsSlice()}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(group, 5353)))
			return err
		}))
		_, err := mouth.Write([]byte("to all"))
		ok(t, err)
		ok(t, ear.SetDeadline(time.Now().Add(10*time.Second)))
		_, seen, err := ear.ReadFromUDPAddrPort(make([]byte, 64))
		if err != nil || seen.Addr().Unmap() != from {
			t.Errorf("to %v: the source seen is %v, want %v; %v", group, seen, from, err)
		}
		ear.Close()
		mouth.Close()
	}

	// What the host says to itself from its address in the overlay.
	for _, addr := range [][2]netip.Addr{{netip.MustParseAddr("100.96.1.1"), host1.Addr4()}, {netip.MustParseAddr("fd96:0:0:1::1"), host1.Addr6()}} {
		ear, err := host1.ListenUDP(netip.AddrPortFrom(addr[1], 5000))
		ok(t, err)
		mouth, err := host1.ListenUDP(netip.AddrPortFrom(addr[0], 0))
		ok(t, err)
		_, err = mouth.WriteToUDPAddrPort([]byte("question"), netip.AddrPortFrom(addr[1], 5000))
		ok(t, err)
		ok(t, ear.SetDeadline(time.Now().Add(10*time.Second)))
		_, from, err := ear.ReadFromUDPAddrPort(make([]byte, 64))
		if want := mouth.LocalAddr().(*net.UDPAddr).AddrPort(); err != nil || from != want {
			t.Errorf("on the host itself the source seen is %v, want %v; %v", from, want, err)
		}
		ear.Close()
		mouth.Close()
	}

	// A connection goes on under the same source when the table is made anew, and also
	// when somebody has taken it away for a while.
	ear, err := outside.ListenUDP(netip.AddrPortFrom(outside.Addr4(), 6000))
	ok(t, err)
	defer ear.Close()
	going, err := c1.Dial(t.Context(), "udp", netip.AddrPortFrom(outside.Addr4(), 6000))
	ok(t, err)
	defer going.Close()
	ok(t, ear.SetDeadline(time.Now().Add(10*time.Second)))
	seen := func() netip.AddrPort {
		t.Helper()
		_, err := going.Write([]byte("data"))
		ok(t, err)
		_, from, err := ear.ReadFromUDPAddrPort(make([]byte, 64))
		ok(t, err)
		return from
	}
	first := seen()
	changed := masquerade()
	changed.Ports = append(changed.Ports, 9998)
	ok(t, k.SetMasquerade(changed))
	if now := seen(); now != first || now.Addr().Unmap() != host1.Addr4() {
		t.Errorf("behind a new table the source is %v, was %v", now, first)
	}
	ok(t, host1.FlushRuleset("overlayd-"))
	ok(t, k.SetMasquerade(changed))
	if now := seen(); now != first {
		t.Errorf("behind a repaired table the source is %v, was %v", now, first)
	}

	// What leaves by a device of the overlay stays as it is, whatever its destination.
	ok(t, host1.Do(func() error { (&host{T: t}).tun("overlay0", unix.IFF_TUN); return nil }))
	ok(t, host1.SetUp("overlay0", true))
	ok(t, host1.AddRouteDev(netip.MustParsePrefix("203.0.113.0/24"), "overlay0"))
	source := func(p []byte) bool { return len(p) >= 20 && p[0]>>4 == 4 && [4]byte(p[12:16]) == c1.Addr4().As4() }
	left, err := host1.Capture("overlay0", source)
	ok(t, err)
	conn, err := c1.Dial(t.Context(), "udp", netip.MustParseAddrPort("203.0.113.1:5000"))
	ok(t, err)
	defer conn.Close()
	labtest.Eventually(t, 5*time.Second, func() error {
		if _, err := conn.Write([]byte("question")); err != nil {
			return err
		}
		if left.Count() == 0 {
			return errors.New("nothing has left by overlay0 with the container's address")
		}
		return nil
	})
	ok(t, host1.DeleteLink("overlay0"))

	_, err = k.RemoveMasquerade("overlay0")
	ok(t, err)
	after, err := host1.State()
	ok(t, err)
	if !slices.Equal(before, after) {
		t.Errorf("the host was %q, and is %q", before, after)
	}
}

// TestMasqueradePublished: who reaches a container by a port that its host forwards to it
// is seen by the container as who he is, from the overlay and from elsewhere.
func TestMasqueradePublished(t *testing.T) {
	t.Parallel()
	_, _, hosts := labtest.Hosts(t, 3)
	host1, host2, outside := hosts[0], hosts[1], hosts[2]
	var containers []*lab.Container
	for i, nets := range [][]netip.Prefix{prefixes("100.96.1.1/24"), prefixes("100.96.2.1/24")} {
		br, err := hosts[i].Bridge(lab.BridgeConfig{Addrs: nets})
		ok(t, err)
		for _, name := range [][]string{{"c1", "c1b"}, {"c2"}}[i] {
			c, err := br.Container(name)
			ok(t, err)
			containers = append(containers, c)
		}
		ok(t, hosts[1-i].AddRoute(nets[0], hosts[i].Addr4()))
	}
	c1, c1b, c2 := containers[0], containers[1], containers[2]
	k := openBeside(t, host1.Namespace, func(conn *nftables.Conn) {
		table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"})
		chain := conn.AddChain(&nftables.Chain{Name: "PREROUTING", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{8080 >> 8, 8080 & 0xff}},
			&expr.Immediate{Register: 1, Data: c1.Addr4().AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
		}})
	})
	ok(t, k.SetMasquerade(masquerade()))
	ear, err := c1.ListenUDP(netip.AddrPortFrom(c1.Addr4(), 8080))
	ok(t, err)
	defer ear.Close()
	ok(t, ear.SetDeadline(time.Now().Add(10*time.Second)))
	for _, tt := range []struct {
		from     *lab.Namespace
		to, want netip.Addr
	}{
		{c2.Namespace, netip.MustParseAddr("100.96.1.1"), c2.Addr4()}, {host2.Namespace, host1.Addr4(), host2.Addr4()},
		{outside.Namespace, host1.Addr4(), outside.Addr4()}, {c1b.Namespace, netip.MustParseAddr("100.96.1.1"), c1b.Addr4()},
	} {
		conn, err := tt.from.Dial(t.Context(), "udp", netip.AddrPortFrom(tt.to, 8080))
		ok(t, err)
		defer conn.Close()
		_, err = conn.Write([]byte("question"))
		ok(t, err)
		b := make([]byte, 64)
		_, from, err := ear.ReadFromUDPAddrPort(b)
		if err != nil || from.Addr().Unmap() != tt.want {
			t.Fatalf("%s by the port at %v: the source seen is %v, want %v; %v", tt.from, tt.to, from, tt.want, err)
		}
		_, err = ear.WriteToUDPAddrPort([]byte("answer"), from)
		ok(t, err)
		ok(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
		if _, err := conn.Read(b); err != nil {
			t.Errorf("%s by the port at %v: no answer: %v", tt.from, tt.to, err)
		}
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// openBeside opens a Kernel, until the test ends, where somebody else has made rules.
func openBeside(t *testing.T, at *lab.Namespace, rules func(*nftables.Conn)) (k *kernel.Kernel) {
	t.Helper()
	ok(t, at.Do(func() (err error) {
		if k, err = kernel.Open(kernel.Config{Logger: labtest.Logger(t)}); err != nil {
			return err
		}
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		rules(conn)
		return conn.Flush()
	}))
	t.Cleanup(func() { k.Close() })
	return k
}
