package kernel_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/kernel/kerneltest"
)

func TestOpenWithoutPrivilege(t *testing.T) {
	kerneltest.Namespace(t) // the thread dies with the test, and its lost capabilities with it
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		t.Fatal(err)
	}
	caps[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&hdr, &caps[0]); err != nil {
		t.Fatal(err)
	}
	k, err := kernel.Open(kernel.Config{})
	if err == nil {
		k.Close()
	}
	if !errors.Is(err, kernel.ErrPermission) {
		t.Fatalf("got %v, want ErrPermission", err)
	}
	if !strings.Contains(err.Error(), "CAP_NET_ADMIN") || strings.Contains(err.Error(), "\n") {
		t.Errorf("not one line that names the capability: %q", err)
	}
}

func TestOpenChangesNothing(t *testing.T) {
	x := newHost(t)
	x.veth("eth0", "192.0.2.1/24", "2001:db8::1/64")
	before := x.link("eth0").Attrs().MTU
	routes := x.routes()
	k, err := kernel.Open(kernel.Config{})
	x.ok(err)
	x.ok(k.Close())
	if after := x.link("eth0").Attrs().MTU; after != before || !slices.Equal(x.routes(), routes) {
		t.Error("Open has changed something")
	}
}

func TestClosed(t *testing.T) {
	x := newHost(t)
	x.ok(x.k.Close())
	x.ok(x.k.Close())
	calls := map[string]func() error{
		"Underlay":        func() error { _, err := x.k.Underlay("lo"); return err },
		"UnderlayByAddr":  func() error { _, err := x.k.UnderlayByAddr(netip.MustParseAddr("127.0.0.1")); return err },
		"ConfigureDevice": func() error { return x.k.ConfigureDevice("overlay0", 1500, false, nil) },
		"SetAddrs":        func() error { return x.k.SetAddrs("overlay0", nil) },
		"SetRoutes":       func() error { return x.k.SetRoutes("overlay0", overlay, nil) },
		"Release":         func() error { _, err := x.k.Release("overlay0", overlay); return err },
		"Cleanup":         func() error { _, err := x.k.Cleanup("overlay0"); return err },
		"DropBridgeAddrs": func() error { _, err := x.k.DropBridgeAddrs("cni0", overlay, nil); return err },
		"Conflicts":       func() error { _, err := x.k.Conflicts(overlay, "", nil); return err },
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, kernel.ErrClosed) {
			t.Errorf("%s: %v, want ErrClosed", name, err)
		}
	}
	if f := x.k.Diagnose(kernel.DiagnoseConfig{Device: "lo", Networks: overlay}); f != nil {
		t.Errorf("Diagnose: %v", f)
	}
}

// Everything must work on the namespace of Open, whatever thread calls.
func TestStaysInItsNamespace(t *testing.T) {
	x, _ := configured(t)
	x.veth("inside0", "192.0.2.1/24")
	x.sysctl("ipv4/ip_forward", "0")
	x.sysctl("ipv4/conf/overlay0/rp_filter", "0")
	x.addDropPolicy()

	elsewhere := func(f func()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			kerneltest.Namespace(t) // another empty one
			f()
		}()
		<-done
	}
	elsewhere(func() {
		if l, err := x.k.Underlay("inside0"); err != nil || l.Name != "inside0" {
			t.Errorf("Underlay from another namespace: %v, %v", l, err)
		}
		if err := x.k.ConfigureDevice("overlay0", 1400, false, ownAddrs); err != nil {
			t.Errorf("ConfigureDevice from another namespace: %v", err)
		}
		got := codes(x.k.Diagnose(kernel.DiagnoseConfig{Device: "overlay0", Networks: overlay[:1]}))
		want := []string{kernel.CodeForwarding4, kernel.CodeForwardPolicy}
		if !slices.Equal(got, want) {
			t.Errorf("Diagnose from another namespace: %v, want %v", got, want)
		}
	})
	x.sysctlIs("ipv4/conf/overlay0/rp_filter", "2")
}

func codes(found []kernel.Finding) []string {
	var all []string
	for _, f := range found {
		all = append(all, f.Code)
	}
	return all
}
