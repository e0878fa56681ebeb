package kernel_test

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
)

// The addresses as they must stand: permanent, without a route for the prefix,
// and for IPv6 without duplicate address detection.
const (
	flags4 = " flags 0x280" // IFA_F_NOPREFIXROUTE | IFA_F_PERMANENT
	flags6 = " flags 0x282" // and IFA_F_NODAD
)

func TestConfigureDevice(t *testing.T) {
	for _, up := range []bool{false, true} {
		x := newHost(t)
		x.veth("eth0", "192.0.2.1/24")
		x.sysctl("ipv4/conf/all/rp_filter", "1")
		x.sysctl("ipv4/conf/eth0/rp_filter", "1")
		x.tun("overlay0", unix.IFF_TUN)
		if up {
			x.ok(x.h.LinkSetUp(x.link("overlay0"))) // gets a link-local address
		}
		want := []string{"100.96.1.0/32" + flags4, "fd96:0:0:1::/128" + flags6}
		for range 2 {
			x.ok(x.k.ConfigureDevice("overlay0", 1472, false, ownAddrs))
			if got := x.addrsOf("overlay0"); !slices.Equal(got, want) {
				t.Errorf("up before %v: addresses %q, want %q", up, got, want)
			}
		}
		a := x.link("overlay0").Attrs()
		if a.MTU != 1472 || a.RawFlags&unix.IFF_UP == 0 || a.Alias != kernel.DeviceAlias {
			t.Errorf("MTU %d, flags %#x, alias %q", a.MTU, a.RawFlags, a.Alias)
		}
		x.sysctlIs("ipv4/conf/overlay0/rp_filter", "2")
		x.sysctlIs("ipv4/conf/overlay0/accept_local", "1")
		x.sysctlIs("ipv4/conf/eth0/rp_filter", "1")
		x.sysctlIs("ipv4/conf/all/rp_filter", "1")
		x.sysctlIs("ipv4/ip_forward", "0")
		x.sysctlIs("ipv6/conf/all/forwarding", "0")
		x.sysctlIs("ipv6/conf/overlay0/addr_gen_mode", "1")
		for _, r := range x.routes() {
			if strings.Contains(r, "100.96.1.0/32 table 254") || strings.Contains(r, "fd96:0:0:1::/128 table 254") {
				t.Errorf("the address has a route of its own: %s", r)
			}
		}
	}
}

func TestConfigureDeviceErrors(t *testing.T) {
	x := newHost(t)
	x.veth("eth0", "192.0.2.1/24")
	x.tun("overlay0", unix.IFF_TUN)
	x.tun("tap0", unix.IFF_TAP)
	before := x.addrsOf("eth0")
	for _, c := range []struct {
		name string
		mtu  int
		is   error
		text string
	}{
		{"eth0", 1400, kernel.ErrNotTUN, "eth0"},
		{"tap0", 1400, kernel.ErrNotTUN, "tap0"},
		{"overlay9", 1400, kernel.ErrNoInterface, "overlay0"},
		{"overlay0", 1279, nil, "1280"},
		{"overlay0", 67, nil, "68 to 65535"},
		{"overlay0", 65536, nil, "68 to 65535"},
	} {
		err := x.k.ConfigureDevice(c.name, c.mtu, false, ownAddrs)
		if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s %d: %v, want %v with %q", c.name, c.mtu, err, c.is, c.text)
		}
	}
	if got := x.addrsOf("eth0"); !slices.Equal(got, before) || x.link("eth0").Attrs().Alias != "" {
		t.Error("a device that is not ours was changed")
	}
	x.ok(x.k.ConfigureDevice("overlay0", 1279, false, ownAddrs[:1])) // IPv4 alone may be smaller
}

func TestConfigureDeviceWithIPv6Off(t *testing.T) {
	x := newHost(t)
	x.sysctl("ipv6/conf/default/disable_ipv6", "1")
	x.tun("overlay0", unix.IFF_TUN)
	x.tun("overlay1", unix.IFF_TUN)
	x.ok(x.k.ConfigureDevice("overlay0", 1472, false, ownAddrs))
	x.ok(x.k.ConfigureDevice("overlay1", 1472, false, ownAddrs[:1]))
	x.sysctlIs("ipv6/conf/overlay0/disable_ipv6", "0")
	x.sysctlIs("ipv6/conf/overlay1/disable_ipv6", "1") // not needed
	x.sysctlIs("ipv6/conf/default/disable_ipv6", "1")
	if got := x.addrsOf("overlay0"); len(got) != 2 {
		t.Errorf("addresses %q", got)
	}
}

// In most containers /proc/sys is read-only: the device still works, and
// Diagnose tells what is left to do.
func TestConfigureDeviceReadOnlySysctl(t *testing.T) {
	x := newHost(t)
	x.sysctl("ipv4/ip_forward", "1")
	x.sysctl("ipv4/conf/all/rp_filter", "1")
	x.tun("overlay0", unix.IFF_TUN)
	x.ok(unix.Unshare(unix.CLONE_NEWNS)) // for this thread, which dies with the test
	x.ok(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	x.ok(unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""))
	x.ok(unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))

	var log strings.Builder
	k, err := kernel.Open(kernel.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	x.ok(err)
	defer k.Close()
	x.ok(k.ConfigureDevice("overlay0", 1472, false, ownAddrs))
	if got := x.addrsOf("overlay0"); len(got) != 2 {
		t.Errorf("addresses %q", got)
	}
	if !strings.Contains(log.String(), "net.ipv4.conf.overlay0.rp_filter") {
		t.Errorf("not logged: %q", log.String())
	}
	x.expect(kernel.DiagnoseConfig{Device: "overlay0", Networks: overlay[:1]},
		[2]string{kernel.CodeStrictRPFilter, "sysctl -w net.ipv4.conf.overlay0.rp_filter=2"})
}

func TestSetAddrs(t *testing.T) {
	x := newHost(t)
	x.tun("overlay0", unix.IFF_TUN)
	x.ok(x.k.ConfigureDevice("overlay0", 1472, false, nil))
	if got := x.addrsOf("overlay0"); len(got) != 0 {
		t.Fatalf("addresses without being asked: %q", got)
	}
	tun := x.link("overlay0")
	x.addr(tun, "203.0.113.1/24", 0) // somebody else's
	x.addr(tun, "203.0.113.7/32", 0)
	x.addr(tun, "2001:db8:9::1/64", 0)
	x.addr(tun, "2001:db8:9::7/128", 0)
	foreign := x.addrsOf("overlay0")

	for _, set := range [][]string{
		{"100.96.1.0", "fd96:0:0:1::"},
		{"100.96.2.0", "fd96:0:0:1::"},
		{"100.96.2.0"},
		{"fd96:0:0:2::"},
		{},
	} {
		want := slices.Clone(foreign)
		for _, a := range set {
			if strings.Contains(a, ":") {
				want = append(want, a+"/128"+flags6)
			} else {
				want = append(want, a+"/32"+flags4)
			}
		}
		slices.Sort(want)
		x.ok(x.k.SetAddrs("overlay0", addrs(set...)))
		if got := x.addrsOf("overlay0"); !slices.Equal(got, want) {
			t.Errorf("set %v: got %q, want %q", set, got, want)
		}
	}
	x.veth("eth0")
	if err := x.k.SetAddrs("eth0", ownAddrs); !errors.Is(err, kernel.ErrNotTUN) {
		t.Errorf("on a veth: %v, want ErrNotTUN", err)
	}
}
