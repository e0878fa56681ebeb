package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxAnswer is the longest document that a Client takes: a status of some ten
// thousand peers.
const maxAnswer = 64 << 20

// pollInterval is how often a Client looks whether a node has stopped.
const pollInterval = 20 * time.Millisecond

// Client asks the node of a run directory. It holds no connection, needs no
// Close, and may be used by many goroutines.
type Client struct {
	dir  string
	http http.Client
}

// NewClient returns a client of the node whose run directory is runDir. It
// does not look whether there is one; see Check.
func NewClient(runDir string) *Client {
	c := &Client{dir: runDir}
	c.http.Transport = &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dial(ctx, c.dir)
		},
	}
	return c
}

// Socket is the path of the socket.
func (c *Client) Socket() string { return filepath.Join(c.dir, SocketName) }

// Check reports whether a node listens. The error wraps ErrNotRunning when
// none does, and fs.ErrPermission when the socket may not be used.
func (c *Client) Check(ctx context.Context) error {
	conn, err := dial(ctx, c.dir)
	if err != nil {
		return c.explain(err)
	}
	return conn.Close()
}

// Get fetches a document. The error wraps an [*Error] when the node reports
// one, and what Check says when there is no node.
func (c *Client) Get(ctx context.Context, path string, query url.Values) (json.RawMessage, error) {
	return c.do(ctx, http.MethodGet, path, query)
}

// Post asks the node to do something.
func (c *Client) Post(ctx context.Context, path string, query url.Values) (json.RawMessage, error) {
	return c.do(ctx, http.MethodPost, path, query)
}

// Leave asks the node to leave and returns when it no longer uses its run
// directory.
func (c *Client) Leave(ctx context.Context) error {
	_, err := c.Post(ctx, "/v1/leave", nil)
	if err != nil {
		// A process that exits right behind its node may cut the answer off:
		// then the node has stopped all the same. An error that the node
		// reports, or that the connection could not be made, is another matter.
		var remote *Error
		if errors.As(err, &remote) || !cutOff(err) {
			return err
		}
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if errors.Is(c.Check(ctx), ErrNotRunning) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the node at %s has not stopped: %w", c.Socket(), ctx.Err())
		}
	}
}

func cutOff(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

// Stream copies an answer to w until ctx ends, which is no error, or the node ends it.
func (c *Client) Stream(ctx context.Context, path string, query url.Values, w io.Writer) error {
	resp, err := c.request(ctx, http.MethodGet, path, query)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		_, err := c.read(resp, http.MethodGet, path)
		return err
	}
	out := &taker{w: w}
	if _, err := io.Copy(out, resp.Body); err != nil && out.err == nil && ctx.Err() == nil {
		return fmt.Errorf("the node at %s has ended it: it stopped or failed, or this end read too slowly: %w", c.Socket(), err)
	}
	return out.err
}

// taker remembers that w failed.
type taker struct {
	w   io.Writer
	err error
}

func (t *taker) Write(b []byte) (int, error) {
	n, err := t.w.Write(b)
	t.err = err
	return n, err
}

func (c *Client) do(ctx context.Context, method, path string, query url.Values) (json.RawMessage, error) {
	resp, err := c.request(ctx, method, path, query)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return c.read(resp, method, path)
}

func (c *Client) request(ctx context.Context, method, path string, query url.Values) (*http.Response, error) {
	// The host is a matter of form: every connection goes to the socket.
	u := url.URL{Scheme: "http", Host: "overlayd", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, c.explain(err)
	}
	return resp, nil
}

// read takes the whole answer.
func (c *Client) read(resp *http.Response, method, path string) (json.RawMessage, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("answer of the node at %s: %w", c.Socket(), err)
	}
	if len(body) > maxAnswer {
		return nil, fmt.Errorf("answer of the node at %s is longer than %d bytes", c.Socket(), maxAnswer)
	}
	if resp.StatusCode < http.StatusBadRequest {
		return body, nil
	}
	var e errorBody
	if json.Unmarshal(body, &e) == nil && e.Error != nil && e.Error.Message != "" {
		// What comes over the socket is shown as one line, whatever it is.
		e.Error.Message = strings.Join(strings.Fields(e.Error.Message), " ")
		return nil, e.Error
	}
	return nil, fmt.Errorf("the node at %s does not know the request %s %s (%s): it runs another version", c.Socket(), method, path, resp.Status)
}

// explain turns the error of a connection into one that says what it means.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w at %s", ErrNotRunning, c.Socket())
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("socket %s: %w", c.Socket(), fs.ErrPermission)
	}
	return fmt.Errorf("the node at %s did not answer: %w", c.Socket(), err)
}
