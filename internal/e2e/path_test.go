package e2e_test

import (
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// TestPathCommand: "overlayd path" returns when the traffic has moved, or fails with the
// reason and leaves all as it was.
func TestPathCommand(t *testing.T) {
	t.Parallel()
	_, sw, nodes := cluster(t, 2)
	a, b := nodes[0], nodes[1]
	must(t, sw.Block(lab.Match{Proto: "udp", Port: 4789}))
	a.start(t, "--fast-path", "auto", "--static-peer", "name=old,endpoint=192.0.2.99,subnet=100.96.250.0/24")
	b.start(t, "--fast-path", "auto", "--join", a.Addr4().String())
	for _, n := range nodes {
		n.lease(t)
		n.attach(t)
	}
	a.awaitPath(t, meshLimit, b, "direct")
	for _, tt := range []struct {
		target, path string
		code         int
		says         string
	}{
		{"host2", "kernel-vxlan", 1, "host2 cannot be sent packets by kernel-vxlan: pinned to kernel-vxlan; probes of 1430 bytes are answered; no kernel-vxlan: "},
		{"old", "direct", 1, "old cannot be sent packets by direct: it is a static peer, which answers no probes"},
		{"nobody", "direct", 1, `no such peer: "nobody"`},
		{"host1", "direct", 1, "no such peer: host1 is this node itself"},
		{"host2", "warp", 2, `"warp" is not one of auto, userspace, kernel-vxlan, direct`},
		{"host2", "userspace", 0, "path to host2 is userspace-udp: answered a probe; pinned to userspace\n"},
		{b.container.Addr6().String(), "auto", 0, "path to host2 is "},
	} {
		began := time.Now()
		stdout, stderr, code := a.overlaydCommand(t, "path", tt.target, tt.path)
		if code != tt.code || !strings.Contains(stdout+stderr, tt.says) || code != 0 && !oneLine(stderr) {
			t.Errorf("path %s %s: exit code %d, %q, want %d and %q", tt.target, tt.path, code, stdout+stderr, tt.code, tt.says)
		}
		if took := time.Since(began); took > 7*time.Second {
			t.Errorf("path %s %s took %v", tt.target, tt.path, took)
		}
		if tt.code != 0 {
			a.awaitPath(t, time.Second, b, "direct") // as it was
		}
	}
	a.awaitPath(t, proofLimit, b, "direct")
	pingAll(t, a.container.Namespace, lab.PingConfig{Dst: b.container.Addr4()})
}
