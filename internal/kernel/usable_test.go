package kernel

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The order among flags, which a real kernel sets only in its own time.
func TestUsable(t *testing.T) {
	in := []struct {
		addr         string
		flags, scope int
	}{
		{"2001:db8::1/64", unix.IFA_F_DEPRECATED, 0},
		{"2001:db8::2/64", unix.IFA_F_TENTATIVE, 0},
		{"2001:db8::3/64", unix.IFA_F_TEMPORARY, 0},
		{"2001:db8::4/64", unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED, 0},
		{"2001:db8::5/64", unix.IFA_F_PERMANENT, 0},
		{"2001:db8::6/64", 0, 0},
		{"fe80::1/64", 0, unix.RT_SCOPE_LINK},
		{"::1/128", 0, unix.RT_SCOPE_HOST},
		{"fec0::1/64", 0, unix.RT_SCOPE_SITE},
		{"192.0.2.1/24", unix.IFA_F_SECONDARY, 0},
		{"192.0.2.2/24", unix.IFA_F_PERMANENT, 0},
		{"169.254.0.1/16", 0, 0},
		{"127.0.0.1/8", 0, unix.RT_SCOPE_HOST},
		{"10.0.0.1/8", 0, unix.RT_SCOPE_LINK},
	}
	var all []netlink.Addr
	for _, a := range in {
		all = append(all, netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(a.addr)), Flags: a.flags, Scope: a.scope})
	}
	want := []string{"192.0.2.2/24", "192.0.2.1/24", "2001:db8::5/64", "2001:db8::6/64", "2001:db8::3/64",
		"2001:db8::2/64", "2001:db8::1/64", "fec0::1/64"}
	var got []string
	for _, p := range usable(all) {
		got = append(got, p.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}
