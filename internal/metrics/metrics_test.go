package metrics

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// snapshot is one of a node with so many peers, all of whose metrics have a value.
func snapshot(peers int) Snapshot {
	s := Snapshot{
		Version: "v1.2.3",
		Node:    Node{Name: "host1", ID: "0123456789abcdef0123456789abcdef", Encap: "udp", FastPath: "auto", MTU: 1450, Ready: true, Held: 1, Wanted: 2, Warnings: 3},
		Drops:   map[string]uint64{"rx_unknown_source": 7, "tx_no_owner": 0},
		Changes: map[Change]uint64{{"userspace-udp", "kernel-vxlan", "proven"}: 2},
		Bounds:  []time.Duration{time.Millisecond, time.Second},
		RoundTrips: []RoundTrips{
			{Path: "userspace", Count: 5, Sum: 2500 * time.Millisecond, Buckets: []uint64{1, 4}},
			{Path: "kernel-vxlan", Buckets: []uint64{0, 0}},
		},
		Leases: map[string]int{"held": 4, "tentative": 0, "released": 1},
		Gossip: Gossip{Synced: true, Health: 1, Members: map[string]int{"alive": 3, "dead": 1}},
	}
	for i := range peers {
		s.Peers = append(s.Peers, Peer{
			Name: fmt.Sprintf("node-%04d", i), ID: fmt.Sprintf("%032x", i+1), State: "alive", Path: "kernel-vxlan",
			RTT: 1500 * time.Microsecond, Proof: time.UnixMilli(1_700_000_000_250), MTU: 1450,
			Paths: []Counts{{"userspace", 1, 2, 3, 4}, {"kernel-vxlan", 10, 20, 30, 40 + uint64(i)}},
		})
	}
	return s
}

func scrape(t testing.TB, s Snapshot) string {
	t.Helper()
	h, err := Handler(func() Snapshot { return s }, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestScrape(t *testing.T) {
	text := scrape(t, snapshot(2))
	for _, want := range []string{
		`overlayd_build_info{goversion="go`,
		`overlayd_node_info{encap="udp",fast_path="auto",id="0123456789abcdef0123456789abcdef",name="host1"} 1`,
		`overlayd_node_ready 1`,
		`overlayd_subnets_held 1`,
		`overlayd_subnets_wanted 2`,
		`overlayd_leases{state="held"} 4`,
		`overlayd_gossip_synced 1`,
		`overlayd_gossip_health_score 1`,
		`overlayd_gossip_members{state="dead"} 1`,
		`overlayd_path_peers{path="kernel-vxlan"} 2`,
		`overlayd_path_peers{path="none"} 0`,
		`overlayd_path_changes_total{from="userspace-udp",reason="proven",to="kernel-vxlan"} 2`,
		`overlayd_drops_total{reason="rx_unknown_source"} 7`,
		`overlayd_drops_total{reason="tx_no_owner"} 0`,
		`overlayd_probe_rtt_seconds_bucket{path="userspace",le="0.001"} 1`,
		`overlayd_probe_rtt_seconds_bucket{path="userspace",le="1"} 4`,
		`overlayd_probe_rtt_seconds_bucket{path="userspace",le="+Inf"} 5`,
		`overlayd_probe_rtt_seconds_sum{path="userspace"} 2.5`,
		`overlayd_peers_without_series 0`,
		`overlayd_peer_info{path="kernel-vxlan",peer="node-0001",peer_id="00000000000000000000000000000002",state="alive"} 1`,
		`overlayd_peer_last_proof_timestamp_seconds{peer="node-0000",peer_id="00000000000000000000000000000001"} 1.70000000025e+09`,
		`overlayd_peer_rtt_seconds{peer="node-0000",peer_id="00000000000000000000000000000001"} 0.0015`,
		`overlayd_peer_mtu_bytes{peer="node-0000",peer_id="00000000000000000000000000000001"} 1450`,
		`overlayd_peer_transmit_packets_total{path="userspace",peer="node-0000",peer_id="00000000000000000000000000000001"} 1`,
		`overlayd_peer_transmit_bytes_total{path="kernel-vxlan",peer="node-0000",peer_id="00000000000000000000000000000001"} 20`,
		`overlayd_peer_receive_packets_total{path="kernel-vxlan",peer="node-0000",peer_id="00000000000000000000000000000001"} 30`,
		`overlayd_peer_receive_bytes_total{path="kernel-vxlan",peer="node-0001",peer_id="00000000000000000000000000000002"} 41`,
		`go_goroutines `, `process_open_fds `,
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("no %s", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// The names and texts follow Prometheus' rules, and no series is there twice.
func TestLint(t *testing.T) {
	text := scrape(t, snapshot(3))
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "overlayd_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		series := line[:strings.LastIndex(line, " ")]
		if strings.HasPrefix(line, "# HELP") {
			series = "HELP " + strings.Fields(line)[2]
		}
		if seen[series] && !strings.HasPrefix(line, "# TYPE") {
			t.Errorf("twice: %s", series)
		}
		seen[series] = true
	}
}

// Peers of which nothing is known yet, and names of every kind, spoil no scrape.
func TestStrangePeers(t *testing.T) {
	s := snapshot(2)
	s.Peers[0] = Peer{Name: "a\"\\\n\xff{}", ID: "1", State: "dead", Path: "none"}
	s.Peers[1] = Peer{Name: "", ID: "2", State: "dead", Path: "none"}
	text := scrape(t, s)
	for _, want := range []string{`peer="a\"\\\n` + "\ufffd" + `{}",peer_id="1",state="dead"} 1`, `peer="",peer_id="2",state="dead"} 1`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if problems, err := promlint.New(strings.NewReader(text)).Lint(); err != nil {
		t.Error(problems, err)
	}
	if empty := scrape(t, Snapshot{}); !strings.Contains(empty, "overlayd_node_ready 0") {
		t.Errorf("without anything: %s", empty)
	}
}

// However many peers there are, there are so many series and no more.
func TestBounded(t *testing.T) {
	count := func(text, name string) int { return strings.Count(text, "\n"+name) }
	text := scrape(t, snapshot(MaxPeers+3))
	if got := count(text, "overlayd_peer_info{"); got != MaxPeers {
		t.Errorf("%d peers have series, want %d", got, MaxPeers)
	}
	for _, want := range []string{"\noverlayd_peers_without_series 3\n", fmt.Sprintf("\noverlayd_path_peers{path=\"kernel-vxlan\"} %d\n", MaxPeers+3)} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q", want)
		}
	}
	// One thing more of each peer would be a thousand series more of a large cluster.
	const peers = 1000
	text = scrape(t, snapshot(peers))
	if got, most := count(text, "overlayd_peer_"), peers*(4+2*4); got > most {
		t.Errorf("%d series of %d peers, want at most %d", got, peers, most)
	}
}

// A scrape calls for one snapshot, and all that it tells is of that one; a reader that would
// rather have another format gets text.
func TestOneSnapshot(t *testing.T) {
	taken := 0
	h, err := Handler(func() Snapshot { taken++; return snapshot(taken) }, nil)
	if err != nil {
		t.Fatal(err)
	}
	for want := 1; want <= 3; want++ {
		r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		r.Header.Set("Accept", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,text/plain;version=0.0.4;q=0.3")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		peers, told := strings.Count(w.Body.String(), "\noverlayd_peer_info{"), strings.Contains(w.Body.String(), fmt.Sprintf("\noverlayd_path_peers{path=\"kernel-vxlan\"} %d\n", want))
		if taken != want || peers != want || !told || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain; version=0.0.4") {
			t.Errorf("scrape %d: %d snapshots, %d peers, %t; %s", want, taken, peers, told, w.Header().Get("Content-Type"))
		}
	}
}

// What the registry refuses is an error of the whole scrape.
func TestFailingScrape(t *testing.T) {
	s := snapshot(1)
	s.Drops = map[string]uint64{"\xff": 1}
	h, err := Handler(func() Snapshot { return s }, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "overlayd_peer_info") {
		t.Errorf("%d: %.200s", w.Code, w.Body)
	}
}

func BenchmarkScrape(b *testing.B) {
	for _, peers := range []int{10, 1000} {
		b.Run(fmt.Sprint(peers), func(b *testing.B) {
			s := snapshot(peers)
			h, err := Handler(func() Snapshot { return s }, nil)
			if err != nil {
				b.Fatal(err)
			}
			r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
			w := &discard{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				w.n = 0
				h.ServeHTTP(w, r)
			}
			b.ReportMetric(float64(w.n), "bytes/scrape")
		})
	}
}

// discard is a ResponseWriter that counts.
type discard struct {
	header http.Header
	n      int64
}

func (d *discard) Header() http.Header { return d.header }
func (d *discard) WriteHeader(int)     {}
func (d *discard) Write(b []byte) (int, error) {
	d.n += int64(len(b))
	return io.Discard.Write(b)
}
