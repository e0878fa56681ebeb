package overlayd

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"github.com/overlayd/overlayd/internal/capture"
	"github.com/overlayd/overlayd/internal/control"
)

// ErrNotRunning is what a Client returns, wrapped, when no node answers in its
// run directory.
var ErrNotRunning = control.ErrNotRunning

// PingResult is the answer to one probe.
type PingResult struct {
	Peer     string // name
	PeerID   string
	Endpoint string // "addr:port" that the probe was sent to
	Path     string // one of the Path constants
	RTT      time.Duration
}

// pingResultJSON is a PingResult in JSON, where times have their unit in their
// name.
type pingResultJSON struct {
	Peer     string `json:"peer"`
	PeerID   string `json:"peer_id"`
	Endpoint string `json:"endpoint"`
	Path     string `json:"path"`
	RTTUS    int64  `json:"rtt_us"`
}

// MarshalJSON gives the round-trip time in microseconds, as "rtt_us".
func (p PingResult) MarshalJSON() ([]byte, error) {
	return json.Marshal(pingResultJSON{p.Peer, p.PeerID, p.Endpoint, p.Path, p.RTT.Microseconds()})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (p *PingResult) UnmarshalJSON(b []byte) error {
	var v pingResultJSON
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	*p = PingResult{v.Peer, v.PeerID, v.Endpoint, v.Path, time.Duration(v.RTTUS) * time.Microsecond}
	return nil
}

// Client asks a node, usually of another process, through the control socket
// in its run directory. It holds no connection and needs no Close. Its methods
// may be called by many goroutines; their errors wrap ErrNotRunning when no
// node answers (any more), and fs.ErrPermission when the caller may not use the
// socket, which its owner and its group may.
type Client struct {
	c *control.Client
}

// Dial looks for the node whose Config.RunDir is runDir.
func Dial(runDir string) (*Client, error) {
	c := &Client{c: control.NewClient(runDir)}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := c.c.Check(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Status is Node.Status of the node.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var d Status
	err := c.document(ctx, "/v1/status", StatusSchema, &d.Schema, &d)
	return d, err
}

// Peers is Node.Peers of the node.
func (c *Client) Peers(ctx context.Context) (Peers, error) {
	var d Peers
	err := c.document(ctx, "/v1/peers", PeersSchema, &d.Schema, &d)
	return d, err
}

// Routes is Node.Routes of the node.
func (c *Client) Routes(ctx context.Context) (Routes, error) {
	var d Routes
	err := c.document(ctx, "/v1/routes", RoutesSchema, &d.Schema, &d)
	return d, err
}

// Drops is Node.Drops of the node.
func (c *Client) Drops(ctx context.Context) (Drops, error) {
	var d Drops
	err := c.document(ctx, "/v1/drops", DropsSchema, &d.Schema, &d)
	return d, err
}

// Leases is Node.Leases of the node.
func (c *Client) Leases(ctx context.Context) (Leases, error) {
	var d Leases
	err := c.document(ctx, "/v1/leases", LeasesSchema, &d.Schema, &d)
	return d, err
}

// Evict is Node.Evict of the node.
func (c *Client) Evict(ctx context.Context, prefix netip.Prefix) error {
	_, err := c.c.Post(ctx, "/v1/evict", url.Values{"prefix": {prefix.String()}})
	return err
}

// Keys is Node.Keys of the node.
func (c *Client) Keys(ctx context.Context) (Keys, error) {
	var d Keys
	err := c.document(ctx, "/v1/keys", KeysSchema, &d.Schema, &d)
	return d, err
}

// AddKey is Node.AddKey of the node.
func (c *Client) AddKey(ctx context.Context, key []byte) error {
	return c.changeKeys(ctx, url.Values{"add": {hex.EncodeToString(key)}})
}

// UseKey is Node.UseKey of the node.
func (c *Client) UseKey(ctx context.Context, id string) error {
	return c.changeKeys(ctx, url.Values{"use": {id}})
}

// RemoveKey is Node.RemoveKey of the node.
func (c *Client) RemoveKey(ctx context.Context, id string) error {
	return c.changeKeys(ctx, url.Values{"remove": {id}})
}

func (c *Client) changeKeys(ctx context.Context, q url.Values) error {
	_, err := c.c.Post(ctx, "/v1/keys", q)
	return err
}

// Lookup is Node.Lookup of the node.
func (c *Client) Lookup(ctx context.Context, addr netip.Addr) (RouteStatus, error) {
	var d RouteStatus
	b, err := c.c.Get(ctx, "/v1/routes/"+addr.String(), nil)
	if err != nil {
		return d, err
	}
	return d, c.decode(b, &d)
}

// Ping is Node.Ping of the node: one probe to the peer that has target as its
// name or id, or owns it as an address. When nothing answers until ctx ends,
// errors.Is(err, context.DeadlineExceeded) holds.
func (c *Client) Ping(ctx context.Context, target string) (PingResult, error) {
	q := url.Values{"target": {target}}
	asking := ctx
	if t, ok := ctx.Deadline(); ok {
		// The node gives up at the same time and says so, which must still
		// arrive: so the question outlives the deadline a little, but not a
		// cancellation.
		left := max(time.Until(t), time.Millisecond)
		q.Set("timeout_ms", strconv.FormatInt((left+time.Millisecond-1).Milliseconds(), 10))
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), left+time.Second)
		defer cancel()
		stop := context.AfterFunc(ctx, func() {
			if ctx.Err() == context.Canceled {
				cancel()
			}
		})
		defer stop()
		asking = late
	}
	var d PingResult
	b, err := c.c.Post(asking, "/v1/ping", q)
	if err != nil {
		return d, err
	}
	return d, c.decode(b, &d)
}

// SetPath is Node.SetPath of the node.
func (c *Client) SetPath(ctx context.Context, target, want string) (PathResult, error) {
	var d PathResult
	b, err := c.c.Post(ctx, "/v1/path", url.Values{"target": {target}, "path": {want}})
	if err != nil {
		return d, err
	}
	return d, c.decode(b, &d)
}

// Reload has the program that runs the node read its settings anew, and returns the names
// of those that have changed; see Config.OnReload.
func (c *Client) Reload(ctx context.Context) ([]string, error) {
	b, err := c.c.Post(ctx, "/v1/reload", nil)
	if err != nil {
		return nil, err
	}
	var d reloaded
	return d.Changed, c.decode(b, &d)
}

// Capture is Node.Capture of the node, without the numbers, which stand in what is
// written. It ends with ctx, which is no error.
func (c *Client) Capture(ctx context.Context, cfg CaptureConfig, w io.Writer) error {
	q := url.Values{"peer": {cfg.Peer}, "path": {cfg.Path}, "max_bytes": {strconv.FormatInt(cfg.MaxBytes, 10)}}
	return c.c.Stream(ctx, "/v1/capture", q, &capture.Blocks{W: w})
}

// Leave is Node.Leave of the node: it releases its subnets, says good-bye and
// stops. Leave returns when the node has stopped.
func (c *Client) Leave(ctx context.Context) error { return c.c.Leave(ctx) }

// document fetches a document into doc, whose schema field is at got.
func (c *Client) document(ctx context.Context, path, schema string, got *string, doc any) error {
	b, err := c.c.Get(ctx, path, nil)
	if err != nil {
		return err
	}
	if err := c.decode(b, doc); err != nil {
		return err
	}
	if *got != schema {
		return fmt.Errorf("the node at %s speaks %q and this program %q: use the same version", c.c.Socket(), *got, schema)
	}
	return nil
}

func (c *Client) decode(b []byte, doc any) error {
	if err := json.Unmarshal(b, doc); err != nil {
		return fmt.Errorf("answer of the node at %s: %w", c.c.Socket(), err)
	}
	return nil
}
