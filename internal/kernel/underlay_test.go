package kernel_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
)

func TestUnderlay(t *testing.T) {
	x := newHost(t)
	eth := x.veth("eth0")
	x.ok(x.h.LinkSetMTU(eth, 1450))
	x.addr(eth, "2001:db8::2/64", 0)
	x.addr(eth, "fe80::7/64", 0)
	x.addr(eth, "192.0.2.1/24", 0)
	x.addr(eth, "192.0.2.9/24", 0) // the kernel makes it secondary
	x.addr(eth, "198.51.100.1/25", 0)
	x.addr(eth, "169.254.3.4/16", 0)
	deprecate(x, eth, "2001:db8::3/64")

	l, err := x.k.Underlay("eth0")
	x.ok(err)
	want := prefixes("192.0.2.1/24", "198.51.100.1/25", "192.0.2.9/24", "2001:db8::2/64", "2001:db8::3/64")
	if !slices.Equal(l.Addrs, want) {
		t.Errorf("addresses %v, want %v", l.Addrs, want)
	}
	if l.Name != "eth0" || l.Index != eth.Attrs().Index || l.MTU != 1450 {
		t.Errorf("got %+v", l)
	}
}

// deprecate adds an address whose preferred lifetime is over.
func deprecate(x *host, l netlink.Link, s string) {
	x.Helper()
	n, err := netlink.ParseIPNet(s)
	x.ok(err)
	x.ok(x.h.AddrAdd(l, &netlink.Addr{IPNet: n, Flags: unix.IFA_F_NODAD, ValidLft: 3600, PreferedLft: 0}))
}

func TestUnderlayErrors(t *testing.T) {
	x := newHost(t)
	x.veth("eth0", "fe80::7/64")
	x.veth("wan0", "192.0.2.1/24", "2001:db8::1/64")
	x.ok(x.h.LinkSetDown(x.link("eth0p")))

	for _, name := range []string{"eth9", "", "a-name-that-is-longer-than-any-interface-can-have", "x/y"} {
		_, err := x.k.Underlay(name)
		if !errors.Is(err, kernel.ErrNoInterface) {
			t.Errorf("%q: %v, want ErrNoInterface", name, err)
		} else if !strings.Contains(err.Error(), "eth0, eth0p, lo, wan0, wan0p") {
			t.Errorf("%q: interfaces are not listed: %v", name, err)
		}
	}
	for name, want := range map[string]string{"eth0": "interface eth0: no usable address", "eth0p": "is down", "lo": "interface lo"} {
		_, err := x.k.Underlay(name)
		if !errors.Is(err, kernel.ErrNoAddress) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want ErrNoAddress with %q", name, err, want)
		}
	}
}

func TestUnderlayByAddr(t *testing.T) {
	x := newHost(t)
	x.veth("eth0", "192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64", "fe80::7/64")
	for addr, want := range map[string]string{
		"192.0.2.2":         "eth0 192.0.2.2/24",
		"2001:db8::1":       "eth0 2001:db8::1/64",
		"::ffff:192.0.2.1":  "eth0 192.0.2.1/24",
		"127.0.0.9":         "lo 127.0.0.9/8",
		"::1":               "lo ::1/128",
		"192.0.2.3":         "",
		"2001:db8::2":       "",
		"0.0.0.0":           "",
		"::":                "",
		"fe80::7":           "",
		"224.0.0.1":         "",
		"2001:db8::1%eth0":  "",
		"2001:db8:0:1::1":   "",
		"::ffff:198.51.0.1": "",
	} {
		l, err := x.k.UnderlayByAddr(netip.MustParseAddr(addr))
		switch {
		case want == "" && !errors.Is(err, kernel.ErrNoAddress):
			t.Errorf("%s: %v, %v, want ErrNoAddress", addr, l, err)
		case want != "" && (err != nil || l.Name+" "+l.Addrs[0].String() != want || len(l.Addrs) != 1 || l.MTU == 0 || l.Index == 0):
			t.Errorf("%s: %+v, %v, want %s", addr, l, err, want)
		}
	}
	if _, err := x.k.UnderlayByAddr(netip.Addr{}); !errors.Is(err, kernel.ErrNoAddress) {
		t.Errorf("zero address: %v", err)
	}
	_, err := x.k.UnderlayByAddr(netip.MustParseAddr("203.0.113.1"))
	if err == nil || !strings.Contains(err.Error(), "192.0.2.1, 192.0.2.2, 2001:db8::1") {
		t.Errorf("this host's addresses are not listed: %v", err)
	}
}
