package kernel_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// What a bridge has of the overlay networks without their being ours goes, and
// nothing else does.
func TestDropBridgeAddrs(t *testing.T) {
	x := newHost(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	x.ok(x.h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	stays := []string{"100.96.1.1/24", "100.96.1.9/32", "192.168.7.1/16", "fd96:0:0:1::1/64", "fd97::1/64"}
	goes := []string{"100.96.7.1/24", "fd96:0:0:7::1/64"}
	x.ok(x.h.LinkSetUp(x.link("br0")))
	for _, a := range slices.Concat(stays, goes) {
		x.addr(x.link("br0"), a, 0)
	}
	x.veth("cni0", goes...)
	drop := func(name string) []string {
		t.Helper()
		dropped, err := x.k.DropBridgeAddrs(name, overlay, ownNets)
		x.ok(err)
		return texts(dropped)
	}
	addrs := func(name string) []string {
		t.Helper()
		list, err := x.h.AddrList(x.link(name), netlink.FAMILY_ALL)
		x.ok(err)
		var out []string
		for _, a := range list {
			if !a.IP.IsLinkLocalUnicast() {
				out = append(out, a.IPNet.String())
			}
		}
		slices.Sort(out)
		return out
	}
	if got := drop("br0"); !slices.Equal(got, goes) {
		t.Errorf("dropped %v, want %v", got, goes)
	}
	if got := addrs("br0"); !slices.Equal(got, stays) {
		t.Errorf("left are %v, want %v", got, stays)
	}
	for _, name := range []string{"br0", "cni0", "none"} { // again; no bridge; not there
		if got := drop(name); len(got) > 0 {
			t.Errorf("dropped %v of %s", got, name)
		}
	}
	if got := addrs("cni0"); !slices.Equal(got, goes) {
		t.Errorf("cni0 has %v, want %v", got, goes)
	}
}

func texts(list []netip.Prefix) (out []string) {
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}
