package lab_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

func TestCutAndRestore(t *testing.T) {
	_, _, hosts := labtest.Hosts(t, 2)
	for _, dst := range []netip.Addr{hosts[1].Addr4(), hosts[1].Addr6()} {
		if got := ping(t, hosts[0].Namespace, dst); got != 5 {
			t.Fatalf("before the cut %d of 5 arrive at %v", got, dst)
		}
	}
	must(t, hosts[1].Cut())
	if got := ping(t, hosts[0].Namespace, hosts[1].Addr4()); got != 0 {
		t.Fatalf("after the cut %d of 5 arrive", got)
	}
	must(t, hosts[1].Restore())
	for _, dst := range []netip.Addr{hosts[1].Addr4(), hosts[1].Addr6()} {
		labtest.Eventually(t, 5*time.Second, func() error {
			if got := ping(t, hosts[0].Namespace, dst); got != 5 {
				return fmt.Errorf("after the repair %d of 5 arrive at %v", got, dst)
			}
			return nil
		})
	}
}

func TestPartitionAndHeal(t *testing.T) {
	l, _, hosts := labtest.Hosts(t, 4)
	// reach tells who reaches whom, one row per sender.
	reach := func(is func(h *lab.Host) netip.Addr) string {
		rows := make([][]byte, len(hosts))
		var all sync.WaitGroup
		for i, a := range hosts {
			rows[i] = make([]byte, len(hosts))
			for j, b := range hosts {
				all.Go(func() {
					res, err := a.Ping(t.Context(), lab.PingConfig{Dst: is(b), Timeout: 300 * time.Millisecond})
					if err != nil {
						t.Error(err)
					}
					rows[i][j] = "0??1"[res.Received]
				})
			}
		}
		all.Wait()
		return string(bytes.Join(rows, []byte(" ")))
	}
	check := func(step, want string) {
		t.Helper()
		for name, is := range map[string]func(*lab.Host) netip.Addr{"IPv4": (*lab.Host).Addr4, "IPv6": (*lab.Host).Addr6} {
			// A neighbour that did not answer is asked again only after a second.
			labtest.Eventually(t, 10*time.Second, func() error {
				if got := reach(is); got != want {
					return fmt.Errorf("%s, %s: %s, want %s", step, name, got, want)
				}
				return nil
			})
		}
	}
	must(t, l.Partition(hosts[:2], hosts[2:]))
	check("partition", "1100 1100 0011 0011")
	must(t, l.Partition(hosts[:1], hosts[1:2]))
	check("second partition", "1000 0100 0011 0011")
	must(t, l.Heal())
	check("healed", "1111 1111 1111 1111")
	must(t, l.Heal()) // healing what is whole is no error
}

func TestDropBetweenIsOneWay(t *testing.T) {
	l, _, hosts := labtest.Hosts(t, 2)
	// ARP needs both ways: let the neighbours get to know each other first.
	if got := ping(t, hosts[0].Namespace, hosts[1].Addr4()); got != 5 {
		t.Fatalf("before the fault %d of 5 arrive", got)
	}
	must(t, l.DropBetween(hosts[:1], hosts[1:]))
	count := func(to *lab.Host) *lab.Counter {
		k, err := to.Count(lab.Match{Proto: "udp", Port: 7}, lab.In)
		must(t, err)
		return k
	}
	k0, k1 := count(hosts[0]), count(hosts[1])
	for _, x := range []struct {
		from, to *lab.Host
	}{{hosts[0], hosts[1]}, {hosts[1], hosts[0]}} {
		_, err := lab.Flood(deadline(t, 5*time.Second), lab.FloodConfig{From: x.from.Namespace, To: x.to.Namespace, Dst: x.to.Addr4(), Port: 7, Count: 5, Linger: 100 * time.Millisecond})
		must(t, err)
	}
	n1, _, err := k1.Read()
	must(t, err)
	if n1 != 0 {
		t.Errorf("%d datagrams came through", n1)
	}
	n0, size, err := k0.Read()
	must(t, err)
	if n0 != 5 || size != 5*(20+8+64) {
		t.Errorf("%d datagrams, %d bytes counted", n0, size)
	}
	must(t, k0.Close())
	if _, _, err := k0.Read(); err == nil {
		t.Error("a closed counter can be read")
	}
}

func TestBlock(t *testing.T) {
	_, sw, hosts := labtest.Hosts(t, 2)
	flood := func(from, to int, port uint16, v6 bool) lab.FloodResult {
		t.Helper()
		dst := hosts[to].Addr4()
		if v6 {
			dst = hosts[to].Addr6()
		}
		res, err := lab.Flood(deadline(t, 5*time.Second), lab.FloodConfig{From: hosts[from].Namespace, To: hosts[to].Namespace, Dst: dst, Port: port, Count: 20, Linger: 150 * time.Millisecond})
		must(t, err)
		return res
	}
	type way struct {
		block, unblock func() error
	}
	udp := lab.Match{Proto: "udp", Port: 8285}
	for name, w := range map[string]way{
		"host in":  {func() error { return hosts[1].Block(udp, lab.In) }, hosts[1].Unblock},
		"host out": {func() error { return hosts[0].Block(udp, lab.Out) }, hosts[0].Unblock},
		"switch":   {func() error { return sw.Block(udp) }, sw.Unblock},
		"switch by address": {func() error {
			return errors.Join(
				sw.Block(lab.Match{Proto: "udp", Port: 8285, Src: netip.PrefixFrom(hosts[0].Addr4(), 32)}),
				sw.Block(lab.Match{Proto: "udp", Port: 8285, Dst: netip.PrefixFrom(hosts[1].Addr6(), 128)}))
		}, sw.Unblock},
	} {
		must(t, w.block())
		for _, v6 := range []bool{false, true} {
			if res := flood(0, 1, 8285, v6); res.Received != 0 || (name == "host out") != (res.SendErrors == 20) {
				t.Errorf("%s, IPv6 %v: %+v", name, v6, res)
			}
			if res := flood(0, 1, 8286, v6); res.Received != 20 {
				t.Errorf("%s, IPv6 %v, other port: %+v", name, v6, res)
			}
		}
		if name != "switch" {
			if res := flood(1, 0, 8285, false); res.Received != 20 {
				t.Errorf("%s, other direction: %+v", name, res)
			}
		}
		must(t, w.unblock())
		if res := flood(0, 1, 8285, false); res.Received != 20 {
			t.Errorf("%s, after unblocking: %+v", name, res)
		}
	}
	for _, bad := range []lab.Match{
		{Proto: "sctp"}, {Port: 1}, {Proto: "icmp", Port: 1},
		{Src: netip.MustParsePrefix("::/0"), Dst: netip.MustParsePrefix("0.0.0.0/0")},
	} {
		if hosts[0].Block(bad, lab.In) == nil || sw.Block(bad) == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

func TestRouterWithSmallLink(t *testing.T) {
	l, sw, hosts := labtest.Hosts(t, 1)
	far, err := l.Switch("far", lab.SwitchConfig{})
	must(t, err)
	router, err := sw.Host("router", lab.PortConfig{})
	must(t, err)
	_, err = router.Attach(far, lab.PortConfig{MTU: 1400})
	must(t, err)
	remote, err := far.Host("remote", lab.PortConfig{})
	must(t, err)
	a, r := hosts[0], router.Ports()
	must(t,
		a.AddRoute(far.Net4(), r[0].Addrs()[0].Addr()), a.AddRoute(far.Net6(), r[0].Addrs()[1].Addr()),
		remote.AddRoute(sw.Net4(), r[1].Addrs()[0].Addr()), remote.AddRoute(sw.Net6(), r[1].Addrs()[1].Addr()))
	for _, dst := range []netip.Addr{remote.Addr4(), remote.Addr6()} {
		for size, want := range map[int]int{1400: 3, 1500: 0} {
			res, err := a.Ping(deadline(t, 5*time.Second), lab.PingConfig{Dst: dst, Size: size, DontFragment: true, Timeout: 200 * time.Millisecond})
			must(t, err)
			if res.Received != want {
				t.Errorf("%d bytes to %v: %+v", size, dst, res)
			}
		}
	}
}
