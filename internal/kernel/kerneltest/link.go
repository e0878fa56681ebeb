package kerneltest

import (
	"testing"

	"github.com/vishvananda/netlink"
)

// DeleteLink deletes a network interface of the calling goroutine's namespace,
// the way somebody else would who does not know whose it is.
func DeleteLink(t testing.TB, name string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		t.Fatalf("delete %s: %v", name, err)
	}
}

// SetLink takes an interface down or up.
func SetLink(t testing.TB, name string, up bool) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err == nil {
		if up {
			err = netlink.LinkSetUp(l)
		} else {
			err = netlink.LinkSetDown(l)
		}
	}
	if err != nil {
		t.Fatalf("set %s: %v", name, err)
	}
}
