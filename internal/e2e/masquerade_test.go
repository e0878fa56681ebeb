package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// natTable is where a node has its masquerading.
const natTable = "overlayd-overlay0/nat"

// hasAddrs is a host or a container.
type hasAddrs interface {
	Addr4() netip.Addr
	Addr6() netip.Addr
}

var bothFamilies = []func(hasAddrs) netip.Addr{hasAddrs.Addr4, hasAddrs.Addr6}

// seenAs demands that what one sends to another arrives with a source, and that the
// answer comes back.
func seenAs(t testing.TB, from, to *lab.Namespace, dst, want netip.Addr) {
	t.Helper()
	seen, err := lab.Ask(t.Context(), from, to, netip.AddrPortFrom(dst, 5000))
	if err != nil || seen.Addr() != want {
		t.Errorf("from %s to %s at %v: seen as %v, want %v; %v", from, to, dst, seen.Addr(), want, err)
	}
}

// TestMasquerade: the world beyond the overlay sees the host's address and reaches the
// container by it; within the overlay nothing is rewritten, by any path, and a hand-off
// loses nothing.
func TestMasquerade(t *testing.T) {
	t.Parallel()
	_, sw, nodes := cluster(t, 2)
	outside, err := sw.Host("outside", lab.PortConfig{}) // which knows no way into the overlay
	must(t, err)
	a, b := nodes[0], nodes[1]
	a.start(t, "--fast-path", "auto", "--ip-masq")
	b.start(t, "--fast-path", "auto", "--ip-masq", "--join", a.Addr4().String())
	for _, n := range nodes {
		n.lease(t)
		n.attach(t)
		if !n.env.IPMasq {
			t.Errorf("%s: FLANNEL_IPMASQ is false", n)
		}
	}
	awaitMesh(t, nodes...)
	for _, of := range bothFamilies {
		seenAs(t, a.container.Namespace, outside.Namespace, of(outside), of(a))
		seenAs(t, a.container.Namespace, b.Namespace, of(b), of(a))
		seenAs(t, a.container.Namespace, a.Namespace, of(a), of(a.container))
		echoTCP(t, a.container.Namespace, outside.Namespace, of(outside), of(a))
	}
	for _, path := range []string{"userspace", "kernel-vxlan", "direct"} {
		a.setPath(t, b, path)
		b.setPath(t, a, path)
		for _, of := range bothFamilies {
			seenAs(t, a.container.Namespace, b.container.Namespace, of(b.container), of(a.container))
			echoTCP(t, b.container.Namespace, a.container.Namespace, of(a.container), of(b.container))
		}
	}

	flows := []*flow{
		startFlow(t, a, b, b.container.Addr4(), 500), startFlow(t, a, b, b.container.Addr6(), 500),
		startFlow(t, b, a, a.container.Addr4(), 500), startFlow(t, b, a, a.container.Addr6(), 500),
	}
	sending := make(chan error, 1)
	stop := make(chan struct{})
	go func() { sending <- transferUntil(t, stop, a, b, b.container.Addr4()) }()
	for range 3 {
		for _, path := range []string{"userspace", "kernel-vxlan", "direct"} {
			a.setPath(t, b, path)
			b.setPath(t, a, path)
		}
	}
	close(stop)
	must(t, <-sending)
	for _, f := range flows {
		f.endWhole(t)
	}

	// A firewall that is started anew takes the table away.
	before := fastState(t, a)
	must(t, a.FlushRuleset(natTable))
	labtest.Eventually(t, repairLimit, func() error {
		if d := difference(before, fastState(t, a)); d != "" {
			return fmt.Errorf("the host's state differs: %s", d)
		}
		return nil
	})
	for _, of := range bothFamilies {
		seenAs(t, a.container.Namespace, outside.Namespace, of(outside), of(a))
	}
	for _, n := range nodes {
		n.stop(t)
		for _, line := range n.state(t) {
			if strings.Contains(line, "overlay") {
				t.Errorf("%s: left behind: %s", n, line)
			}
		}
	}
}

// echoTCP demands that a connection carries data both ways, and that it comes from an
// address.
func echoTCP(t testing.TB, from, to *lab.Namespace, dst, want netip.Addr) {
	t.Helper()
	ln, err := to.Listen(netip.AddrPortFrom(dst, 5000))
	must(t, err)
	defer ln.Close()
	seen := make(chan netip.Addr, 1)
	go func() {
		defer close(seen)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		seen <- conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		_, _ = io.Copy(conn, conn)
	}()
	data := make([]byte, 1<<20)
	rand.Read(data)
	conn, err := from.Dial(within(t, 10*time.Second), "tcp", netip.AddrPortFrom(dst, 5000))
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(data)
		sent <- errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	}()
	back, err := io.ReadAll(conn)
	must(t, err, <-sent)
	if !bytes.Equal(data, back) {
		t.Errorf("%v: %d bytes came back, other than the %d that were sent", dst, len(back), len(data))
	}
	if got := <-seen; got != want {
		t.Errorf("a connection from %s to %v is seen as from %v, want %v", from, dst, got, want)
	}
}

// TestMasqueradeKept: with --keep-paths containers reach the world also while their host
// has no daemon, and the next one takes over without a loss.
func TestMasqueradeKept(t *testing.T) {
	t.Parallel()
	_, sw, nodes := fast(t, 2, "kernel-vxlan", "--keep-paths", "--ip-masq")
	outside, err := sw.Host("outside", lab.PortConfig{})
	must(t, err)
	a, b := nodes[0], nodes[1]
	flows := []*flow{startFlow(t, a, b, b.container.Addr4(), 500), startFlow(t, b, a, a.container.Addr6(), 500)}
	before := fastState(t, b)
	b.stop(t)
	env, err := lab.ReadSubnetEnv(filepath.Join(b.runDir(), "subnet.env"))
	if err != nil || !env.IPMasq {
		t.Errorf("subnet.env is %+v, %v", env, err)
	}
	for _, of := range bothFamilies {
		seenAs(t, b.container.Namespace, outside.Namespace, of(outside), of(b))
	}
	pingAll(t, b.container.Namespace, lab.PingConfig{Dst: outside.Addr4(), Count: 50})
	b.start(t, "--fast-path", "kernel-vxlan", "--keep-paths", "--ip-masq")
	b.lease(t)
	pingAll(t, b.container.Namespace, lab.PingConfig{Dst: outside.Addr6(), Count: 50})
	b.awaitPath(t, 20*time.Second, a, "kernel-vxlan")
	for _, of := range bothFamilies {
		seenAs(t, b.container.Namespace, outside.Namespace, of(outside), of(b))
	}
	if !b.env.IPMasq {
		t.Error("FLANNEL_IPMASQ is false")
	}
	labtest.Eventually(t, 15*time.Second, func() error { // what it need not keep goes later
		if d := difference(before, fastState(t, b)); d != "" {
			return fmt.Errorf("the host's state differs: %s", d)
		}
		return nil
	})
	for _, f := range flows {
		f.endWhole(t)
	}
}

// TestMasqueradeAlone: a node without kernel paths keeps its masquerading up as well,
// a cleanup removes it, and a start that does not ask for it.
func TestMasqueradeAlone(t *testing.T) {
	t.Parallel()
	_, sw, nodes := cluster(t, 1)
	n := nodes[0]
	outside, err := sw.Host("outside", lab.PortConfig{})
	must(t, err)
	clean := n.state(t)
	hasTable := func() bool {
		return strings.Contains(strings.Join(n.state(t), "\n"), natTable)
	}

	// Somebody else has a table of that name, which nobody can take from him.
	release, err := n.HoldTable(natTable)
	must(t, err)
	n.start(t, "--ip-masq")
	n.lease(t)
	warning := "containers do not reach the world beyond the overlay"
	n.awaitLog(t, 5*time.Second, 0, "level=WARN", warning)
	if w := strings.Join(n.status(t).Node.Warnings, "\n"); !strings.Contains(w, warning) {
		t.Errorf("the status warns of %q", w)
	}
	if n.env.IPMasq {
		t.Error("FLANNEL_IPMASQ is true, and nothing is masqueraded")
	}
	must(t, release())
	labtest.Eventually(t, 10*time.Second, func() error { // it tries again every 5 s
		env, err := lab.ReadSubnetEnv(filepath.Join(n.runDir(), "subnet.env"))
		if err == nil && !env.IPMasq {
			err = errNotYet
		}
		return err
	})
	if w := n.status(t).Node.Warnings; len(w) > 0 {
		t.Errorf("it still warns of %q", w)
	}
	if c := strings.Count(n.log(t), warning); c != 1 {
		t.Errorf("it has warned %d times", c)
	}

	ask := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, of := range bothFamilies {
			seen, err := lab.Ask(ctx, n.container.Namespace, outside.Namespace, netip.AddrPortFrom(of(outside), 5000))
			if err != nil || seen.Addr() != of(n) {
				return fmt.Errorf("seen as %v: %w", seen, err)
			}
		}
		return nil
	}
	n.attach(t)
	must(t, ask())
	must(t, n.FlushRuleset(natTable))
	labtest.Eventually(t, repairLimit, func() error {
		if !hasTable() {
			return errNotYet
		}
		return nil
	})
	must(t, ask())

	n.daemon.Kill()
	must(t, ask()) // nobody but the kernel is needed
	n.start(t)     // without --ip-masq
	n.lease(t)
	if n.env.IPMasq || hasTable() {
		t.Errorf("FLANNEL_IPMASQ is %v, the table is there: %v", n.env.IPMasq, hasTable())
	}
	n.stop(t)
	n.start(t, "--ip-masq")
	n.lease(t)
	n.daemon.Kill()
	out, code := n.inside(t, exec.Command(overlayd, "cleanup", "--run-dir", n.runDir()))
	if code != 0 || !strings.Contains(out, natTable) || hasTable() {
		t.Errorf("cleanup: exit code %d: %s", code, out)
	}
	for _, line := range n.state(t) {
		if strings.Contains(line, "overlay") {
			t.Errorf("left behind: %s (there was: %q)", line, clean)
		}
	}
}
