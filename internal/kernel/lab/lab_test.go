package lab_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// role is a command that runs the test binary in a role.

func deadline(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// ping returns how many of 5 requests were answered.

func ping(t *testing.T, from *lab.Namespace, dst netip.Addr) int {
	t.Helper()
	res, err := from.Ping(deadline(t, 10*time.Second), lab.PingConfig{Dst: dst, Count: 5, Timeout: 500 * time.Millisecond})
	must(t, err)
	return res.Received
}

// containers puts a bridge and one container on each host, and routes between

// the hosts over the plain underlay.

func containers(t *testing.T, hosts []*lab.Host) []*lab.Container {
	t.Helper()
	var out []*lab.Container
	for i, h := range hosts {
		br, err := h.Bridge(lab.BridgeConfig{Addrs: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("100.96.%d.1/24", i+1)),
			netip.MustParsePrefix(fmt.Sprintf("fd96:0:0:%d::1/64", i+1)),
		}})
		must(t, err)
		c, err := br.Container(fmt.Sprintf("c%d", i+1))
		must(t, err)
		out = append(out, c)
		for j, other := range hosts {
			if j != i {
				must(t,
					h.AddRoute(netip.MustParsePrefix(fmt.Sprintf("100.96.%d.0/24", j+1)), other.Addr4()),
					h.AddRoute(netip.MustParsePrefix(fmt.Sprintf("fd96:0:0:%d::/64", j+1)), other.Addr6()))
			}
		}
	}
	return out
}

func TestAddresses(t *testing.T) {
	_, _, hosts := labtest.Hosts(t, 3)
	for i, h := range hosts {
		if got, want := h.Addr4().String(), fmt.Sprintf("192.0.2.%d", i+1); got != want {
			t.Errorf("%s has %s, want %s", h, got, want)
		}
		if got, want := h.Addr6().String(), fmt.Sprintf("2001:db8::%d", i+1); got != want {
			t.Errorf("%s has %s, want %s", h, got, want)
		}
	}
}

func TestContainersReachEachOther(t *testing.T) {
	_, _, hosts := labtest.Hosts(t, 2)
	cs := containers(t, hosts)
	if got := cs[0].Addr4().String(); got != "100.96.1.2" {
		t.Errorf("first container has %s", got)
	}
	if got := cs[1].Addr6().String(); got != "fd96:0:0:2::2" {
		t.Errorf("second container has %s", got)
	}
	for _, dst := range []netip.Addr{cs[1].Addr4(), cs[1].Addr6(), hosts[1].Addr4()} {
		res, err := cs[0].Ping(deadline(t, 5*time.Second), lab.PingConfig{Dst: dst, Count: 5, Size: 1500, DontFragment: true})
		must(t, err)
		// The host has no route back to a container but by its own bridge's
		// host, which all hosts know: so all three are answered.
		if res.Received != 5 || res.Duplicates+res.Corrupt != 0 || len(res.Errors) != 0 {
			t.Errorf("ping %v: %+v", dst, res)
		}
		if res.RTT(0.5) <= 0 || res.RTT(1) < res.RTT(0) {
			t.Errorf("ping %v: round-trip times %v", dst, res.RTTs)
		}
	}
}

func TestDo(t *testing.T) {
	_, _, hosts := labtest.Hosts(t, 1)
	here := func() string {
		s, err := os.Readlink("/proc/thread-self/ns/net")
		must(t, err)
		return s
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, inside := here(), ""
	want := errors.New("from inside")
	if err := hosts[0].Do(func() error { inside = here(); return want }); err != want {
		t.Errorf("got %v", err)
	}
	if inside == before || here() != before {
		t.Errorf("before %s, inside %s, after %s", before, inside, here())
	}
	func() {
		defer func() {
			if recover() != "boom" {
				t.Error("a panic was lost")
			}
		}()
		hosts[0].Do(func() error { panic("boom") })
	}()
	exited := make(chan bool, 1)
	go func() {
		returned := false
		defer func() { exited <- !returned }()
		hosts[0].Do(func() error { runtime.Goexit(); return nil })
		returned = true
	}()
	if !<-exited {
		t.Error("a Goexit was lost")
	}
	if here() != before {
		t.Error("the thread is elsewhere")
	}
}

// alive tells whether a process runs; a zombie does not.

func TestCloseLeavesNothing(t *testing.T) {
	before, err := lab.HostState()
	if err != nil {
		t.Skipf("state of the root namespace: %v", err)
	}
	l, _, hosts := labtest.Hosts(t, 2)
	containers(t, hosts)
	p, err := hosts[0].Start(role("polite"), lab.StartOptions{})
	must(t, err)
	_, err = hosts[0].Capture("eth0", nil)
	must(t, err)
	during, err := lab.HostState()
	must(t, err)
	if !slices.Equal(before, during) {
		t.Errorf("the lab shows in the root namespace: %q, before %q", during, before)
	}
	state, err := hosts[0].State()
	must(t, err)
	for _, want := range []string{"addr 192.0.2.1/24 dev eth0", "addr 100.96.1.1/24 dev br0", "addr fd96:0:0:1::1/64 dev br0"} {
		if !slices.Contains(state, want) {
			t.Errorf("no %q in %q", want, state)
		}
	}
	if errors.Is(lab.Remove(l.Prefix()), nil) {
		t.Error("a lab in use was removed")
	}
	if got := ping(t, hosts[0].Namespace, hosts[1].Addr4()); got != 5 {
		t.Errorf("after the refused removal %d of 5 arrive", got)
	}
	must(t, l.Close(), l.Close())
	if p.Running() {
		t.Error("a process is left")
	}
	checkGone(t, l.Prefix())
	if _, err := l.Host("late"); !errors.Is(err, lab.ErrClosed) {
		t.Errorf("a host in a closed lab: %v", err)
	}
}

// checkGone looks for anything with the prefix.

func checkGone(t *testing.T, prefix string) {
	t.Helper()
	for _, pattern := range []string{"/run/netns/", "/run/overlayd-lab/"} {
		left, err := filepath.Glob(pattern + prefix + "*")
		must(t, err)
		if len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if strings.Contains(string(mounts), prefix+"-") {
		t.Errorf("a mount of %s is left", prefix)
	}
}

// TestCloseAfterFailure closes a lab in which things went wrong half-way.

func TestCloseAfterFailure(t *testing.T) {
	l := labtest.New(t)
	sw, err := l.Switch("sw", lab.SwitchConfig{Net4: netip.MustParsePrefix("192.0.2.0/30")})
	must(t, err)
	for i := range 4 {
		if _, err = sw.Host(fmt.Sprintf("h%d", i), lab.PortConfig{}); err != nil {
			break
		}
	}
	if err == nil {
		t.Error("a /30 has room for four hosts")
	}
	if _, err := l.Host("h0"); err == nil {
		t.Error("two hosts have one name")
	}
	if _, err := l.Host("No/Way"); err == nil {
		t.Error("a bad name was taken")
	}
	if _, err := l.Host("h9"); err != nil {
		t.Error(err)
	}
	must(t, l.Close())
	checkGone(t, l.Prefix())
}

// ownLab makes a lab with a process in it, tells about it and waits.

// TestRemove removes what a killed process left, and what another kept.

func TestTwoLabsOfOneName(t *testing.T) {
	a := labtest.New(t)
	b := labtest.New(t)
	if a.Prefix() == b.Prefix() || a.Dir() == b.Dir() {
		t.Fatalf("both are %s", a.Prefix())
	}
	_, ha, err := a.LAN("lan", 1)
	must(t, err)
	_, hb, err := b.LAN("lan", 2)
	must(t, err)
	if got := ping(t, ha[0].Namespace, hb[1].Addr4()); got != 0 {
		t.Error("the labs are connected")
	}
	must(t, a.Close())
	if got := ping(t, hb[0].Namespace, hb[1].Addr4()); got != 5 {
		t.Error("closing one lab broke the other")
	}
	if _, err := lab.New(lab.Config{Name: "a-b"}); err == nil {
		t.Error("a lab name with a dash was taken")
	}
}

func TestReadSubnetEnv(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	if _, err := lab.ReadSubnetEnv(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	text := "FLANNEL_NETWORK=100.96.0.0/16\nFLANNEL_SUBNET=100.96.7.1/24\nFLANNEL_IPV6_NETWORK=fd96::/48\n" +
		"FLANNEL_IPV6_SUBNET=fd96:0:0:7::1/64\nFLANNEL_MTU=1452\nFLANNEL_IPMASQ=false\n"
	must(t, os.WriteFile(path, []byte(text), 0o644))
	got, err := lab.ReadSubnetEnv(path)
	must(t, err)
	want := lab.SubnetEnv{
		Network4: netip.MustParsePrefix("100.96.0.0/16"), Subnet4: netip.MustParsePrefix("100.96.7.1/24"),
		Network6: netip.MustParsePrefix("fd96::/48"), Subnet6: netip.MustParsePrefix("fd96:0:0:7::1/64"), MTU: 1452,
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if s := got.Subnets(); !slices.Equal(s, []netip.Prefix{want.Subnet4, want.Subnet6}) {
		t.Error(s)
	}
	for _, bad := range []string{"FLANNEL_SUBNET=x\n", "FLANNEL_MTU=\n", "FLANNEL_MTU\n"} {
		must(t, os.WriteFile(path, []byte(bad), 0o644))
		if _, err := lab.ReadSubnetEnv(path); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
