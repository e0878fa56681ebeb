package e2e_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// httpPort is where daemons answer HTTP, on loopback of their host.
const httpPort = "9570"

// httpGet asks a daemon that was started with --http-listen.
func (n *node) httpGet(path string) (code int, body string, err error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return n.Dial(ctx, network, netip.MustParseAddrPort(addr))
		},
	}}
	resp, err := client.Get("http://127.0.0.1:" + httpPort + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// scrape is the series of /metrics and their values.
func (n *node) scrape(t testing.TB) map[string]float64 {
	t.Helper()
	code, body, err := n.httpGet("/metrics")
	if err != nil || code != http.StatusOK {
		t.Fatalf("%s: /metrics: %d %v", n, code, err)
	}
	all := map[string]float64{}
	for s := bufio.NewScanner(strings.NewReader(body)); s.Scan(); {
		if line := s.Text(); !strings.HasPrefix(line, "#") {
			i := strings.LastIndex(line, " ")
			if all[line[:i]], err = strconv.ParseFloat(line[i+1:], 64); err != nil {
				t.Fatalf("%s: %q: %v", n, line, err)
			}
		}
	}
	return all
}

// traffic is packets and their bytes, IP header included.
type traffic struct{ txPackets, txBytes, rxPackets, rxBytes int }

func (a traffic) less(b traffic) traffic {
	return traffic{a.txPackets - b.txPackets, a.txBytes - b.txBytes, a.rxPackets - b.rxPackets, a.rxBytes - b.rxBytes}
}

// scraped is what a node's metrics say went to a peer and came from it by one path.
func (n *node) scraped(t testing.TB, other *node, path string) traffic {
	t.Helper()
	all := n.scrape(t)
	of := func(what string) int {
		for series, v := range all {
			if strings.HasPrefix(series, "overlayd_peer_"+what+`_total{path="`+path+`",peer="`+other.Name()+`",`) {
				return int(v)
			}
		}
		return 0
	}
	return traffic{of("transmit_packets"), of("transmit_bytes"), of("receive_packets"), of("receive_bytes")}
}

// floodSize is the payload of the datagrams, in bytes.
const floodSize = 333

// counted is what a capture at a container saw go to another one's subnets and come from
// them. A train of datagrams that came as one superpacket counts as what it is made of.
func counted(c *lab.Capture) (sum traffic) {
	for _, p := range c.Packets() {
		packets, bytes := segments(p.Data[14:]) // without Ethernet's header
		if p.Outgoing {
			sum.txPackets, sum.txBytes = sum.txPackets+packets, sum.txBytes+bytes
		} else {
			sum.rxPackets, sum.rxBytes = sum.rxPackets+packets, sum.rxBytes+bytes
		}
	}
	return sum
}

// segments is how many packets a packet stands for, and the sum of their lengths.
func segments(b []byte) (packets, bytes int) {
	headers, proto := 20+8, b[9] // RFC 791, RFC 768
	if b[0]>>4 == 6 {
		headers, proto = 40+8, b[6] // RFC 8200
	}
	const udp = 17
	if payload := len(b) - headers; proto == udp && payload > floodSize {
		n := (payload + floodSize - 1) / floodSize
		return n, payload + n*headers
	}
	return 1, len(b)
}

// overlayPacket tells Ethernet frames with a packet from or to one of the subnets.
func overlayPacket(subnets []netip.Prefix) func([]byte) bool {
	return func(b []byte) bool {
		var src, dst netip.Addr
		switch {
		case len(b) >= 34 && b[12] == 8 && b[13] == 0: // offsets of RFC 791
			src, dst = netip.AddrFrom4([4]byte(b[26:30])), netip.AddrFrom4([4]byte(b[30:34]))
		case len(b) >= 54 && b[12] == 0x86 && b[13] == 0xdd: // of RFC 8200
			src, dst = netip.AddrFrom16([16]byte(b[22:38])), netip.AddrFrom16([16]byte(b[38:54]))
		default:
			return false
		}
		for _, s := range subnets {
			if s.Contains(src) || s.Contains(dst) {
				return true
			}
		}
		return false
	}
}

// TestMetrics: what metrics say of packets is what passed at the container, to the packet
// and to the byte, whatever carried them; and it is what the status says.
func TestMetrics(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		args []string
		path string // of the status
		kind string // of the metrics
	}{
		{"userspace-udp", []string{"--fast-path", "off"}, "userspace-udp", "userspace"},
		{"userspace-vxlan", []string{"--fast-path", "off", "--encap", "vxlan"}, "userspace-vxlan", "userspace"},
		{"kernel-vxlan", []string{"--fast-path", "kernel-vxlan"}, "kernel-vxlan", "kernel-vxlan"},
		{"direct", []string{"--fast-path", "direct"}, "direct", "direct"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, _, nodes := seeded(t, 2, append(tt.args, "--http-listen", httpPort)...)
			a, b := nodes[0], nodes[1]
			a.awaitPath(t, meshLimit, b, tt.path)
			b.awaitPath(t, meshLimit, a, tt.path)
			// A machine that is busy with other tests may see a path fail and another one
			// taken: then what went by this one is not what was sent.
			for tries := 1; ; tries++ {
				changed := func() float64 { return a.changes(t) + b.changes(t) }
				was := changed()
				err := metricsAgree(t, a, b, tt.kind)
				switch is := changed(); {
				case err == nil:
				case is > was && tries < 5:
					t.Logf("the path has changed meanwhile, once more: %v", err)
					a.awaitPath(t, meshLimit, b, tt.path)
					b.awaitPath(t, meshLimit, a, tt.path)
					continue
				default:
					t.Error(err)
				}
				break
			}
			a.checkScrape(t, b, tt.path)
			b.checkScrape(t, a, tt.path)
			a.staysCounted(t, b, tt.kind)
		})
	}
}

// staysCounted stops another node, and holds that what came from it by probes does not
// become data with its good-bye, when the guard has them still and who sent them is gone.
func (n *node) staysCounted(t testing.TB, other *node, kind string) {
	t.Helper()
	before := n.scraped(t, other, kind)
	other.stop(t)
	n.awaitPeer(t, downLimit, other, "left", func(p peer) bool { return p.State == "left" })
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for range 15 { // the kernel's counters are read from time to time
		<-tick.C
		if now := n.scraped(t, other, kind); now != before {
			t.Fatalf("%s: metrics said %+v of %s, and say %+v since it has left", n, before, other, now)
		}
	}
}

// changes is how many changes of paths a node's metrics have.
func (n *node) changes(t testing.TB) (sum float64) {
	t.Helper()
	for series, v := range n.scrape(t) {
		if strings.HasPrefix(series, "overlayd_path_changes_total{") {
			sum += v
		}
	}
	return sum
}

// metricsAgree sends a number of packets between the containers of two nodes, and holds their
// metrics against captures there.
func metricsAgree(t testing.TB, a, b *node, kind string) error {
	t.Helper()
	others := map[*node]*node{a: b, b: a}
	// Until a few packets have passed, those count for nothing that the guard has forgotten
	// when it was set up; probes of ours may be among them.
	for n, other := range others {
		pingAll(t, n.container.Namespace, lab.PingConfig{Dst: other.container.Addr4(), Count: 20})
	}
	for n, other := range others {
		var last traffic
		var since time.Time
		labtest.Eventually(t, 10*time.Second, func() error {
			if now := n.scraped(t, other, kind); now != last {
				last, since = now, time.Now()
			}
			if last.txPackets < 20 || last.rxPackets < 20 || time.Since(since) < time.Second {
				return fmt.Errorf("%s: metrics say %+v of %s, since %v", n, last, other, time.Since(since))
			}
			return nil
		})
	}
	before, captures := map[*node]traffic{}, map[*node]*lab.Capture{}
	for n, other := range others {
		before[n] = n.scraped(t, other, kind)
		var subnets []netip.Prefix
		for _, s := range other.env.Subnets() {
			subnets = append(subnets, s.Masked())
		}
		c, err := n.container.Capture("eth0", overlayPacket(subnets))
		must(t, err)
		defer c.Stop()
		captures[n] = c
	}
	pingAll(t, a.container.Namespace, lab.PingConfig{Dst: b.container.Addr4(), Count: 40, Size: a.env.MTU})
	pingAll(t, b.container.Namespace, lab.PingConfig{Dst: a.container.Addr6(), Count: 30})
	for _, dst := range b.container.Addrs() {
		res, err := lab.Flood(within(t, 30*time.Second), lab.FloodConfig{
			From: a.container.Namespace, To: b.container.Namespace, Dst: dst, Rate: 1000, Count: 500, Size: floodSize, Linger: 2 * time.Second,
		})
		must(t, err)
		if res.Received != 500 {
			t.Errorf("%d of 500 datagrams have arrived: %+v", res.Received, res)
		}
	}
	for n, other := range others {
		want := counted(captures[n])
		if want.txPackets < 70 || want.rxPackets < 70 || want.txPackets+want.rxPackets < 1140 {
			t.Errorf("%s: the capture has %+v only", n, want)
		}
		// The kernel's counters are read from time to time.
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		got := n.scraped(t, other, kind).less(before[n])
		for range 30 {
			if got == want {
				break
			}
			<-tick.C
			got = n.scraped(t, other, kind).less(before[n])
		}
		if got != want {
			return fmt.Errorf("%s: metrics say %+v of %s, the capture %+v", n, got, other, want)
		}
		t.Logf("%s by %s: %+v, as captured", n, kind, want)
	}
	return nil
}

// checkScrape holds the metrics of a node that has nothing but one peer against its
// status, and asks for its health.
func (n *node) checkScrape(t testing.TB, other *node, path string) {
	t.Helper()
	all, s := n.scrape(t), n.status(t)
	p, err := s.peer(other)
	must(t, err)
	var sum traffic
	for _, kind := range []string{"userspace", "kernel-vxlan", "direct"} {
		k := n.scraped(t, other, kind)
		sum.txBytes, sum.rxBytes = sum.txBytes+k.txBytes, sum.rxBytes+k.rxBytes
	}
	if uint64(sum.txBytes) != p.TxBytes || uint64(sum.rxBytes) != p.RxBytes {
		t.Errorf("%s: metrics have %d bytes sent and %d received in all, the status %d and %d", n, sum.txBytes, sum.rxBytes, p.TxBytes, p.RxBytes)
	}
	for series, want := range map[string]float64{
		`overlayd_peer_info{path="` + path + `",peer="` + p.Name + `",peer_id="` + p.ID + `",state="alive"}`: 1,
		`overlayd_path_peers{path="` + path + `"}`:                                                           1,
		`overlayd_node_mtu_bytes`:       float64(s.Node.MTU),
		`overlayd_subnets_held`:         2,
		`overlayd_node_ready`:           1,
		`overlayd_leases{state="held"}`: 4,
	} {
		if got, ok := all[series]; !ok || got != want {
			t.Errorf("%s: %s is %v, want %v", n, series, got, want)
		}
	}
	if path == "kernel-vxlan" || path == "direct" {
		changes := 0.0
		for series, v := range all {
			if strings.HasPrefix(series, "overlayd_path_changes_total{") && strings.HasSuffix(series, `reason="proven",to="`+path+`"}`) {
				changes += v
			}
		}
		if changes < 1 || all[`overlayd_probe_rtt_seconds_count{path="`+path+`"}`] < 3 {
			t.Errorf("%s: %v changes to %s are counted, and %v round trips", n, changes, path, all[`overlayd_probe_rtt_seconds_count{path="`+path+`"}`])
		}
	}
	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": "ok\n", "/status": `{"schema":"overlayd.status/v1"`} {
		if code, body, err := n.httpGet(path); err != nil || code != http.StatusOK || !strings.HasPrefix(body, want) {
			t.Errorf("%s: %s: %d %.80q %v", n, path, code, body, err)
		}
	}
}
