package e2e_test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// shape is what a JSON document must look like: exactly these keys, each with
// a check of its value.
type shape map[string]func(v any) error

func (s shape) check(v any) error {
	m, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("%T is not an object", v)
	}
	if got, want := slices.Sorted(maps.Keys(m)), slices.Sorted(maps.Keys(s)); !slices.Equal(got, want) {
		return fmt.Errorf("keys %q, want %q", got, want)
	}
	for _, k := range slices.Sorted(maps.Keys(s)) {
		if err := s[k](m[k]); err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
	}
	return nil
}

// listOf checks a list that may not be null.
func listOf(elem func(any) error) func(any) error {
	return func(v any) error {
		l, ok := v.([]any)
		if !ok {
			return fmt.Errorf("%T is not a list", v)
		}
		for i, e := range l {
			if err := elem(e); err != nil {
				return fmt.Errorf("%d: %w", i, err)
			}
		}
		return nil
	}
}

// textThat checks a text.
func textThat(ok func(string) bool) func(any) error {
	return func(v any) error {
		s, isText := v.(string)
		if !isText || !ok(s) {
			return fmt.Errorf("%#v", v)
		}
		return nil
	}
}

func exactly(want ...string) func(any) error {
	return textThat(func(s string) bool { return slices.Contains(want, s) })
}

func parses[T any](parse func(string) (T, error)) func(any) error {
	return textThat(func(s string) bool { _, err := parse(s); return err == nil })
}

func number(v any) error {
	n, ok := v.(float64)
	if !ok || n < 0 || n != float64(uint64(n)) {
		return fmt.Errorf("%#v is not a whole number", v)
	}
	return nil
}

func numberOrNull(v any) error {
	if v == nil {
		return nil
	}
	return number(v)
}

var (
	nodeID   = textThat(func(s string) bool { b, err := hex.DecodeString(s); return err == nil && len(b) == 16 })
	anyText  = textThat(func(s string) bool { return s != "" })
	endpoint = parses(netip.ParseAddrPort)
	prefixes = listOf(parses(netip.ParsePrefix))
	paths    = exactly("userspace-udp", "userspace-vxlan", "kernel-vxlan", "direct", "none")

	// The documents as DESIGN section 7 has them.
	peerShape = shape{
		"id": nodeID, "name": anyText, "state": exactly("alive", "suspect", "dead", "left", "static"),
		"endpoint": endpoint, "subnets": prefixes, "path": paths, "path_reason": anyText,
		"path_since":    parses(func(s string) (time.Time, error) { return time.Parse(time.RFC3339, s) }),
		"last_proof_ms": numberOrNull, "rtt_us": number, "mtu": number,
		"tx_bytes": number, "rx_bytes": number, "tx_packets": number, "rx_packets": number,
	}
	nodeShape = shape{
		"id": nodeID, "name": anyText, "version": anyText, "endpoints": listOf(endpoint), "subnets": prefixes,
		"mtu": number, "encap": exactly("udp", "vxlan"), "vni": number, "vtep_mac": parses(net.ParseMAC),
		"fast_path": exactly("auto", "off", "kernel-vxlan", "direct"), "warnings": listOf(anyText),
	}
	routeShape = shape{
		"prefix": parses(netip.ParsePrefix), "peer": anyText, "peer_id": nodeID,
		"endpoint": textThat(func(s string) bool { _, err := netip.ParseAddrPort(s); return s == "" || err == nil }),
		"path":     exactly("local", "userspace-udp", "userspace-vxlan", "kernel-vxlan", "direct", "none"), "reason": anyText,
	}
)

var reasonName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// reasons checks an object of counters.
func reasons(v any) error {
	m, ok := v.(map[string]any)
	if !ok || len(m) == 0 {
		return fmt.Errorf("%#v is not an object with counters", v)
	}
	for k, n := range m {
		if !reasonName.MatchString(k) {
			return fmt.Errorf("%q is not a name", k)
		}
		if err := number(n); err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
	}
	return nil
}

// document runs a command with --json and checks what it prints.
func document(t *testing.T, n *node, s shape, args ...string) map[string]any {
	t.Helper()
	stdout, stderr, code := n.overlaydCommand(t, append(args, "--json")...)
	if code != 0 || stderr != "" {
		t.Fatalf("%q: exit code %d, %s", args, code, stderr)
	}
	var doc map[string]any
	if err := json.Unmarshal([]byte(stdout), &doc); err != nil {
		t.Fatalf("%q: %v: %s", args, err, stdout)
	}
	if err := s.check(doc); err != nil {
		t.Errorf("%q: %v", args, err)
	}
	return doc
}

// jsonDocuments checks the documents of a live cluster.
func jsonDocuments(t *testing.T, nodes []*node) {
	n := nodes[1]
	whole := document(t, n, shape{
		"schema": exactly("overlayd.status/v1"), "node": nodeShape.check, "peers": listOf(peerShape.check), "drops": reasons,
	}, "status")
	peers := document(t, n, shape{"schema": exactly("overlayd.peers/v1"), "peers": listOf(peerShape.check)}, "peers")
	routes := document(t, n, shape{"schema": exactly("overlayd.routes/v1"), "routes": listOf(routeShape.check)}, "routes")
	drops := document(t, n, shape{"schema": exactly("overlayd.drops/v1"), "drops": reasons}, "drops")

	self := whole["node"].(map[string]any)
	if self["name"] != n.Name() || self["mtu"] != float64(n.env.MTU) {
		t.Errorf("node: %v", self)
	}
	wantSubnets := []any{n.env.Subnet4.Masked().String(), n.env.Subnet6.Masked().String()}
	if !slices.Equal(self["subnets"].([]any), wantSubnets) {
		t.Errorf("subnets %v, want %v", self["subnets"], wantSubnets)
	}
	wantEndpoints := []any{netip.AddrPortFrom(n.Addr4(), 8285).String(), netip.AddrPortFrom(n.Addr6(), 8285).String()}
	if !slices.Equal(self["endpoints"].([]any), wantEndpoints) {
		t.Errorf("endpoints %v, want %v", self["endpoints"], wantEndpoints)
	}
	// Peers leave oneself out, have one row each, and are the same in both.
	var names []string
	for i, p := range whole["peers"].([]any) {
		row := p.(map[string]any)
		names = append(names, row["name"].(string))
		again := peers["peers"].([]any)[i].(map[string]any)
		for _, key := range []string{"id", "name", "endpoint", "path", "path_since", "mtu"} {
			if row[key] != again[key] {
				t.Errorf("peer %d has %s %v in the status and %v in the peers", i, key, row[key], again[key])
			}
		}
	}
	if want := []string{"host1", "host3", "host4"}; !slices.Equal(names, want) {
		t.Errorf("peers %q, want %q", names, want)
	}
	if got, want := slices.Sorted(maps.Keys(drops["drops"].(map[string]any))), slices.Sorted(maps.Keys(whole["drops"].(map[string]any))); !slices.Equal(got, want) {
		t.Errorf("drops have the reasons %q, the status %q", got, want)
	}
	if got, want := len(routes["routes"].([]any)), 2*len(nodes); got != want {
		t.Errorf("%d routes, want %d", got, want)
	}
	for _, other := range nodes {
		for _, dst := range other.container.Addrs() {
			doc := document(t, n, shape{"schema": exactly("overlayd.routes/v1"), "routes": listOf(routeShape.check)}, "routes", "get", dst.String())
			list := doc["routes"].([]any)
			if len(list) != 1 {
				t.Fatalf("routes get %v: %d routes", dst, len(list))
			}
			r := list[0].(map[string]any)
			wantPath := "direct"
			if other == n {
				wantPath = "local"
			}
			if p := netip.MustParsePrefix(r["prefix"].(string)); !p.Contains(dst) || r["peer"] != other.Name() || r["path"] != wantPath {
				t.Errorf("routes get %v: %v, want %s by %s", dst, r, other, wantPath)
			}
		}
	}
}

// commands checks what else the commands say of a live cluster.
func commands(t *testing.T, nodes []*node) {
	n, other := nodes[0], nodes[1]
	for _, target := range []string{other.Name(), other.status(t).Node.ID, other.container.Addr4().String(), other.own6().String()} {
		stdout, stderr, code := n.overlaydCommand(t, "ping", target, "--count", "2")
		if code != 0 || stderr != "" || strings.Count(stdout, "answer from host2 (192.0.2.2:8285)") != 2 || !strings.Contains(stdout, "path=direct") || !strings.Contains(stdout, "2 sent, 2 received, 0% loss") {
			t.Errorf("ping %s: exit code %d\n%s%s", target, code, stdout, stderr)
		}
	}
	if stdout, stderr, code := n.overlaydCommand(t, "ping", other.Name(), "--until", "direct"); code != 0 || !strings.Contains(stdout, "path is direct after") {
		t.Errorf("ping --until: exit code %d\n%s%s", code, stdout, stderr)
	}
	for want, args := range map[string][]string{
		`no such peer: "nobody"`:                                   {"ping", "nobody"},
		"no such peer: host1 is this node":                         {"ping", n.Name()},
		"no node owns it":                                          {"ping", unowned(t, nodes, network4).String()},
		"outside of the overlay networks":                          {"routes", "get", "203.0.113.9"},
		"path to host2 is not kernel-vxlan after 300ms but direct": {"ping", other.Name(), "--until", "kernel-vxlan", "--timeout", "300ms"},
	} {
		_, stderr, code := n.overlaydCommand(t, args...)
		if code != 1 || !oneLine(stderr) || !strings.Contains(stderr, want) {
			t.Errorf("%q: exit code %d, %q, want 1 and %q", args, code, stderr, want)
		}
	}
	for _, cmd := range []string{"status", "peers", "routes", "drops"} {
		stdout, stderr, code := n.overlaydCommand(t, cmd)
		if code != 0 || stderr != "" {
			t.Errorf("%s: exit code %d, %s", cmd, code, stderr)
		}
		for _, part := range map[string][]string{
			"status": {"host1", "host2", "host4", n.env.Subnet4.Masked().String(), "direct"},
			"peers":  {"host2", "host3", "192.0.2.2:8285", "bytes are answered"},
			"routes": {"host1", "local", nodes[3].env.Subnet6.Masked().String()},
			"drops":  {"rx_unknown_source", "tx_no_owner"},
		}[cmd] {
			if !strings.Contains(stdout, part) {
				t.Errorf("%s does not say %q:\n%s", cmd, part, stdout)
			}
		}
	}
	// What a shell sources.
	b, err := os.ReadFile(filepath.Join(n.runDir(), "subnet.env"))
	must(t, err)
	want := fmt.Sprintf("FLANNEL_NETWORK=%s\nFLANNEL_SUBNET=%s\nFLANNEL_IPV6_NETWORK=%s\nFLANNEL_IPV6_SUBNET=%s\nFLANNEL_MTU=%d\nFLANNEL_IPMASQ=false\n",
		network4, n.env.Subnet4, network6, n.env.Subnet6, n.status(t).Node.MTU)
	if string(b) != want {
		t.Errorf("subnet.env is\n%swant\n%s", b, want)
	}
}

// oneLine tells whether text is exactly one line of overlayd's own.
func oneLine(text string) bool {
	return strings.HasPrefix(text, "overlayd: ") && strings.Count(text, "\n") == 1 && strings.HasSuffix(text, "\n") && len(text) < 600
}
