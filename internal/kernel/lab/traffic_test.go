package lab_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
	"golang.org/x/sys/unix"
)

func TestPingErrors(t *testing.T) {
	_, _, hosts := labtest.Hosts(t, 2)
	cs := containers(t, hosts)
	must(t, hosts[0].SetMTU("eth0", 1400), hosts[1].SetMTU("eth0", 1400))
	for _, dst := range []netip.Addr{cs[1].Addr4(), cs[1].Addr6()} {
		res, err := cs[0].Ping(deadline(t, 5*time.Second), lab.PingConfig{Dst: dst, Count: 2, Size: 1500, DontFragment: true, Timeout: 200 * time.Millisecond})
		must(t, err)
		if res.Received != 0 || len(res.Errors) != 2 || !res.Errors[0].TooBig() || res.Errors[0].MTU != 1400 || res.Errors[0].Unreachable() {
			t.Errorf("a packet over the path MTU to %v: %+v", dst, res)
		}
		res, err = cs[0].Ping(deadline(t, 5*time.Second), lab.PingConfig{Dst: dst, Count: 2, Size: 1501, DontFragment: true, Timeout: 200 * time.Millisecond})
		must(t, err)
		if res.Sent != 0 || !errors.Is(res.SendErr, unix.EMSGSIZE) || res.Lost(2) != 2 {
			t.Errorf("a packet over the device's MTU to %v: %+v", dst, res)
		}
		res, err = cs[0].Ping(deadline(t, 5*time.Second), lab.PingConfig{Dst: dst, Count: 2, TTL: 1, Timeout: 200 * time.Millisecond})
		must(t, err)
		if len(res.Errors) != 2 || res.Errors[0].Unreachable() || res.Errors[0].From != netip.MustParseAddr(map[bool]string{true: "100.96.1.1", false: "fd96:0:0:1::1"}[dst.Is4()]) {
			t.Errorf("a packet with TTL 1 to %v: %+v", dst, res)
		}
	}
	for _, nowhere := range []string{"100.97.0.1", "fd97::1"} {
		res, err := cs[0].Ping(deadline(t, 5*time.Second), lab.PingConfig{Dst: netip.MustParseAddr(nowhere), Count: 2, Timeout: 200 * time.Millisecond})
		must(t, err)
		if len(res.Errors) != 2 || !res.Errors[0].Unreachable() {
			t.Errorf("no route to %s: %+v", nowhere, res)
		}
	}
	_, err := cs[0].Ping(t.Context(), lab.PingConfig{Dst: cs[1].Addr4(), Size: 27})
	if err == nil {
		t.Error("a size without room for the headers was taken")
	}
}

func TestPingEndsWithContext(t *testing.T) {
	_, _, hosts := labtest.Hosts(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := hosts[0].Ping(ctx, lab.PingConfig{Dst: netip.MustParseAddr("192.0.2.99"), Timeout: time.Minute})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func TestCapture(t *testing.T) {
	_, _, hosts := labtest.Hosts(t, 2)
	icmp := func(b []byte) bool { return len(b) > 34 && b[12] == 8 && b[13] == 0 && b[23] == 1 }
	c, err := hosts[1].Capture("eth0", icmp)
	must(t, err)
	none, err := hosts[1].Capture("lo", nil)
	must(t, err)
	if got := ping(t, hosts[0].Namespace, hosts[1].Addr4()); got != 5 {
		t.Fatalf("%d of 5 answered", got)
	}
	if n := c.Count(); n != 10 { // what has passed is counted, whether or not the reader was there
		t.Errorf("%d packets of 10 have passed", n)
	}
	must(t, c.Wait(deadline(t, 5*time.Second), 10))
	c.Stop()
	none.Stop()
	if ping(t, hosts[0].Namespace, hosts[1].Addr4()); c.Count() != 10 || none.Count() != 0 {
		t.Fatalf("captured %d and %d, want 10 and 0", c.Count(), none.Count())
	}
	out := 0
	for _, p := range c.Packets() {
		if p.Outgoing {
			out++
			if p.Data[34] != 0 {
				t.Errorf("outgoing packet is no echo reply: %x", p.Data)
			}
		}
	}
	if out != 5 {
		t.Errorf("%d of 10 packets are outgoing, want 5", out)
	}
	if err := c.Wait(deadline(t, 5*time.Second), 11); err == nil {
		t.Error("waiting at a stopped capture ends well")
	}
}

func TestTransferAndFlood(t *testing.T) {
	_, _, hosts := labtest.Hosts(t, 2)
	cs := containers(t, hosts)
	for _, dst := range []netip.Addr{cs[1].Addr4(), cs[1].Addr6()} {
		res, err := lab.Transfer(deadline(t, 30*time.Second), lab.TransferConfig{From: cs[0].Namespace, To: cs[1].Namespace, Dst: dst, Bytes: 20<<20 + 12345})
		must(t, err)
		if res.Bytes != 20<<20+12345 || res.SentSHA256 != res.ReceivedSHA256 || res.SentSHA256 == [32]byte{} || res.BitsPerSecond() < 1e6 {
			t.Errorf("%+v", res)
		}
		fl, err := lab.Flood(deadline(t, 10*time.Second), lab.FloodConfig{From: cs[0].Namespace, To: cs[1].Namespace, Dst: dst, Rate: 2000, Duration: 300 * time.Millisecond, Size: 1200, Linger: 100 * time.Millisecond})
		must(t, err)
		if fl.Sent < 300 || fl.Lost() != 0 || fl.Duplicates+fl.Reordered+fl.SendErrors != 0 || fl.Gap <= 0 {
			t.Errorf("%+v", fl)
		}
	}
	must(t, hosts[1].Cut())
	_, err := lab.Transfer(deadline(t, 200*time.Millisecond), lab.TransferConfig{From: cs[0].Namespace, To: cs[1].Namespace, Dst: cs[1].Addr4()})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("transfer over a cut link: %v", err)
	}
}

func TestEchoUDP(t *testing.T) {
	_, _, hosts := labtest.Hosts(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	at, wait, err := hosts[1].EchoUDP(ctx, netip.AddrPortFrom(hosts[1].Addr6(), 0))
	must(t, err)
	conn, err := hosts[0].Dial(ctx, "udp", at)
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "hello" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	cancel()
	wait()
}
