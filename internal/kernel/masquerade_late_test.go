package kernel_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// TestMasqueradeLate: what a container has begun while nothing was masqueraded, because
// somebody has flushed the rules, say, is masqueraded as soon as the rules are there,
// also where somebody else tracks connections. What works goes on as it is.
func TestMasqueradeLate(t *testing.T) {
	t.Parallel()
	_, _, hosts := labtest.Hosts(t, 3)
	host1, friend, outside := hosts[0], hosts[1], hosts[2]
	br, err := host1.Bridge(lab.BridgeConfig{Addrs: prefixes("100.96.1.1/24", "fd96:0:0:1::1/64")})
	ok(t, err)
	c1, err := br.Container("c1")
	ok(t, err)
	ok(t, friend.AddRoute(netip.MustParsePrefix("100.96.1.0/24"), host1.Addr4())) // a way back
	k := openBeside(t, host1.Namespace, func(conn *nftables.Conn) {
		table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "tracker"})
		c := conn.AddChain(&nftables.Chain{Name: "c", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
		conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: append(established(), &expr.Verdict{Kind: expr.VerdictAccept})})
	})

	// UDP that goes on for ever, from one port.
	var flows []func() netip.Addr
	for _, dst := range []netip.Addr{outside.Addr4(), outside.Addr6()} {
		ear, err := outside.ListenUDP(netip.AddrPortFrom(dst, 5000))
		ok(t, err)
		defer ear.Close()
		ok(t, ear.SetDeadline(time.Now().Add(20*time.Second)))
		conn, err := c1.Dial(t.Context(), "udp", netip.AddrPortFrom(dst, 5000))
		ok(t, err)
		defer conn.Close()
		flows = append(flows, func() netip.Addr {
			_, err := conn.Write([]byte("data"))
			ok(t, err)
			_, from, err := ear.ReadFromUDPAddrPort(make([]byte, 64))
			ok(t, err)
			return from.Addr().Unmap()
		})
	}
	for i, want := range []netip.Addr{c1.Addr4(), c1.Addr6()} {
		if from := flows[i](); from != want {
			t.Errorf("without masquerading the source seen is %v, want %v", from, want)
		}
	}
	// TCP to one that has no way back, and to one that has.
	ln, err := outside.Listen(netip.AddrPortFrom(outside.Addr4(), 5001))
	ok(t, err)
	defer ln.Close()
	asked, err := outside.Capture("eth0", func(p []byte) bool {
		const ip = 14 // behind the Ethernet header
		return len(p) >= ip+20 && p[ip]>>4 == 4 && p[ip+9] == unix.IPPROTO_TCP && [4]byte(p[ip+12:ip+16]) == c1.Addr4().As4()
	})
	ok(t, err)
	dialled := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		conn, err := c1.Dial(ctx, "tcp", netip.AddrPortFrom(outside.Addr4(), 5001))
		if err == nil {
			err = conn.Close()
		}
		dialled <- err
	}()
	labtest.Eventually(t, 10*time.Second, func() error {
		if asked.Count() == 0 {
			return errors.New("nobody has asked")
		}
		return nil
	})
	works, err := friend.Listen(netip.AddrPortFrom(friend.Addr4(), 5002))
	ok(t, err)
	defer works.Close()
	conn, err := c1.Dial(t.Context(), "tcp", netip.AddrPortFrom(friend.Addr4(), 5002))
	ok(t, err)
	defer conn.Close()
	ok(t, works.SetDeadline(time.Now().Add(10*time.Second)))
	there, err := works.Accept()
	ok(t, err)
	defer there.Close()

	ok(t, k.SetMasquerade(masquerade()))
	for i, want := range []netip.Addr{host1.Addr4(), host1.Addr6()} {
		if from := flows[i](); from != want {
			t.Errorf("what began before goes on as from %v, want %v", from, want)
		}
	}
	if err := <-dialled; err != nil {
		t.Errorf("who waits for an answer gets none: %v", err)
	}
	for _, c := range []net.Conn{conn, there} {
		ok(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		_, err := c.Write([]byte("data"))
		ok(t, err)
	}
	for _, c := range []net.Conn{there, conn} {
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Errorf("a connection that works does so no more: %v", err)
		}
	}
}
