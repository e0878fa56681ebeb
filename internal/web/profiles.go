package web

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path"
	"runtime/pprof"
	"runtime/trace"
	"slices"
	"strconv"
	"time"
)

// maxProfile bounds how long a profile may take.
const maxProfile = 2 * time.Minute

// profiles answers as package net/http/pprof does, which is not used since importing it
// publishes profiles in the server of every program that this is part of.
func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprint(w, "profile?seconds=N\ntrace?seconds=N\n")
		all := pprof.Profiles()
		slices.SortFunc(all, func(a, b *pprof.Profile) int { return len(a.Name()) - len(b.Name()) })
		for _, p := range all {
			fmt.Fprintf(w, "%s?debug=1\n", p.Name())
		}
	})
	mux.HandleFunc("/debug/pprof/profile", during(30*time.Second, pprof.StartCPUProfile, pprof.StopCPUProfile))
	mux.HandleFunc("/debug/pprof/trace", during(time.Second, trace.Start, trace.Stop))
	mux.HandleFunc("/debug/pprof/{name}", func(w http.ResponseWriter, r *http.Request) {
		p := pprof.Lookup(path.Base(r.URL.Path))
		debug, err := strconv.Atoi(r.FormValue("debug"))
		switch {
		case p == nil:
			http.Error(w, "no such profile", http.StatusNotFound)
			return
		case err == nil && debug > 0:
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		default:
			w.Header().Set("Content-Type", "application/octet-stream")
		}
		_ = p.WriteTo(w, debug) // the client may be gone
	})
	return mux
}

// during answers with what is written from start to stop.
func during(usual time.Duration, start func(io.Writer) error, stop func()) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		d := usual
		if text := r.FormValue("seconds"); text != "" {
			s, err := strconv.ParseFloat(text, 64)
			d = time.Duration(s * float64(time.Second))
			if err != nil || d <= 0 || d > maxProfile {
				http.Error(w, fmt.Sprintf("seconds: a number up to %.0f", maxProfile.Seconds()), http.StatusBadRequest)
				return
			}
		}
		// It takes longer than other answers may.
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(d + writeTimeout)); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		if err := start(w); err != nil { // one at a time
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), d)
		defer cancel()
		<-ctx.Done()
		stop()
	}
}
