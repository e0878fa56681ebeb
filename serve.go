package overlayd

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/overlayd/overlayd/internal/control"
)

// defaultPingTimeout bounds a probe whose client names no bound.
const defaultPingTimeout = 2 * time.Second

// maxPingTimeout bounds every probe that comes over the socket.
const maxPingTimeout = 10 * time.Second

// controlled is what the control socket needs of a Node.
type controlled interface {
	Status() Status
	Peers() Peers
	Routes() Routes
	Drops() Drops
	Leases() Leases
	Evict(ctx context.Context, prefix netip.Prefix) error
	Keys() Keys
	AddKey(key []byte) error
	UseKey(id string) error
	RemoveKey(id string) error
	Lookup(addr netip.Addr) (RouteStatus, error)
	Ping(ctx context.Context, target string) (PingResult, error)
	SetPath(ctx context.Context, target, want string) (PathResult, error)
	Leave(ctx context.Context) error
	reload(ctx context.Context) ([]string, error)
	capture(ctx context.Context, cfg CaptureConfig, w io.Writer, flush func() error) (CaptureStats, error)
}

// controlHandlers answers the requests that package control lists from n's
// public methods: whoever uses the socket can do nothing that an embedder
// cannot.
func controlHandlers(n controlled) control.Handlers {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { control.WriteJSON(w, n.Status()) })
	mux.HandleFunc("GET /v1/peers", func(w http.ResponseWriter, _ *http.Request) { control.WriteJSON(w, n.Peers()) })
	mux.HandleFunc("GET /v1/routes", func(w http.ResponseWriter, _ *http.Request) { control.WriteJSON(w, n.Routes()) })
	mux.HandleFunc("GET /v1/drops", func(w http.ResponseWriter, _ *http.Request) { control.WriteJSON(w, n.Drops()) })
	mux.HandleFunc("GET /v1/leases", func(w http.ResponseWriter, _ *http.Request) { control.WriteJSON(w, n.Leases()) })
	mux.HandleFunc("GET /v1/keys", func(w http.ResponseWriter, _ *http.Request) { control.WriteJSON(w, n.Keys()) })
	mux.HandleFunc("POST /v1/keys", func(w http.ResponseWriter, r *http.Request) { serveKeys(n, w, r) })
	mux.HandleFunc("GET /v1/routes/{addr}", func(w http.ResponseWriter, r *http.Request) { serveLookup(n, w, r) })
	mux.HandleFunc("POST /v1/ping", func(w http.ResponseWriter, r *http.Request) { servePing(n, w, r) })
	mux.HandleFunc("POST /v1/path", func(w http.ResponseWriter, r *http.Request) { servePath(n, w, r) })
	mux.HandleFunc("POST /v1/reload", func(w http.ResponseWriter, r *http.Request) { serveReload(n, w, r) })
	mux.HandleFunc("POST /v1/evict", func(w http.ResponseWriter, r *http.Request) { serveEvict(n, w, r) })
	stream := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { serveCapture(n, w, r) })
	return control.Handlers{Query: mux, Stream: stream, Leave: n.Leave}
}

func serveCapture(n controlled, w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	cfg := CaptureConfig{Peer: q.Get("peer"), Path: q.Get("path")}
	if s := q.Get("max_bytes"); s != "" {
		var err error
		if cfg.MaxBytes, err = strconv.ParseInt(s, 10, 64); err != nil || cfg.MaxBytes < 0 {
			control.WriteError(w, badRequest("max_bytes %q is not a number of bytes", s))
			return
		}
	}
	out := &lateWriter{w: w, out: control.NewStreamWriter(w)}
	switch _, err := n.capture(r.Context(), cfg, out, out.out.Flush); {
	case err == nil:
	case out.begun:
		out.out.Abort()
	default:
		control.WriteError(w, err)
	}
}

// lateWriter says what follows when it does: until then an error can be told.
type lateWriter struct {
	w     http.ResponseWriter
	out   *control.StreamWriter
	begun bool
}

func (l *lateWriter) Write(b []byte) (int, error) {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", "application/x-pcapng")
	}
	return l.out.Write(b)
}

func serveLookup(n controlled, w http.ResponseWriter, r *http.Request) {
	addr, err := netip.ParseAddr(r.PathValue("addr"))
	if err != nil {
		control.WriteError(w, badRequest("%q is not an IP address", r.PathValue("addr")))
		return
	}
	route, err := n.Lookup(addr)
	if err != nil {
		control.WriteError(w, err)
		return
	}
	control.WriteJSON(w, route)
}

func serveEvict(n controlled, w http.ResponseWriter, r *http.Request) {
	prefix, err := netip.ParsePrefix(r.URL.Query().Get("prefix"))
	if err != nil {
		control.WriteError(w, badRequest("%q is not a subnet such as 100.96.1.0/24", r.URL.Query().Get("prefix")))
		return
	}
	if err := n.Evict(r.Context(), prefix); err != nil {
		control.WriteError(w, err)
		return
	}
	control.WriteJSON(w, struct{}{})
}

// reloaded is the answer to a reload.
type reloaded struct {
	Changed []string `json:"changed"`
}

func serveReload(n controlled, w http.ResponseWriter, r *http.Request) {
	changed, err := n.reload(r.Context())
	if err != nil {
		control.WriteError(w, err)
		return
	}
	control.WriteJSON(w, reloaded{append([]string{}, changed...)})
}

func serveKeys(n controlled, w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var err error
	switch {
	case q.Has("add"):
		var key []byte
		if key, err = hex.DecodeString(q.Get("add")); err != nil {
			err = badRequest("the key is not hexadecimal") // and is not repeated
			break
		}
		err = n.AddKey(key)
	case q.Has("use"):
		err = n.UseKey(q.Get("use"))
	case q.Has("remove"):
		err = n.RemoveKey(q.Get("remove"))
	default:
		err = badRequest("none of add, use and remove is given")
	}
	if err != nil {
		control.WriteError(w, err)
		return
	}
	control.WriteJSON(w, n.Keys())
}

func servePing(n controlled, w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	target := q.Get("target")
	if target == "" {
		control.WriteError(w, badRequest("no target given"))
		return
	}
	timeout := defaultPingTimeout
	if s := q.Get("timeout_ms"); s != "" {
		ms, err := strconv.ParseUint(s, 10, 31)
		if err != nil || ms == 0 {
			control.WriteError(w, badRequest("timeout_ms %q is not a number of milliseconds", s))
			return
		}
		timeout = min(time.Duration(ms)*time.Millisecond, maxPingTimeout)
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	res, err := n.Ping(ctx, target)
	if err != nil {
		control.WriteError(w, err)
		return
	}
	control.WriteJSON(w, res)
}

func servePath(n controlled, w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	res, err := n.SetPath(r.Context(), q.Get("target"), q.Get("path"))
	if err != nil {
		control.WriteError(w, err)
		return
	}
	control.WriteJSON(w, res)
}

func badRequest(format string, args ...any) error {
	return &control.Error{Code: control.CodeRequest, Message: fmt.Sprintf(format, args...)}
}
