package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd"
	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// stockPlugins is where distributions, and everybody else, put the stock plugins.
func stockPlugins(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin"} {
		if _, err := os.Stat(filepath.Join(dir, bridgePlugin)); err == nil {
			return dir
		}
	}
	t.Skip("needs the stock CNI plugins (Debian: containernetworking-plugins)")
	return ""
}

// machine is a host of the lab on which a runtime drives the built plugin.
type machine struct {
	*lab.Host
	t       *testing.T
	program string
	path    string // CNI_PATH
	conf    object
}

func newMachine(t *testing.T) (*lab.Lab, *machine) {
	t.Helper()
	stock := stockPlugins(t)
	l := labtest.New(t)
	h, err := l.Host("host")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{Host: h, t: t, program: filepath.Join(t.TempDir(), "overlayd-cni"), path: stock}
	build := exec.Command("go", "build", "-o", m.program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m.conf = object{
		"cniVersion": "1.0.0", "name": "overlay", "type": "overlayd-cni",
		"runDir": m.in("run"), "stateDir": m.in("state"),
		"delegate": object{"ipam": object{"dataDir": m.in("leases")}},
	}
	m.hold("100.96.1.0/24", "fd96:0:0:1::/64")
	return l, m
}

func (m *machine) in(name string) string { return filepath.Join(m.Dir(), name) }

// hold has the host own subnets, without a daemon.
func (m *machine) hold(subnets ...string) {
	m.t.Helper()
	if err := overlayd.WriteSubnetEnv(m.in("run/subnet.env"), env(subnets...)); err != nil {
		m.t.Fatal(err)
	}
}

// cni runs one command of the protocol, for eth0 of a container. It may be called
// by several goroutines.
func (m *machine) cni(command, container, netns string, more object) ([]byte, error) {
	conf := maps.Clone(m.conf)
	maps.Copy(conf, more)
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(m.program)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), // for the iptables that the stock plugins may run
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + container, "CNI_NETNS=" + netns, "CNI_IFNAME=eth0", "CNI_PATH=" + m.path,
	}
	if command == "GC" || command == "STATUS" || command == "VERSION" {
		cmd.Env = append(cmd.Env, "CNI_CONTAINERID=", "CNI_IFNAME=")
	}
	out, err := m.Output(m.t.Context(), cmd)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", command, container, err, out)
	}
	return out, nil
}

// left lists what is left of containers: veths of the host, remembered
// attachments, and leases.
func (m *machine) left() (list []string) {
	m.t.Helper()
	for _, line := range m.state() {
		if strings.HasPrefix(line, "link veth") {
			list = append(list, line)
		}
	}
	for _, dir := range []string{m.in("state/overlay"), m.in("leases/overlay")} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			m.t.Fatal(err)
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), "last_reserved_ip.") && e.Name() != "lock" { // host-local's own
				list = append(list, filepath.Join(dir, e.Name()))
			}
		}
	}
	return list
}

// addresses are those of a result of ADD.
func addresses(t *testing.T, result []byte) (list []netip.Prefix) {
	t.Helper()
	var r struct {
		IPs []struct {
			Address netip.Prefix `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(result, &r); err != nil {
		t.Fatalf("%v: %s", err, result)
	}
	for _, ip := range r.IPs {
		list = append(list, ip.Address)
	}
	return list
}

// Attaching and detaching two hundred times, several at once, leaves nothing but
// the bridge, which the first container leaves as well.
func TestNoLeak(t *testing.T) {
	const workers, rounds = 4, 50
	l, m := newMachine(t)
	first, err := l.Host("first")
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"ADD", "DEL"} {
		if _, err := m.cni(command, "first", first.Path(), nil); err != nil {
			t.Fatal(err)
		}
	}
	before := m.state()
	var wg sync.WaitGroup
	for w := range workers {
		container, err := l.Host(fmt.Sprintf("c%d", w))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for i := range rounds {
				id := fmt.Sprintf("c%d-%d", w, i)
				result, err := m.cni("ADD", id, container.Path(), nil)
				if err != nil {
					t.Error(err)
					return
				}
				if i%10 == 0 {
					if _, err := m.cni("CHECK", id, container.Path(), object{"prevResult": json.RawMessage(result)}); err != nil {
						t.Error(err)
					}
				}
				if _, err := m.cni("DEL", id, container.Path(), nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if left := m.left(); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	// The kernel removes the links of a veth, and what hangs on them, when it likes.
	labtest.Eventually(t, 5*time.Second, func() error {
		if after := m.state(); !slices.Equal(before, after) {
			return fmt.Errorf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
		}
		return nil
	})
}

// state is what is configured in the host's kernel.
func (m *machine) state() []string {
	m.t.Helper()
	lines, err := m.State()
	if err != nil {
		m.t.Fatal(err)
	}
	return lines
}

// A container gets an address of each family, the subnet's MTU, and reaches its
// host and its neighbour.
func TestAttached(t *testing.T) {
	l, m := newMachine(t)
	one, err := l.Host("one")
	two, err2 := l.Host("two")
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	first, err := m.cni("ADD", "one", one.Path(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.cni("CHECK", "one", one.Path(), object{"prevResult": json.RawMessage(first)}); err != nil {
		t.Error(err)
	}
	second, err := m.cni("ADD", "two", two.Path(), object{"cniVersion": "0.4.0"})
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Prefix{netip.MustParsePrefix("100.96.1.2/24"), netip.MustParsePrefix("fd96:0:0:1::2/64")}
	if got := addresses(t, first); !slices.Equal(got, want) {
		t.Errorf("the first container has %v, want %v", got, want)
	}
	if mtu, err := one.MTU("eth0"); err != nil || mtu != 1450 {
		t.Errorf("eth0 has the MTU %d, %v", mtu, err)
	}
	for _, dst := range append(addresses(t, second), netip.MustParsePrefix("100.96.1.1/24"), netip.MustParsePrefix("fd96:0:0:1::1/64")) {
		labtest.Eventually(t, 5*time.Second, func() error { return answered(one, dst.Addr()) })
	}

	// The container is checked for what it has, not believed.
	if err := one.DeleteLink("eth0"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.cni("CHECK", "one", one.Path(), object{"prevResult": json.RawMessage(first)}); err == nil {
		t.Error("CHECK finds nothing wrong")
	}
	// Of a namespace that was unmounted its file is left.
	file := m.in("netns")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	third, err := m.cni("ADD", "third", one.Path(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := one.DeleteLink("eth0"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.cni("DEL", "third", file, object{"prevResult": json.RawMessage(third)}); err != nil {
		t.Error(err)
	}

	// What we remember is lost, and the node is down: the runtime's result is enough.
	if err := errors.Join(os.RemoveAll(m.in("state")), overlayd.RemoveSubnetEnv(m.in("run/subnet.env"))); err != nil {
		t.Fatal(err)
	}
	for c, known := range map[string]object{
		"one": {"prevResult": json.RawMessage(first)},
		"two": {"prevResult": json.RawMessage(second), "cniVersion": "0.4.0"},
	} {
		if _, err := m.cni("DEL", c, "", known); err != nil { // its namespace is gone for the runtime
			t.Error(err)
		}
	}
	if err := two.DeleteLink("eth0"); err != nil { // with its namespace
		t.Fatal(err)
	}
	if left := m.left(); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// A node of one family attaches containers with that family alone.
func TestOneFamily(t *testing.T) {
	for subnet, gateway := range map[string]string{"100.96.1.0/24": "100.96.1.1", "fd96:0:0:1::/64": "fd96:0:0:1::1"} {
		t.Run(gateway, func(t *testing.T) {
			l, m := newMachine(t)
			m.hold(subnet)
			c, err := l.Host("c")
			if err != nil {
				t.Fatal(err)
			}
			result, err := m.cni("ADD", "c", c.Path(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := addresses(t, result); len(got) != 1 || got[0].Masked().String() != subnet {
				t.Errorf("got %v, want one of %s", got, subnet)
			}
			labtest.Eventually(t, 5*time.Second, func() error { return answered(c, netip.MustParseAddr(gateway)) })
			known := object{"prevResult": json.RawMessage(result)}
			for _, command := range []string{"CHECK", "DEL"} {
				if _, err := m.cni(command, "c", c.Path(), known); err != nil {
					t.Error(err)
				}
			}
			if left := m.left(); len(left) > 0 {
				t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			}
		})
	}
}

// answered sends one echo request.
func answered(from *lab.Host, dst netip.Addr) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	res, err := from.Ping(ctx, lab.PingConfig{Dst: dst, Count: 1, Timeout: 500 * time.Millisecond})
	if err == nil && res.Received != 1 {
		err = fmt.Errorf("%s does not answer %s: %+v", dst, from, res)
	}
	return err
}

// A node that had to take another subnet attaches new containers with it, several
// at once too, and old ones are detached without a trace. The bridge keeps no address
// of the subnet that is another node's now.
func TestOtherSubnet(t *testing.T) {
	l, m := newMachine(t)
	var hosts []*lab.Host
	for _, name := range []string{"old", "fresh", "a", "b", "c"} {
		h, err := l.Host(name)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	old, fresh := hosts[0], hosts[1]
	if _, err := m.cni("ADD", "old", old.Path(), nil); err != nil {
		t.Fatal(err)
	}
	m.hold("100.96.7.0/24", "fd96:0:0:7::/64")
	var wg sync.WaitGroup
	for _, h := range hosts[1:] {
		wg.Go(func() {
			result, err := m.cni("ADD", h.Name(), h.Path(), nil)
			if err != nil {
				t.Error(err)
				return
			}
			for _, p := range addresses(t, result) {
				if p.Masked() != netip.MustParsePrefix("100.96.7.0/24") && p.Masked() != netip.MustParsePrefix("fd96:0:0:7::/64") {
					t.Errorf("%s has got %v", h.Name(), p)
				}
			}
		})
	}
	wg.Wait()
	var have []string
	for _, line := range m.state() {
		if strings.HasPrefix(line, "addr ") && strings.HasSuffix(line, " dev "+bridgeName) {
			have = append(have, strings.Fields(line)[1])
		}
	}
	if want := []string{"100.96.7.1/24", "fd96:0:0:7::1/64"}; !slices.Equal(have, want) {
		t.Errorf("the bridge has %v, want %v", have, want)
	}
	for _, dst := range []string{"100.96.7.1", "fd96:0:0:7::1"} {
		labtest.Eventually(t, 5*time.Second, func() error { return answered(fresh, netip.MustParseAddr(dst)) })
	}
	if err := overlayd.RemoveSubnetEnv(m.in("run/subnet.env")); err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		if _, err := m.cni("DEL", h.Name(), h.Path(), nil); err != nil {
			t.Error(err)
		}
	}
	if left := m.left(); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	if _, err := m.cni("ADD", "late", fresh.Path(), nil); err == nil || !strings.Contains(err.Error(), `"code": 11`) {
		t.Errorf("without a subnet: %v, want code 11", err)
	}
}

// A host that is restarted loses its namespaces, but not the leases on its disk. A
// container that the runtime begins anew under its old name gets an address all
// the same, and leaves nothing in the end.
func TestRestartedHost(t *testing.T) {
	l, m := newMachine(t)
	gone, err := l.Host("gone")
	anew, err2 := l.Host("anew")
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	for _, h := range []*lab.Host{gone, anew} {
		result, err := m.cni("ADD", "container", h.Path(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.cni("CHECK", "container", h.Path(), object{"prevResult": json.RawMessage(result)}); err != nil {
			t.Error(err)
		}
		if h == gone {
			if err := gone.DeleteLink("eth0"); err != nil { // with its namespace
				t.Fatal(err)
			}
		}
	}
	if _, err := m.cni("DEL", "container", anew.Path(), nil); err != nil {
		t.Error(err)
	}
	if left := m.left(); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// GC removes what the runtime has forgotten, and nothing else, although the stock
// plugins know no GC.
func TestCollect(t *testing.T) {
	l, m := newMachine(t)
	m.conf["cniVersion"] = "1.1.0"
	var hosts []*lab.Host
	for _, name := range []string{"kept", "forgotten", "dead"} {
		h, err := l.Host(name)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
		if _, err := m.cni("ADD", name, h.Path(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := hosts[2].DeleteLink("eth0"); err != nil { // with its namespace, if it were real
		t.Fatal(err)
	}
	valid := object{validKey: []any{object{"containerID": "kept", "ifname": "eth0"}}}
	if _, err := m.cni("GC", "", "", valid); err != nil {
		t.Fatal(err)
	}
	if _, err := hosts[0].MTU("eth0"); err != nil {
		t.Errorf("what was valid is gone: %v", err)
	}
	if _, err := hosts[1].MTU("eth0"); err == nil {
		t.Error("what was forgotten is still there")
	}
	if _, err := m.cni("STATUS", "", "", nil); err == nil || !strings.Contains(err.Error(), `"code": 51`) {
		t.Errorf("STATUS without a daemon: %v, want code 51", err)
	}
	if err := overlayd.RemoveSubnetEnv(m.in("run/subnet.env")); err != nil {
		t.Fatal(err)
	}
	if _, err := m.cni("STATUS", "", "", nil); err == nil || !strings.Contains(err.Error(), `"code": 50`) {
		t.Errorf("STATUS without a subnet: %v, want code 50", err)
	}
	if _, err := m.cni("GC", "", "", object{validKey: nil}); err != nil { // the node is down
		t.Error(err)
	}
	if left := m.left(); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// The versions of the specification that are said to be spoken.
func TestSpokenVersions(t *testing.T) {
	_, m := newMachine(t)
	out, err := m.cni("VERSION", "", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := `"supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]`; !strings.Contains(string(out), want) {
		t.Errorf("%s, want %s", out, want)
	}
}
