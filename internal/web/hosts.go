package web

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// policy is what a browser may load into the page: what came with it, from here.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// guarded lets through what only reads, and, on loopback, what means this host. It has
// browsers keep the answers to the page that comes from here.
func guarded(addr net.Addr, next http.Handler) http.Handler {
	listen := netip.AddrPort{}
	if a, ok := addr.(*net.TCPAddr); ok {
		listen = a.AddrPort()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD are answered here", http.StatusMethodNotAllowed)
		case !ours(listen.Addr().Unmap(), r.Host):
			http.Error(w, "the Host header names another host: use localhost or the address itself", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// ours tells whether a Host header may be meant for a server that listens on listen. On
// loopback a name other than localhost is one that somebody else's name server leads
// here, with a page of theirs that wants to read what only this host may (DNS
// rebinding). Elsewhere a host has names that only its people know. The port is not
// looked at: a tunnel to this one has another.
func ours(listen netip.Addr, host string) bool {
	if !listen.IsLoopback() {
		return true
	}
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	if strings.EqualFold(strings.TrimSuffix(name, "."), "localhost") {
		return true
	}
	a, err := netip.ParseAddr(name)
	return err == nil && a.Unmap().IsLoopback()
}
