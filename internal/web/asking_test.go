package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// peer answers HTTP in a peer's place until the test ends.
func peer(t *testing.T, id string, h http.HandlerFunc) Target {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return Target{ID: id, Name: "host-" + id, Addr: s.Listener.Addr().(*net.TCPAddr).AddrPort()}
}

// reads takes a document whose id is that of the target.
func reads(id string, answer []byte) (any, error) {
	var d struct{ ID string }
	if err := json.Unmarshal(answer, &d); err != nil || d.ID != id {
		return nil, errors.New("not of this node")
	}
	return d, nil
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }
}

// TestMesh: what peers answer is passed on if it is theirs; whatever else answers there is
// told as such, costs no more than its share, and holds up nobody else.
func TestMesh(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := free.Addr().(*net.TCPAddr).AddrPort()
	free.Close()

	var asked, followed atomic.Int32
	var path, method atomic.Value
	elsewhere := peer(t, "elsewhere", func(http.ResponseWriter, *http.Request) { followed.Add(1) })
	cfg := config()
	targets := []Target{
		peer(t, "good", func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			path.Store(r.URL.String())
			method.Store(r.Method)
			says(`{"id":"good"}`)(w, r)
		}),
		{ID: "closed", Addr: closed},
		{ID: "silent", Addr: silent.Addr().(*net.TCPAddr).AddrPort()},
		peer(t, "other", says(`{"id":"good"}`)),
		peer(t, "text", says(`<script>`)),
		peer(t, "leads", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+elsewhere.Addr.String(), http.StatusFound)
		}),
		peer(t, "404", func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }),
		peer(t, "much", says(`{"id":"much","x":"`+strings.Repeat("x", maxAnswer)+`"}`)),
		peer(t, "slow", func(w http.ResponseWriter, r *http.Request) {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-r.Context().Done():
					return
				case <-tick.C:
					fmt.Fprint(w, " ")
					_ = http.NewResponseController(w).Flush()
				}
			}
		}),
	}
	cfg.Peers = &Asking{Read: reads, Targets: func() []Target { return targets }}
	_, url := serve(t, cfg)
	begun := time.Now()
	resp, body := ask(t, http.MethodGet, url+"/mesh", "")
	if took := time.Since(begun); took > 2*patience {
		t.Errorf("it took %v: they were not asked at once", took)
	}
	var got Mesh
	if err := json.Unmarshal([]byte(body), &got); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(err, resp.Status)
	}
	want := []struct{ id, err string }{
		{"good", ""}, {"closed", "nothing listens there"}, {"silent", "no answer in 3s"}, {"other", "not of this node"}, {"text", "not of this node"},
		{"leads", "says 302"}, {"404", "says 404"}, {"much", "more than 256 KiB"}, {"slow", "no answer in 3s"},
	}
	if got.Schema != MeshSchema || len(got.Peers) != len(want) || got.Omitted != 0 {
		t.Fatalf("%+v", got)
	}
	for i, w := range want {
		v := got.Peers[i]
		if v.ID != w.id || !strings.Contains(v.Error, w.err) || (v.Error == "") != (w.err == "") || (v.Status != nil) != (w.err == "") || strings.Contains(v.Error, "\n") {
			t.Errorf("%+v, want %+v", v, w)
		}
	}
	if path.Load() != "/status" || method.Load() != "GET" || followed.Load() != 0 {
		t.Errorf("%v %v, led elsewhere %d times", method.Load(), path.Load(), followed.Load())
	}
	// Many who ask are told the same.
	for range 3 {
		ask(t, http.MethodGet, url+"/mesh", "")
	}
	if n := asked.Load(); n > 2 {
		t.Errorf("asked %d times within a moment", n)
	}
}

// TestMeshMany: of very many peers no more than some are asked.
func TestMeshMany(t *testing.T) {
	var asked atomic.Int32
	one := peer(t, "x", func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		says(`{"id":"x"}`)(w, r)
	})
	cfg := config()
	cfg.Peers = &Asking{Read: reads, Targets: func() []Target {
		out := make([]Target, 1000)
		for i := range out {
			out[i] = one
		}
		return out
	}}
	_, url := serve(t, cfg)
	_, body := ask(t, http.MethodGet, url+"/mesh", "")
	var got Mesh
	if err := json.Unmarshal([]byte(body), &got); err != nil || len(got.Peers) != maxTargets || got.Omitted != 1000-maxTargets || asked.Load() != maxTargets {
		t.Errorf("%v: %d, %d omitted, %d asked", err, len(got.Peers), got.Omitted, asked.Load())
	}
}

// TestMeshUntold: who was not told to ask asks nobody, and says so.
func TestMeshUntold(t *testing.T) {
	cfg := config()
	_, url := serve(t, cfg)
	if resp, _ := ask(t, http.MethodGet, url+"/mesh", ""); resp.StatusCode != http.StatusNotFound {
		t.Errorf("/mesh: %s", resp.Status)
	}
	if resp, _ := ask(t, http.MethodGet, url+"/status", ""); resp.Header.Get(asksPeers) != "" {
		t.Error("the page is told that peers are asked")
	}
	cfg.Peers = &Asking{Targets: func() []Target { return nil }}
	_, url = serve(t, cfg)
	if resp, body := ask(t, http.MethodGet, url+"/mesh", ""); resp.StatusCode != http.StatusOK || body != `{"schema":"overlayd.mesh/v1","peers":[],"omitted":0}`+"\n" {
		t.Errorf("/mesh: %s %s", resp.Status, body)
	}
	if resp, _ := ask(t, http.MethodGet, url+"/status", ""); resp.Header.Get(asksPeers) != "yes" {
		t.Error("the page is not told that peers are asked")
	}
}

// TestMeshClose: a server that is closed does not wait for peers that say nothing.
func TestMeshClose(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cfg := config()
	cfg.Peers = &Asking{Read: reads, Targets: func() []Target {
		return []Target{{ID: "silent", Addr: netip.MustParseAddrPort(ln.Addr().String())}}
	}}
	s, url := serve(t, cfg)
	done := make(chan struct{})
	go func() {
		defer close(done)
		resp, err := http.Get(url + "/mesh")
		if err == nil {
			resp.Body.Close()
		}
	}()
	c, err := ln.Accept() // it is being asked
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begun := time.Now()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > patience/2 {
		t.Errorf("closing took %v", took)
	}
	<-done
}
