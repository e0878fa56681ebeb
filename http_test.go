package overlayd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// get asks a node by HTTP.
func get(t testing.TB, n *Node, path string) (code int, body string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Get("http://" + n.parts.web.Addr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// value is that of the one series of a scrape that begins with series.
func value(t *testing.T, scrape, series string) string {
	t.Helper()
	var found []string
	for line := range strings.Lines(scrape) {
		if strings.HasPrefix(line, series) {
			found = append(found, strings.TrimSpace(line[strings.LastIndex(line, " "):]))
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d series begin with %s in\n%s", len(found), series, scrape)
	}
	return found[0]
}

func TestHTTPListen(t *testing.T) {
	for text, want := range map[string]string{
		"9570": "127.0.0.1:9570", ":9570": "127.0.0.1:9570", "localhost:9570": "127.0.0.1:9570", "192.0.2.1:1": "192.0.2.1:1",
		"[::1]:9570": "[::1]:9570", "0.0.0.0:9570": "0.0.0.0:9570", "[::]:9570": "[::]:9570", "127.0.0.1:0": "127.0.0.1:0",
		"": "invalid AddrPort",
	} {
		cfg := testConfig(t, 1)
		cfg.HTTPListen = text
		if r, err := resolve(cfg); err != nil || r.http.String() != want {
			t.Errorf("%q: %v %v, want %s", text, r, err, want)
		}
	}
	for _, text := range []string{"x", ":", ":70000", "host:1", "::1", "192.0.2.1", "1.2.3.4:", "[::1]", "1:2:3", " :1", "-1", "100.96.1.0:9570"} {
		cfg := testConfig(t, 1)
		cfg.HTTPListen = text
		if _, err := New(cfg); !errors.Is(err, ErrConfig) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", text, err)
		}
	}
	cfg := testConfig(t, 1)
	cfg.Pprof = true
	if _, err := New(cfg); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "--http-listen") {
		t.Errorf("pprof alone: %v", err)
	}
	cfg.Pprof, cfg.HTTPPeers = false, 9570
	if _, err := New(cfg); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "--http-listen") {
		t.Errorf("asking peers alone: %v", err)
	}
}

// TestPeerViews: a node that was told to asks its peers what they see, those that are there, and
// passes on what the right ones say.
func TestPeerViews(t *testing.T) {
	check := nothingLeft(t)
	port, err := net.Listen("tcp", netip.AddrPortFrom(testAddr(1), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	at := port.Addr().(*net.TCPAddr).AddrPort().Port()
	port.Close()
	config := func(i int, listen netip.Addr) Config {
		cfg := testConfig(t, i)
		cfg.HTTPListen, cfg.HTTPPeers = netip.AddrPortFrom(listen, at).String(), at
		if i > 1 {
			cfg.Join = []string{testAddr(1).String()}
		}
		return cfg
	}
	first := startNode(t, config(1, testAddr(1)))
	second := startNode(t, config(2, testAddr(2)))
	third := startNode(t, config(3, testAddr(13))) // which answers elsewhere
	for _, n := range []*Node{first, second, third} {
		awaitReady(t, n)
	}
	waitFor(t, "all to see all", func() bool {
		for _, n := range []*Node{first, second, third} {
			peers := n.Status().Peers
			if len(peers) != 2 || peers[0].LastProofMS == nil || peers[1].LastProofMS == nil {
				return false
			}
		}
		return true
	})
	var got struct {
		Schema string
		Peers  []struct {
			ID, Name, Address, Error string
			Status                   *Status
		}
	}
	_, body := get(t, first, "/mesh")
	if err := json.Unmarshal([]byte(body), &got); err != nil || got.Schema != "overlayd.mesh/v1" || len(got.Peers) != 2 {
		t.Fatalf("%v: %s", err, body)
	}
	two, three := got.Peers[0], got.Peers[1]
	if two.Name != "node2" || two.Error != "" || two.Status == nil || two.Status.Node.ID != second.Status().Node.ID || two.Address != netip.AddrPortFrom(testAddr(2), at).String() {
		t.Errorf("the second: %s", body)
	} else if p := two.Status.Peers; len(p) != 2 || p[0].Name != "node1" || p[1].Name != "node3" || p[1].Path != PathUserspaceUDP {
		t.Errorf("the second's peers: %+v", p)
	}
	if three.Name != "node3" || three.Status != nil || !strings.HasPrefix(three.Error, "nothing listens there") {
		t.Errorf("the third: %s", body)
	}
	for _, n := range []*Node{third, second, first} {
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
	}
	check()
}

// TestReadPeerStatus: what answers in a peer's place is not taken for it.
func TestReadPeerStatus(t *testing.T) {
	s := Status{Schema: StatusSchema, Node: NodeStatus{ID: "02", Name: "other\nhost"}}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := readPeerStatus("02", b); err != nil || got.(Status).Node.ID != "02" {
		t.Errorf("%v %v", got, err)
	}
	for id, answer := range map[string]string{
		"03": string(b), "02": `{"schema":"overlayd.status/v2","node":{"id":"02"}}`, "04": "", "05": "[]", "06": `{"node":{"id":"06"}}`, "07": `{"schema":"overlayd.status/v1"}`,
	} {
		if got, err := readPeerStatus(id, []byte(answer)); err == nil || got != nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v %v", answer, got, err)
		}
	}
}

// TestHTTP: what a mesh says by HTTP is what its status says, before it is ready, while
// it runs, and after a peer is gone.
func TestHTTP(t *testing.T) {
	check := nothingLeft(t)
	cfg := testConfig(t, 1)
	cfg.HTTPListen = "127.0.0.1:0"
	first := startNode(t, cfg)
	awaitReady(t, first)
	if code, body := get(t, first, "/readyz"); code != http.StatusOK {
		t.Errorf("ready: %d %s", code, body)
	}
	cfg2 := testConfig(t, 2)
	cfg2.Join = []string{testAddr(1).String()}
	cfg2.HTTPListen = "127.0.0.1:0"
	second := startNode(t, cfg2) // which has a lease once its claim has spread
	if code, body := get(t, second, "/readyz"); code != http.StatusServiceUnavailable || body != "0 of 2 subnets are held\n" {
		t.Errorf("before it has a lease: %d %s", code, body)
	}
	if code, body := get(t, second, "/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("before it has a lease: %d %s", code, body)
	}
	awaitReady(t, second)
	waitFor(t, "a proof", func() bool {
		p := first.Status().Peers
		return len(p) == 1 && p[0].LastProofMS != nil && len(p[0].Subnets) == 2
	})

	_, body := get(t, first, "/status")
	var got, want Status
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(first.Status())
	if err != nil || json.Unmarshal(b, &want) != nil {
		t.Fatal(err)
	}
	for _, s := range []*Status{&got, &want} {
		s.Drops, s.Peers[0].LastProofMS, s.Peers[0].RTTUS = nil, nil, 0 // they move
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("/status is not the status: -want +got:\n%s", diff)
	}
	waitFor(t, "all leases", func() bool {
		_, body := get(t, first, "/leases")
		return strings.Count(body, `"state":"held"`) == 4
	})

	_, scrape := get(t, first, "/metrics")
	id := second.Status().Node.ID
	for series, want := range map[string]string{
		fmt.Sprintf(`overlayd_peer_info{path="userspace-udp",peer="node2",peer_id="%s",state="alive"}`, id): "1",
		`overlayd_node_ready`:                            "1",
		`overlayd_subnets_held`:                          "2",
		`overlayd_subnets_wanted`:                        "2",
		`overlayd_leases{state="held"}`:                  "4",
		`overlayd_gossip_synced`:                         "1",
		`overlayd_gossip_members{state="alive"}`:         "1",
		`overlayd_path_peers{path="userspace-udp"}`:      "1",
		`overlayd_drops_total{reason="tx_no_owner"}`:     "0",
		`overlayd_peer_mtu_bytes{peer="node2"`:           "1400",
		`overlayd_peer_transmit_packets_total{`:          "0",
		`overlayd_probe_rtt_seconds_count{path="direct"`: "0",
	} {
		if got := value(t, scrape, series); got != want {
			t.Errorf("%s is %s, want %s", series, got, want)
		}
	}
	if got := value(t, scrape, `overlayd_probe_rtt_seconds_count{path="userspace"}`); got == "0" {
		t.Error("no round trip was counted")
	}
	if got := value(t, scrape, `overlayd_peer_rtt_seconds{`); got == "0" {
		t.Error("the peer has no round trip")
	}

	if err := second.Stop(); err != nil {
		t.Error(err)
	}
	waitFor(t, "the change to be counted", func() bool {
		_, scrape := get(t, first, "/metrics")
		return strings.Contains(scrape, `overlayd_path_changes_total{from="userspace-udp",reason="left",to="none"} 1`)
	})
	if err := first.Stop(); err != nil {
		t.Error(err)
	}
	check()
}

// TestHTTPLater: an HTTP address that the host does not have is warned of, and nothing
// else waits for it.
func TestHTTPLater(t *testing.T) {
	cfg := testConfig(t, 1)
	cfg.HTTPListen = "192.0.2.77:9570"
	n := startNode(t, cfg)
	awaitReady(t, n)
	const want = "the HTTP address 192.0.2.77:9570 is none of this host's: nothing answers there until it is, or choose another --http-listen"
	if w := n.Status().Node.Warnings; !slices.Contains(w, want) {
		t.Errorf("warnings: %q", w)
	}
	for _, own := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0"} {
		if got := nobodysDoor(netip.MustParseAddrPort(own)); got != "" {
			t.Errorf("%s: %s", own, got)
		}
	}
}

// A conductor that does not come back is no healthy node.
func TestStuck(t *testing.T) {
	n := startNode(t, testConfig(t, 1))
	if err := n.healthy(); err != nil {
		t.Errorf("as it starts: %v", err)
	}
	awaitReady(t, n)
	n.Stop()
	if err := n.healthy(); err == nil {
		t.Error("a node that was stopped is healthy")
	}
	m := startNode(t, testConfig(t, 1))
	defer m.Stop()
	// The conductor is well and comes back: again, until it is seen before it has.
	waitFor(t, "a conductor that is stuck to be told", func() bool {
		m.beat.Store(time.Now().Add(-stuckAfter - time.Second).UnixNano())
		err := m.healthy()
		return err != nil && strings.Contains(err.Error(), "not followed since")
	})
}

// thousand are static peers, which cost what any peer costs that answers no probe.
func thousand(cfg *Config) {
	for i := range 1000 {
		cfg.StaticPeers = append(cfg.StaticPeers, StaticPeer{
			Name:     fmt.Sprintf("static-%04d", i),
			Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 8285),
			Subnets:  prefixes(fmt.Sprintf("100.96.%d.%d/30", 64+i>>6, i<<2&0xff)),
		})
	}
}

// BenchmarkScrape1000 is a scrape of a node with a thousand peers, over TCP.
func BenchmarkScrape1000(b *testing.B) {
	cfg := testConfig(b, 1)
	cfg.HTTPListen, cfg.Logger = "127.0.0.1:0", nil
	cfg.Networks = prefixes("100.96.0.0/16")
	thousand(&cfg)
	n := startNode(b, cfg)
	awaitReady(b, n)
	b.Run("scrape", func(b *testing.B) {
		for b.Loop() {
			if _, body := get(b, n, "/metrics"); strings.Count(body, "\noverlayd_peer_info{") != 1000 {
				b.Fatal("not all peers are there")
			}
		}
	})
	b.Run("snapshot", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n.metrics()
		}
	})
	if err := n.Stop(); err != nil {
		b.Error(err)
	}
}
