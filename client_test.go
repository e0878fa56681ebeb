package overlayd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/overlayd/overlayd/internal/control"
)

var updateGolden = flag.Bool("update", false, "write the golden files of testdata")

// fakeNode answers with fixed documents.
type fakeNode struct {
	status Status
	routes Routes
	leases Leases
	keys   Keys
	asked  string // what was done last
	keyErr error
	lookup func(netip.Addr) (RouteStatus, error)
	ping   func(context.Context, string) (PingResult, error)
	leave  func(context.Context) error
	record func(context.Context, CaptureConfig, io.Writer) error
}

func (f *fakeNode) Status() Status            { return f.status }
func (f *fakeNode) Peers() Peers              { return Peers{PeersSchema, f.status.Peers} }
func (f *fakeNode) Routes() Routes            { return f.routes }
func (f *fakeNode) Drops() Drops              { return Drops{DropsSchema, f.status.Drops} }
func (f *fakeNode) Leases() Leases            { return f.leases }
func (f *fakeNode) Keys() Keys                { return f.keys }
func (f *fakeNode) AddKey(key []byte) error   { f.asked = "add " + KeyID(key); return f.keyErr }
func (f *fakeNode) UseKey(id string) error    { f.asked = "use " + id; return f.keyErr }
func (f *fakeNode) RemoveKey(id string) error { f.asked = "remove " + id; return f.keyErr }
func (f *fakeNode) SetPath(_ context.Context, target, want string) (PathResult, error) {
	f.asked = "path " + target + " " + want
	return PathResult{Peer: target, Path: want}, f.keyErr
}
func (f *fakeNode) Lookup(a netip.Addr) (RouteStatus, error) { return f.lookup(a) }
func (f *fakeNode) Evict(_ context.Context, p netip.Prefix) error {
	f.asked = "evict " + p.String()
	return f.keyErr
}
func (f *fakeNode) capture(ctx context.Context, cfg CaptureConfig, w io.Writer, flush func() error) (CaptureStats, error) {
	err := f.record(ctx, cfg, w)
	if err == nil {
		err = flush()
	}
	return CaptureStats{}, err
}
func (f *fakeNode) reload(context.Context) ([]string, error) {
	f.asked = "reload"
	return []string{"--join"}, f.keyErr
}
func (f *fakeNode) Leave(ctx context.Context) error                        { return f.leave(ctx) }
func (f *fakeNode) Ping(ctx context.Context, t string) (PingResult, error) { return f.ping(ctx, t) }

func emptyNode() *fakeNode {
	return &fakeNode{
		status: Status{
			Schema: StatusSchema,
			Node: NodeStatus{
				ID: "000102030405060708090a0b0c0d0e0f", Name: "a", Version: "v0.1.0", Endpoints: []string{},
				Subnets: []netip.Prefix{}, Encap: "udp", VNI: 1, VTEPMAC: "02:00:00:00:00:01", FastPath: "auto", Warnings: []string{},
			},
			Peers: []PeerStatus{},
			Drops: map[string]uint64{},
		},
		routes: Routes{Schema: RoutesSchema, Routes: []RouteStatus{}},
		leases: Leases{Schema: LeasesSchema, Leases: []LeaseStatus{}},
		keys:   Keys{Schema: KeysSchema, Keys: []KeyStatus{}},
	}
}

func fullNode() *fakeNode {
	proof := int64(412)
	since := time.Date(2026, 3, 1, 12, 30, 45, 0, time.UTC)
	renewed := since.Add(20 * time.Second)
	n := emptyNode()
	n.status.Node.Endpoints = []string{"192.0.2.1:8285", "[2001:db8::1]:8285"}
	n.status.Node.Subnets = []netip.Prefix{netip.MustParsePrefix("100.96.1.0/24"), netip.MustParsePrefix("fd96:0:0:1::/64")}
	n.status.Node.MTU = 1422
	n.status.Node.Warnings = []string{"net.ipv4.ip_forward is 0: containers are not reached: run \"sysctl -w net.ipv4.ip_forward=1\""}
	n.status.Peers = []PeerStatus{
		{
			ID: "100102030405060708090a0b0c0d0e0f", Name: "b", State: "alive", Endpoint: "192.0.2.2:8285",
			Subnets: []netip.Prefix{netip.MustParsePrefix("100.96.2.0/24"), netip.MustParsePrefix("fd96:0:0:2::/64")},
			Path:    PathUserspaceUDP, PathReason: "answers probes", PathSince: since, LastProofMS: &proof, RTTUS: 345, MTU: 1422,
			TxBytes: 123456789, RxBytes: 987, TxPackets: 100000, RxPackets: 9,
		},
		{
			ID: "200102030405060708090a0b0c0d0e0f", Name: "c", State: "suspect", Endpoint: "[2001:db8::3]:8285",
			Subnets: []netip.Prefix{}, Path: PathNone, PathReason: "no answer on UDP port 8285: gossip is alive", PathSince: since,
		},
	}
	n.status.Drops = map[string]uint64{"spoofed-source": 3, "no-route": 0}
	n.routes.Routes = []RouteStatus{
		{Prefix: netip.MustParsePrefix("100.96.1.0/24"), Peer: "a", PeerID: n.status.Node.ID, Path: "local", Reason: "held"},
		{Prefix: netip.MustParsePrefix("100.96.2.0/24"), Peer: "b", PeerID: n.status.Peers[0].ID, Endpoint: "192.0.2.2:8285", Path: PathUserspaceUDP, Reason: "answers probes"},
		{Prefix: netip.MustParsePrefix("fd96:0:0:2::/64"), Peer: "b", PeerID: n.status.Peers[0].ID, Endpoint: "192.0.2.2:8285", Path: PathUserspaceUDP, Reason: "answers probes"},
	}
	n.leases.Leases = []LeaseStatus{
		{
			Prefix: netip.MustParsePrefix("100.96.1.0/24"), Owner: "a", OwnerID: n.status.Node.ID, OwnerState: "self",
			State: "held", Class: "static", Wins: true, Why: "no stronger claim", HeldSince: &since,
			Renewed: &renewed, Expires: renewed.AddDate(0, 0, 8), Gen: 2, Version: 5,
		},
		{
			Prefix: netip.MustParsePrefix("100.96.1.0/24"), OwnerID: n.status.Peers[1].ID, OwnerState: "unknown",
			State: "tentative", Class: "dynamic", Why: "loses to 00010203 (static before dynamic)", Expires: renewed, Gen: 2, Version: 1,
		},
	}
	n.keys.Keys = []KeyStatus{{ID: "0011223344556677", Bits: 256, Sending: true}, {ID: "8899aabbccddeeff", Bits: 128}}
	return n
}

// serveFake serves a node's control socket until the test ends.
func serveFake(t *testing.T, n *fakeNode) *Client {
	t.Helper()
	lock, err := control.Acquire(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s, err := control.Serve(lock, controlHandlers(n), nil)
	if err != nil {
		t.Fatal(err)
	}
	if n.leave == nil {
		n.leave = func(context.Context) error { return errors.Join(s.Close(), lock.Release()) }
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), lock.Release()); err != nil {
			t.Error(err)
		}
	})
	c, err := Dial(lock.Dir())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestGoldenDocuments holds the JSON that other programs read. What changes
// here is a change of the schema.
func TestGoldenDocuments(t *testing.T) {
	for name, n := range map[string]*fakeNode{"empty": emptyNode(), "full": fullNode()} {
		c := serveFake(t, n)
		for _, doc := range []struct {
			name string
			want any
			get  func() (any, error)
		}{
			{"status", n.status, func() (any, error) { return c.Status(t.Context()) }},
			{"peers", n.Peers(), func() (any, error) { return c.Peers(t.Context()) }},
			{"routes", n.routes, func() (any, error) { return c.Routes(t.Context()) }},
			{"keys", n.keys, func() (any, error) { return c.Keys(t.Context()) }},
			{"leases", n.leases, func() (any, error) { return c.Leases(t.Context()) }},
			{"drops", n.Drops(), func() (any, error) { return c.Drops(t.Context()) }},
		} {
			t.Run(doc.name+"-"+name, func(t *testing.T) {
				got, err := doc.get()
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(doc.want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
					t.Errorf("the client reads another document (-node +client):\n%s", diff)
				}
				b, err := json.MarshalIndent(got, "", "  ")
				if err != nil {
					t.Fatal(err)
				}
				b = append(b, '\n')
				if bytes.Contains(b, []byte("null")) && doc.name != "peers" && doc.name != "status" && doc.name != "leases" {
					t.Errorf("null in %s", b)
				}
				golden := filepath.Join("testdata", doc.name+"-"+name+".json")
				if *updateGolden {
					if err := os.MkdirAll("testdata", 0o755); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(golden, b, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), string(b)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", golden, diff)
				}
			})
		}
	}
}

// TestStatusFields compares the fields of the JSON with the list of the
// design, word by word.
func TestStatusFields(t *testing.T) {
	fields := func(v any) string {
		var names []string
		typ := reflect.TypeOf(v)
		for i := range typ.NumField() {
			names = append(names, typ.Field(i).Tag.Get("json"))
		}
		return strings.Join(names, ",")
	}
	for _, tt := range []struct{ got, want string }{
		{fields(Status{}), "schema,node,peers,drops"},
		{fields(NodeStatus{}), "id,name,version,endpoints,subnets,mtu,encap,vni,vtep_mac,fast_path,warnings"},
		{fields(PeerStatus{}), "id,name,state,endpoint,subnets,path,path_reason,path_since,last_proof_ms,rtt_us,mtu,tx_bytes,rx_bytes,tx_packets,rx_packets"},
	} {
		if tt.got != tt.want {
			t.Errorf("got  %s\nwant %s", tt.got, tt.want)
		}
	}
}

func TestClientLookup(t *testing.T) {
	n := fullNode()
	n.lookup = func(a netip.Addr) (RouteStatus, error) {
		for _, r := range n.routes.Routes {
			if r.Prefix.Contains(a) {
				return r, nil
			}
		}
		return RouteStatus{}, fmt.Errorf("no route to %s", a)
	}
	c := serveFake(t, n)
	for _, addr := range []string{"100.96.2.7", "fd96:0:0:2::7"} {
		r, err := c.Lookup(t.Context(), netip.MustParseAddr(addr))
		if err != nil || r.Peer != "b" || !r.Prefix.Contains(netip.MustParseAddr(addr)) {
			t.Errorf("%s: %+v %v", addr, r, err)
		}
	}
	if _, err := c.Lookup(t.Context(), netip.MustParseAddr("192.0.2.9")); err == nil || err.Error() != "no route to 192.0.2.9" {
		t.Errorf("got %v", err)
	}
	_, err := c.c.Get(t.Context(), "/v1/routes/nonsense", nil)
	var e *control.Error
	if !errors.As(err, &e) || e.Code != control.CodeRequest {
		t.Errorf("got %v", err)
	}
}

func TestClientPing(t *testing.T) {
	n := fullNode()
	want := PingResult{Peer: "b", PeerID: n.status.Peers[0].ID, Endpoint: "192.0.2.2:8285", Path: PathUserspaceUDP, RTT: 345 * time.Microsecond}
	n.ping = func(ctx context.Context, target string) (PingResult, error) {
		switch target {
		case "b":
			return want, nil
		case "silent":
			<-ctx.Done()
			return PingResult{}, fmt.Errorf("no answer from silent: %w", ctx.Err())
		}
		return PingResult{}, fmt.Errorf("no peer %q", target)
	}
	c := serveFake(t, n)
	if got, err := c.Ping(t.Context(), "b"); err != nil || got != want {
		t.Errorf("got %+v %v", got, err)
	}
	if _, err := c.Ping(t.Context(), "x"); err == nil || err.Error() != `no peer "x"` {
		t.Errorf("got %v", err)
	}
	// The node's own words arrive, though the client's time is up as well.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := c.Ping(ctx, "silent")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "no answer from silent") {
		t.Errorf("got %v", err)
	}
	// Cancelling does not wait for the node.
	ctx, cancel = context.WithTimeout(t.Context(), time.Hour)
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := c.Ping(ctx, "silent"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	for _, query := range []string{"", "?target=b&timeout_ms=0", "?target=b&timeout_ms=x"} {
		resp := servedBy(n, http.MethodPost, "/v1/ping"+query)
		if resp != http.StatusBadRequest {
			t.Errorf("%q: status %d", query, resp)
		}
	}
	if got := servedBy(n, http.MethodGet, "/v1/ping?target=b"); got != http.StatusMethodNotAllowed {
		t.Errorf("GET ping: status %d", got)
	}
}

func TestClientSetPath(t *testing.T) {
	n := fullNode()
	c := serveFake(t, n)
	if got, err := c.SetPath(t.Context(), "b c/&", PathDirect); err != nil || got != (PathResult{Peer: "b c/&", Path: PathDirect}) || n.asked != "path b c/& direct" {
		t.Errorf("got %+v, %v; the node was asked %q", got, err, n.asked)
	}
	n.keyErr = errors.New("b cannot be sent packets by direct: it is far away")
	if _, err := c.SetPath(t.Context(), "b", PathDirect); err == nil || err.Error() != n.keyErr.Error() {
		t.Errorf("got %v", err)
	}
}

func TestClientLeave(t *testing.T) {
	c := serveFake(t, emptyNode())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(ctx); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("got %v", err)
	}
}

func TestDialNobody(t *testing.T) {
	if _, err := Dial(t.TempDir()); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("got %v", err)
	}
}

func TestOtherSchemaIsRefused(t *testing.T) {
	n := emptyNode()
	n.status.Schema = "overlayd.status/v2"
	_, err := serveFake(t, n).Status(t.Context())
	if err == nil || !strings.Contains(err.Error(), `speaks "overlayd.status/v2"`) {
		t.Fatalf("got %v", err)
	}
}

// servedBy returns the status of one request to a node's handlers.
func servedBy(n *fakeNode, method, target string) int {
	w := httptest.NewRecorder()
	controlHandlers(n).Query.ServeHTTP(w, httptest.NewRequest(method, "http://overlayd"+target, nil))
	return w.Code
}

// TestCaptureFails: a capture that fails at once says why, and one that fails in
// between is not taken for one that has ended.
func TestCaptureFails(t *testing.T) {
	n := emptyNode()
	c := serveFake(t, n)
	n.record = func(context.Context, CaptureConfig, io.Writer) error { return errors.New("at once") }
	if err := c.Capture(t.Context(), CaptureConfig{}, io.Discard); err == nil || err.Error() != "at once" {
		t.Errorf("%v", err)
	}
	asked := make(chan CaptureConfig, 1)
	n.record = func(_ context.Context, cfg CaptureConfig, w io.Writer) error {
		asked <- cfg
		_, err := w.Write([]byte{10, 13, 13, 10, 12, 0, 0, 0, 12, 0, 0, 0})
		return errors.Join(err, errors.New("later"))
	}
	var got bytes.Buffer
	cfg := CaptureConfig{Peer: "p", Path: "userspace", MaxBytes: 5000}
	if err := c.Capture(t.Context(), cfg, &got); err == nil {
		t.Error("no error")
	}
	if got := <-asked; got != cfg {
		t.Errorf("asked for %+v", got)
	}
	n.record = func(_ context.Context, _ CaptureConfig, w io.Writer) error {
		_, err := w.Write([]byte{10, 13, 13, 10, 12, 0, 0, 0, 12, 0, 0, 0})
		return err
	}
	got.Reset()
	if err := c.Capture(t.Context(), cfg, &got); err != nil || got.Len() != 12 {
		t.Errorf("%d bytes, %v", got.Len(), err)
	}
}
