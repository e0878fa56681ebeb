package web

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"net/http"
)

// files are the page: no step builds them, and they load nothing from elsewhere.
//
//go:embed page
var files embed.FS

// pages are the files by their paths.
var pages = map[string]struct{ file, kind string }{
	"/{$}":      {"page/index.html", "text/html; charset=utf-8"},
	"/page.css": {"page/page.css", "text/css; charset=utf-8"},
	"/page.js":  {"page/page.js", "text/javascript; charset=utf-8"},
	"/mesh.js":  {"page/mesh.js", "text/javascript; charset=utf-8"},
	"/views.js": {"page/views.js", "text/javascript; charset=utf-8"},
	"/icon.svg": {"page/icon.svg", "image/svg+xml"},
}

// asksPeers is the header of /status that tells the page of /mesh.
const asksPeers = "Overlayd-Asks-Peers"

// routes are the answers; what they ask of others ends with ctx.
func routes(ctx context.Context, cfg Config) http.Handler {
	mux := http.NewServeMux()
	for path, p := range pages {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			b, err := files.ReadFile(p.file)
			if err != nil { // it is embedded: cannot happen
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Header().Set("Content-Type", p.kind)
			_, _ = w.Write(b) // the client may be gone
		})
	}
	mux.Handle("/metrics", cfg.Metrics)
	status := document(cfg.Status)
	if cfg.Peers != nil {
		peers := newAsker(ctx, *cfg.Peers)
		mux.HandleFunc("/mesh", document(func() any { return peers.mesh() }))
		own := status
		status = func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(asksPeers, "yes")
			own(w, r)
		}
	}
	mux.HandleFunc("/status", status)
	mux.HandleFunc("/leases", document(cfg.Leases))
	mux.HandleFunc("/healthz", verdict(cfg.Healthy))
	mux.HandleFunc("/readyz", verdict(cfg.Ready))
	if cfg.Pprof {
		mux.Handle("/debug/pprof/", profiles())
	}
	return mux
}

// document answers with JSON.
func document(of func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		b, err := json.Marshal(of())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(append(b, '\n'))
	}
}

// verdict answers "ok", or 503 and the reason.
func verdict(of func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if err := of(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, err)
			return
		}
		fmt.Fprintln(w, "ok")
	}
}
