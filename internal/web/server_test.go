package web

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// config is one of a node that is well.
func config() Config {
	return Config{
		Status:  func() any { return map[string]string{"schema": "status"} },
		Leases:  func() any { return map[string]string{"schema": "leases"} },
		Healthy: func() error { return nil }, Ready: func() error { return nil },
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "metrics\n") }),
	}
}

// serve serves on a free port of loopback until the test ends, and returns the server and
// its URL.
func serve(t *testing.T, cfg Config) (*Server, string) {
	t.Helper()
	ln, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	s := Serve(ln, cfg)
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, "http://" + s.Addr().String()
}

// ask makes a request; host may be empty.
func ask(t *testing.T, method, url, host string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestAnswers(t *testing.T) {
	cfg := config()
	unwell := errors.New("0 of 2 subnets are held")
	cfg.Ready = func() error { return unwell }
	_, url := serve(t, cfg)
	for path, want := range map[string]struct {
		code       int
		kind, body string
	}{
		"/":                  {200, "text/html; charset=utf-8", "<!doctype html>"},
		"/page.js":           {200, "text/javascript; charset=utf-8", ""},
		"/mesh.js":           {200, "text/javascript; charset=utf-8", ""},
		"/page.css":          {200, "text/css; charset=utf-8", ""},
		"/icon.svg":          {200, "image/svg+xml", ""},
		"/metrics":           {200, "text/plain; charset=utf-8", "metrics\n"},
		"/status":            {200, "application/json", "{\"schema\":\"status\"}\n"},
		"/leases":            {200, "application/json", "{\"schema\":\"leases\"}\n"},
		"/healthz":           {200, "text/plain; charset=utf-8", "ok\n"},
		"/readyz":            {503, "text/plain; charset=utf-8", "0 of 2 subnets are held\n"},
		"/nothing":           {404, "text/plain; charset=utf-8", ""},
		"/page/index.html":   {404, "text/plain; charset=utf-8", ""},
		"/debug/pprof/":      {404, "text/plain; charset=utf-8", ""},
		"/debug/pprof/heap":  {404, "text/plain; charset=utf-8", ""},
		"/../../etc/passwd":  {404, "text/plain; charset=utf-8", ""},
		"/status/?callback=": {404, "text/plain; charset=utf-8", ""},
	} {
		resp, body := ask(t, http.MethodGet, url+path, "")
		if resp.StatusCode != want.code || resp.Header.Get("Content-Type") != want.kind || !strings.HasPrefix(body, want.body) {
			t.Errorf("%s: %d %s %.60q, want %+v", path, resp.StatusCode, resp.Header.Get("Content-Type"), body, want)
		}
		for name, value := range map[string]string{
			"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
			"Cross-Origin-Resource-Policy": "same-origin", "Access-Control-Allow-Origin": "", "Cache-Control": "no-store",
		} {
			if got := resp.Header.Get(name); got != value {
				t.Errorf("%s: %s is %q, want %q", path, name, got, value)
			}
		}
	}
	if resp, body := ask(t, http.MethodHead, url+"/status", ""); resp.StatusCode != 200 || body != "" {
		t.Errorf("HEAD: %d %q", resp.StatusCode, body)
	}
}

func TestOnlyReads(t *testing.T) {
	_, url := serve(t, config())
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"} {
		if resp, _ := ask(t, method, url+"/status", ""); resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %d", method, resp.StatusCode)
		}
	}
}

// On loopback a name that somebody else's name server leads here is refused.
func TestRebinding(t *testing.T) {
	_, url := serve(t, config())
	for host, want := range map[string]int{
		"": 200, "localhost": 200, "LOCALHOST:1": 200, "localhost.": 200, "127.0.0.1:9999": 200, "[::1]:80": 200, "[::1]": 200, "127.9.9.9": 200,
		"evil.example": 403, "evil.example:9570": 403, "localhost.evil.example": 403, "127.0.0.1.nip.io": 403, "192.0.2.1": 403, "[::ffff:192.0.2.1]:1": 403, "a:b:c": 403,
	} {
		if resp, body := ask(t, http.MethodGet, url+"/status", host); resp.StatusCode != want {
			t.Errorf("Host %q: %d %s, want %d", host, resp.StatusCode, body, want)
		}
	}
	// Elsewhere hosts have names.
	for _, listen := range []string{"192.0.2.1", "0.0.0.0", "::"} {
		if !ours(netip.MustParseAddr(listen), "router.example:9570") {
			t.Errorf("listening on %s, a name is refused", listen)
		}
	}
}

func TestTaken(t *testing.T) {
	s, _ := serve(t, config())
	addr := s.Addr().(*net.TCPAddr).AddrPort()
	_, err := Listen(addr)
	if want := "the HTTP address " + addr.String() + " is taken by another program: stop it, or choose another --http-listen"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	// An address that this host may come to have.
	for _, later := range []string{"192.0.2.77:0", "[2001:db8::77]:0"} {
		ln, err := Listen(netip.MustParseAddrPort(later))
		if err != nil {
			t.Errorf("%s: %v", later, err)
			continue
		}
		ln.Close()
	}
}

func TestProfiles(t *testing.T) {
	cfg := config()
	cfg.Pprof = true
	_, url := serve(t, cfg)
	for path, want := range map[string]string{
		"/debug/pprof/":                      "goroutine?debug=1\n",
		"/debug/pprof/goroutine?debug=1":     "goroutine profile: total",
		"/debug/pprof/heap":                  "\x1f\x8b",
		"/debug/pprof/profile?seconds=0.1":   "\x1f\x8b",
		"/debug/pprof/trace?seconds=0.1":     "go 1.",
		"/debug/pprof/profile?seconds=86400": "seconds: a number up to 120\n",
		"/debug/pprof/profile?seconds=NaN":   "seconds: a number up to 120\n",
		"/debug/pprof/nothing":               "no such profile\n",
	} {
		if resp, body := ask(t, http.MethodGet, url+path, ""); !strings.Contains(body, want) {
			t.Errorf("%s: %d %.80q, want %q", path, resp.StatusCode, body, want)
		}
	}
}

// Close waits for nobody who takes long: neither for a profile, nor for a client that
// says nothing.
func TestClose(t *testing.T) {
	cfg := config()
	cfg.Pprof = true
	entered := make(chan struct{})
	cfg.Metrics = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	})
	s, url := serve(t, cfg)
	silent, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/metrics", nil)
		if err != nil {
			return
		}
		if resp, err := http.DefaultClient.Do(r); err == nil {
			resp.Body.Close()
		}
	}()
	<-entered
	began := time.Now()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("Close took %v", took)
	}
	<-done
}
