package e2e_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// Keys of two lengths, in both forms in which a key file has them.
const (
	clusterKey = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY= # 32 bytes\n"
	otherKey   = "ffeeddccbbaa99887766554433221100\n"
)

// keyBytes are the first key of a key file.
func keyBytes(t *testing.T, file string) []byte {
	t.Helper()
	text := strings.Fields(file)[0]
	if b, err := hex.DecodeString(text); err == nil {
		return b
	}
	b, err := base64.StdEncoding.DecodeString(text)
	must(t, err)
	return b
}

func (n *node) keyFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(n.Dir(), "keys")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// TestKeys runs a cluster with a key. Hosts without it, or with another, get in
// nowhere, and it is said why.
func TestKeys(t *testing.T) {
	t.Parallel()
	_, _, nodes := cluster(t, 4)
	a, b, without, wrong := nodes[0], nodes[1], nodes[2], nodes[3]
	a.start(t, "--key-file", a.keyFile(t, clusterKey))
	b.start(t, "--key-file", b.keyFile(t, "# the second is still accepted\n"+clusterKey+otherKey), "--join", a.Addr4().String())
	without.start(t, "--join", a.Addr4().String())
	wrong.start(t, "--join", a.Addr4().String(), "--key-file", wrong.keyFile(t, otherKey))
	for _, n := range []*node{a, b} {
		n.lease(t)
		n.attach(t)
	}
	awaitMesh(t, a, b)
	for _, dst := range b.container.Addrs() {
		pingAll(t, a.container.Namespace, lab.PingConfig{Dst: dst, Size: a.env.MTU, DontFragment: true})
	}
	// Long enough for a host that was let in to have a lease.
	for n, why := range map[*node]string{
		without: "remote state is encrypted and encryption is not configured",
		wrong:   "no installed keys could decrypt",
	} {
		n.awaitLog(t, 20*time.Second, 0, "msg=warning", "no node that knows this cluster's leases has answered yet")
		n.awaitLog(t, time.Second, 0, "cannot join yet", why)
		if s := n.status(t); len(s.Node.Subnets) != 0 || len(s.Peers) != 0 {
			t.Errorf("%s has %v and the peers %+v", n, s.Node.Subnets, s.Peers)
		}
		if _, err := os.Stat(filepath.Join(n.runDir(), "subnet.env")); err == nil {
			t.Errorf("%s has a subnet.env", n)
		}
	}
	for _, n := range []*node{a, b} {
		s := n.status(t)
		if len(s.Peers) != 1 {
			t.Errorf("%s has the peers %+v, want one", n, s.Peers)
		}
		if strings.Contains(n.log(t), "no key is given") {
			t.Errorf("%s says that it has no key", n)
		}
		if strings.Contains(n.log(t), strings.Fields(clusterKey)[0]) {
			t.Errorf("the key is in the log of %s", n)
		}
	}

	refusedProbes(t, a, b, clusterKey, otherKey)

	// A host that has lost its key is no peer on the data path either, though
	// the others remember it.
	b.stop(t)
	b.start(t, "--join", a.Addr4().String())
	b.lease(t) // its own from before
	p := a.awaitPeer(t, downLimit, b, "no path", func(p peer) bool { return p.Path == "none" })
	if p.State == "alive" {
		t.Errorf("%s says of a host without the key: %+v", a, p)
	}
	stdout, _, code := a.overlaydCommand(t, "ping", b.Name(), "--count", "1")
	if code != 1 {
		t.Errorf("ping of a host without the key: exit code %d\n%s", code, stdout)
	}
	b.stop(t)
	b.start(t, "--join", a.Addr4().String(), "--key-file", b.keyFile(t, clusterKey))
	b.lease(t)
	awaitMesh(t, a, b)
}

// refusedProbes sends a probes in b's name and from b's host: without a tag and
// with a tag of a key that is not a's they are counted and not answered.
func refusedProbes(t *testing.T, a, b *node, key, notKey string) {
	t.Helper()
	var self struct {
		ID   string `json:"id"`
		Boot uint64 `json:"boot"`
	}
	file, err := os.ReadFile(filepath.Join(b.stateDir(), "node.json"))
	must(t, err, json.Unmarshal(file, &self))
	f := encap.Frame{Type: encap.Probe, Path: encap.Userspace, Boot: self.Boot}
	for into, text := range map[*[16]byte]string{&f.Sender: self.ID, &f.Receiver: a.status(t).Node.ID} {
		id, err := hex.DecodeString(text)
		must(t, err)
		copy(into[:], id)
	}
	right, err := encap.NewAuth([][]byte{keyBytes(t, key)})
	must(t, err)
	wrong, err := encap.NewAuth([][]byte{keyBytes(t, notKey)})
	must(t, err)

	// An answer has the nonce of its probe.
	const answered, untagged, foreign = 0x6f7665726c617901, 0x6f7665726c617902, 0x6f7665726c617903
	saw := func(nonce uint64) *lab.Capture {
		// What a itself sends to b, not the probe on its way.
		c, err := a.Capture("eth0", func(p []byte) bool {
			dst, ok := destination(p)
			return ok && dst == b.Addr4() && bytes.Contains(p, binary.BigEndian.AppendUint64(nil, nonce))
		})
		must(t, err)
		return c
	}
	good, none, bad := saw(answered), saw(untagged), saw(foreign)
	conn, err := b.ListenUDP(netip.AddrPortFrom(b.Addr4(), 0))
	must(t, err)
	defer conn.Close()
	before := a.status(t).Drops["control_auth"]
	send := func(nonce uint64, auth *encap.Auth) {
		f.Nonce = nonce
		frame, err := f.Append(nil, encap.MinTaggedFrame, auth)
		must(t, err)
		_, err = conn.WriteToUDPAddrPort(frame, netip.AddrPortFrom(a.Addr4(), 8285))
		must(t, err)
	}
	send(untagged, nil)
	send(foreign, wrong)
	labtest.Eventually(t, 5*time.Second, func() error {
		if got := a.status(t).Drops["control_auth"] - before; got != 2 {
			return fmt.Errorf("%d refused, want 2", got)
		}
		return nil
	})
	send(answered, right) // behind the others
	must(t, good.Wait(within(t, 5*time.Second), 1))
	if none.Count() != 0 || bad.Count() != 0 {
		t.Errorf("%d answers to a probe without a tag, %d to one with another key's", none.Count(), bad.Count())
	}
}
