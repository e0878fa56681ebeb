package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"syscall"
	"time"
)

// Bounds on asking peers: how many are asked, how long for, how much each may say, and for
// how long the answers are told again to whoever asks this node.
const (
	maxTargets = 64
	patience   = 3 * time.Second
	maxAnswer  = 256 << 10
	fresh      = 2 * time.Second
)

// MeshSchema is that of the document at /mesh.
const MeshSchema = "overlayd.mesh/v1"

// Asking is the asking of peers for their own /status, by plain HTTP. Where they are asked
// comes out of gossip, and so does who they are: nobody vouches for what answers there.
type Asking struct {
	// Targets are those that can be asked now.
	Targets func() []Target
	// Read checks what answered in the name of the target with an id, and returns what of
	// it is to be passed on as JSON. It does not keep the bytes.
	Read func(id string, answer []byte) (any, error)
}

// Target is a peer, and where it answers HTTP.
type Target struct {
	ID, Name string
	Addr     netip.AddrPort
}

// View is what a peer said of itself.
type View struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"` // "addr:port" where it was asked
	Error   string `json:"error"`   // why there is no status; empty if there is one
	Status  any    `json:"status"`  // its /status, or null
}

// Mesh is what the peers said, in the order of the targets.
type Mesh struct {
	Schema string `json:"schema"` // MeshSchema
	Peers  []View `json:"peers"`
	// Omitted is how many were not asked, since it is too much.
	Omitted int `json:"omitted"`
}

// asker asks, for all who ask this node, once in a while.
type asker struct {
	Asking
	ctx    context.Context // ends with the server
	client http.Client

	mu   sync.Mutex // held while peers are asked: others wait for what they say
	last Mesh
	at   time.Time
}

func newAsker(ctx context.Context, a Asking) *asker {
	return &asker{Asking: a, ctx: ctx, client: http.Client{
		// Neither by a proxy nor to where an answer leads, and nothing that unpacks to more
		// than it was.
		Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       patience,
	}}
}

// mesh is what the peers say, not older than fresh.
func (a *asker) mesh() Mesh {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.at) < fresh {
		return a.last
	}
	targets := a.Targets()
	m := Mesh{Schema: MeshSchema, Omitted: max(0, len(targets)-maxTargets)}
	targets = targets[:len(targets)-m.Omitted]
	m.Peers = make([]View, len(targets))
	var asked sync.WaitGroup
	for i, t := range targets {
		asked.Go(func() {
			v := View{ID: t.ID, Name: t.Name, Address: t.Addr.String()}
			if status, err := a.ask(t); err != nil {
				v.Error = err.Error()
			} else {
				v.Status = status
			}
			m.Peers[i] = v
		})
	}
	asked.Wait()
	a.last, a.at = m, time.Now()
	return m
}

// ask asks one of them. The error is a line for people.
func (a *asker) ask(t Target) (any, error) {
	r, err := http.NewRequestWithContext(a.ctx, http.MethodGet, "http://"+t.Addr.String()+"/status", nil)
	if err != nil {
		return nil, err
	}
	resp, err := a.client.Do(r)
	if err != nil {
		return nil, unanswered(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("what answers there says %d to /status: is it overlayd?", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, unanswered(err)
	case len(body) > maxAnswer:
		return nil, fmt.Errorf("the answer has more than %d KiB", maxAnswer>>10)
	}
	return a.Read(t.ID, body)
}

// unanswered says why there is no answer.
func unanswered(err error) error {
	var timeout interface{ Timeout() bool }
	var by *url.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("nothing listens there: is its --http-listen at that address and port?")
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("no answer in %v: is the TCP port open?", patience)
	case errors.As(err, &by):
		return by.Err
	}
	return err
}
