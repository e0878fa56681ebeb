package web

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/internal/browsertest"
)

// TestPageViews: peers are asked what they see only once the box is ticked, which is there
// only if this node may ask; what they say is shown as text, in the picture too.
func TestPageViews(t *testing.T) {
	t.Parallel()
	b := browsertest.Start(t)
	f := newFake(3)
	var asked atomic.Int32
	view := func(id int, sees ...object) http.HandlerFunc {
		status := object{"schema": "overlayd.status/v1", "node": object{"id": fmt.Sprintf("%032x", id), "warnings": []string{hostile}}, "peers": sees}
		return func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			if err := json.NewEncoder(w).Encode(status); err != nil {
				t.Error(err)
			}
		}
	}
	sees := func(id int, path string) object {
		return object{"id": fmt.Sprintf("%032x", id), "name": fmt.Sprintf("host%d", id), "state": "alive", "path": path, "path_reason": "as it says", "path_since": time.Now().Add(-time.Minute), "rtt_us": 300}
	}
	targets := []Target{
		peer(t, fmt.Sprintf("%032x", 2), view(2, sees(1, "direct"), sees(3, "kernel-vxlan"), sees(4, "direct"))),
		peer(t, fmt.Sprintf("%032x", 3), view(3, sees(2, "none"), sees(4, "onclick=alert(1)"))),
		{ID: fmt.Sprintf("%032x", 4), Name: "host4", Addr: netip.MustParseAddrPort("127.0.0.1:1")},
	}
	cfg := config()
	cfg.Status, cfg.Leases = f.answer, f.leases
	cfg.Peers = &Asking{Targets: func() []Target { return targets }, Read: func(_ string, b []byte) (any, error) { return json.RawMessage(bytes.Clone(b)), nil }}
	_, url := serve(t, cfg)
	for _, size := range []struct{ width, height, bows int }{{360, 800, 0}, {1280, 900, 3}} {
		for _, scheme := range []string{"light", "dark"} {
			name := fmt.Sprintf("%dx%d, %s", size.width, size.height, scheme)
			asked.Store(0)
			b.Open(url, size.width, size.height, scheme)
			f.mu.Lock()
			from := f.asked
			f.mu.Unlock()
			waitFor(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.asked > from+1 })
			b.Until(`document.getElementById("ask").offsetParent !== null && document.querySelector("#mesh svg") !== null`)
			if n := asked.Load(); n != 0 {
				t.Errorf("%s: %d peers were asked before anybody wanted it", name, n)
			}
			b.Eval(`document.getElementById("ask").click() || 1`, new(int))
			b.Until(`document.querySelectorAll("#views tbody tr").length === 6`)
			b.Until(`document.getElementById("asked").textContent === "2 of 3 peers have answered."`)
			b.Shoot(fmt.Sprintf("views-%d-%s.png", size.width, scheme))
			var got struct {
				Rows, Bows []string
				Title      string
				Images     int
				Troubles   []string
				Scroll     int
			}
			b.Eval(`({Rows: [...document.querySelectorAll("#views tbody tr")].map(r => [...r.cells].slice(0, 4).map(c => c.textContent).join("; ")),
				Bows: [...document.querySelectorAll("#mesh .bow")].map(e => e.getAttribute("class")).sort(), Title: document.title, Images: document.images.length,
				Troubles: [...document.querySelectorAll("#trouble-list li")].map(e => e.textContent), Scroll: document.documentElement.scrollWidth})`, &got)
			wantRows := []string{
				"host-" + targets[0].ID + "; host1; direct; as it says", "host-" + targets[0].ID + "; host3; kernel-vxlan; as it says", "host-" + targets[0].ID + "; host4; direct; as it says",
				"host-" + targets[1].ID + "; host2; none; as it says", "host-" + targets[1].ID + "; host4; onclick=alert(1); as it says",
				"host4; ; –; 127.0.0.1:1: nothing listens there: is its --http-listen at that address and port?",
			}
			slices.Sort(got.Rows)
			if diff := cmp.Diff(wantRows, got.Rows); diff != "" {
				t.Errorf("%s: -want +got:\n%s", name, diff)
			}
			if want := []string{"bow direct", "bow none", "bow none"}[:size.bows]; !slices.Equal(got.Bows, want) {
				t.Errorf("%s: between peers: %q, want %q", name, got.Bows, want)
			}
			if got.Title != "host1 – overlayd" || got.Images != 0 || got.Scroll > size.width {
				t.Errorf("%s: %+v", name, got)
			}
			if want := "host-" + targets[1].ID + " cannot reach host2: as it says"; !slices.Contains(got.Troubles, want) || !slices.Contains(got.Troubles, "host-"+targets[0].ID+" says: "+hostile) {
				t.Errorf("%s: troubles %q", name, got.Troubles)
			}
			b.Faint(name)
			b.None(name+": without a name", unnamed)
			b.Eval(`document.getElementById("ask").click() || 1`, new(int))
			b.Until(`document.getElementById("views-section").hidden && document.querySelectorAll("#mesh .bow").length === 0 && document.getElementById("asked").textContent === ""`)
			b.Quiet(name)
		}
	}
	// A node that was not told to ask.
	cfg.Peers = nil
	_, url = serve(t, cfg)
	b.Open(url, 1280, 900, "light")
	b.Until(`document.querySelectorAll("#peers tbody tr").length === 3`)
	var hidden bool
	b.Eval(`document.getElementById("asking").hidden`, &hidden)
	if !hidden {
		t.Error("a node that may not ask shows the box")
	}
	b.Quiet("untold")
}
