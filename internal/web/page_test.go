package web

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fake is a node that tells what the test has it tell.
type fake struct {
	mu     sync.Mutex
	status map[string]any
	asked  int
}

type object = map[string]any

// hostile is a name that is a program where somebody takes it for HTML.
const hostile = `<img src=x onerror="document.title='broken into'">`

func newFake(peers int) *fake {
	f := &fake{status: object{
		"schema": "overlayd.status/v1",
		"node": object{"id": "00", "name": "host1", "version": "v1.2.3", "endpoints": []string{"192.0.2.1:8285", "[2001:db8::1]:8285"},
			"subnets": []string{"100.96.1.0/24", "fd96:0:0:1::/64"}, "mtu": 1450, "encap": "udp", "fast_path": "auto", "vni": 1, "vtep_mac": "", "warnings": []string{}},
		"drops": object{"rx_unknown_source": 12, "tx_no_owner": 0, "tx_peer_down": 3},
	}}
	paths := []string{"kernel-vxlan", "direct", "userspace-udp", "kernel-vxlan", "none", "userspace-vxlan"}
	var list []object
	for i := range peers {
		p := object{
			"id": fmt.Sprintf("%032x", i+2), "name": fmt.Sprintf("host%d", i+2), "state": "alive", "endpoint": fmt.Sprintf("192.0.2.%d:8285", i+2),
			"subnets": []string{fmt.Sprintf("100.96.%d.0/24", i+2), fmt.Sprintf("fd96:0:0:%x::/64", i+2)}, "path": paths[i%len(paths)],
			"path_reason": "probes of 1450 bytes are answered", "path_since": time.Now().Add(-time.Duration(i) * time.Hour), "last_proof_ms": 140 * i, "rtt_us": 230 + 97*i,
			"mtu": 1450, "tx_bytes": 1_000_000 * (i + 1), "rx_bytes": 300_000 * (i + 1), "tx_packets": 1000, "rx_packets": 700,
		}
		if p["path"] == "none" {
			p["state"], p["rtt_us"], p["last_proof_ms"] = "dead", 0, nil
			p["path_reason"] = "probes to 192.0.2.6:8285/udp unanswered since 12:34:56 (7 in a row): is the host down, or the UDP port blocked?"
		}
		list = append(list, p)
	}
	f.status["peers"] = list
	return f
}

// answer is the status; traffic flows from one to the next.
func (f *fake) answer() any {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	for i, p := range f.status["peers"].([]object) {
		p["tx_bytes"], p["rx_bytes"] = p["tx_bytes"].(int)+4_000_000*i, p["rx_bytes"].(int)+90_000*i
	}
	b, err := json.Marshal(f.status)
	if err != nil {
		return err.Error()
	}
	return json.RawMessage(b)
}

func (f *fake) set(change func(node object, peers []object)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f.status["node"].(object), f.status["peers"].([]object))
}

func (f *fake) leases() any {
	return object{"schema": "overlayd.leases/v1", "leases": []object{
		{"prefix": "100.96.1.0/24", "owner": "host1", "owner_id": "00", "owner_state": "self", "state": "held", "class": "dynamic", "wins": true, "why": "no stronger claim", "expires": "2026-12-04T13:02:55Z"},
		{"prefix": "100.96.2.0/24", "owner": "host2", "owner_id": "02", "owner_state": "alive", "state": "held", "class": "static", "wins": true, "why": "no stronger claim", "expires": "2026-12-04T13:02:55Z"},
	}}
}

// contrast returns texts whose contrast with what is behind them is below 4.5 to 1, which
// WCAG 2.2 asks for (1.4.3).
const contrast = `(() => {
	const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
	const rgb = c => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); return canvas.getImageData(0, 0, 1, 1).data; };
	const light = c => { const [r, g, b] = [...c].slice(0, 3).map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
		return .2126 * r + .7152 * g + .0722 * b; };
	const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255]; };
	const bad = [];
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	for (let n; n = walk.nextNode();) {
		const e = n.parentElement, s = getComputedStyle(e);
		if (!n.data.trim() || !e.getClientRects().length) continue;
		const a = light(rgb(e instanceof SVGElement ? s.fill : s.color)), b = light(behind(e));
		const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
		if (ratio < 4.5) bad.push(n.data.trim() + ": " + ratio.toFixed(2));
	}
	return bad;
})()`

// outside returns texts of the picture that stick out of it or run into another.
const outside = `(() => {
	const bad = [], svg = document.querySelector("#mesh svg");
	if (!svg) return bad;
	const whole = svg.getBoundingClientRect();
	const all = [...svg.querySelectorAll("text")].map(e => [e.textContent, e.getBoundingClientRect()]);
	all.forEach(([text, r], i) => {
		if (r.left < whole.left - 1 || r.right > whole.right + 1 || r.top < whole.top - 1 || r.bottom > whole.bottom + 1) bad.push("out: " + text);
		for (const [other, o] of all.slice(i + 1))
			if (r.left < o.right - 1 && o.left < r.right - 1 && r.top < o.bottom - 4 && o.top < r.bottom - 4) bad.push(text + " over " + other);
	});
	return bad;
})()`

// unnamed returns what a screen reader has no name for.
const unnamed = `[...document.querySelectorAll("a, button, svg, table, section, [role=region]")].filter(e => {
	const by = e.getAttribute("aria-labelledby");
	return !(e.textContent.trim() || e.getAttribute("aria-label") || by && document.getElementById(by)?.textContent.trim());
}).map(e => e.outerHTML.slice(0, 80))`

func (b *browser) open(url string, width, height int, scheme string) {
	b.t.Helper()
	// Not "mobile": that widens the window until everything fits.
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}, nil)
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	b.call("Page.navigate", map[string]any{"url": url}, nil)
}

// quiet fails for all that the page has complained about.
func (b *browser) quiet(when string) {
	b.t.Helper()
	var n int
	b.eval("1", &n) // what was said before has come
	for _, e := range b.events {
		if bad := complaint(e); bad != "" {
			b.t.Errorf("%s: the console says: %s", when, bad)
		}
	}
	b.events = nil
}

// TestPage: the page of a node in a browser, at a phone's width and a desk's, light and
// dark: it shows what the node says, and a change of a path while one looks.
func TestPage(t *testing.T) {
	b := startBrowser(t)
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		b.call(domain+".enable", nil, nil)
	}
	background := map[string]string{}
	for _, size := range []struct{ width, height int }{{360, 800}, {1280, 900}} {
		for _, scheme := range []string{"light", "dark"} {
			name := fmt.Sprintf("%dx%d, %s", size.width, size.height, scheme)
			f := newFake(6)
			f.set(func(_ object, peers []object) { peers[3]["name"] = hostile })
			cfg := config()
			cfg.Status, cfg.Leases = f.answer, f.leases
			_, url := serve(t, cfg)
			b.open(url, size.width, size.height, scheme)
			b.until(`document.querySelectorAll("#peers tbody tr").length === 6 && document.querySelectorAll("#leases tbody tr").length === 2 && document.querySelectorAll("#drops tbody tr").length === 2`)
			b.until(`document.querySelector("#peers tbody td:nth-child(7)").textContent.endsWith("bit/s")`)

			// The change that is to be seen, without anybody doing anything.
			f.set(func(_ object, peers []object) {
				peers[2]["path"], peers[2]["path_since"] = "kernel-vxlan", time.Now()
				peers[0]["path"], peers[0]["path_reason"] = "userspace-udp", "kernel-vxlan was left at 13:00:00: probes are unanswered"
			})
			b.until(`document.querySelectorAll("#changes li").length === 2`)
			shoot(b, fmt.Sprintf("%d-%s.png", size.width, scheme))
			var got struct {
				Title, Pulse, Changes, Background, Live, Path string
				Scroll, Inner, Images, Nodes, Rows            int
			}
			b.eval(`({Title: document.title, Pulse: document.getElementById("pulse").textContent,
				Changes: [...document.querySelectorAll("#changes li")].map(e => e.textContent.replace(/^.*?M? (?=host)/, "")).sort().join("|"),
				Live: document.getElementById("changes").getAttribute("aria-live"),
				Path: document.getElementById("peer-00000000000000000000000000000004").cells[2].className,
				Background: getComputedStyle(document.body).backgroundColor,
				Scroll: document.documentElement.scrollWidth, Inner: innerWidth, Images: document.images.length,
				Nodes: document.querySelectorAll("#mesh a").length, Rows: document.querySelectorAll("#legend li").length})`, &got)
			background[scheme] = got.Background
			if got.Title != "host1 – overlayd" || got.Images != 0 {
				t.Errorf("%s: a peer's name is more than text: title %q, %d images", name, got.Title, got.Images)
			}
			if got.Pulse != "5 of 6 peers can be reached" || got.Nodes != 6 || got.Live != "polite" || got.Path != "path kernel-vxlan" || got.Rows != 5 {
				t.Errorf("%s: %+v", name, got)
			}
			if want := "host2: from kernel-vxlan to userspace-udp: kernel-vxlan was left at 13:00:00: probes are unanswered|host4: from userspace-udp to kernel-vxlan: probes of 1450 bytes are answered"; got.Changes != want {
				t.Errorf("%s: changes\n%s\nwant\n%s", name, got.Changes, want)
			}
			if got.Inner != size.width || got.Scroll > got.Inner {
				t.Errorf("%s: the page is %d wide, the window %d", name, got.Scroll, got.Inner)
			}
			for what, script := range map[string]string{"contrast": contrast, "picture": outside, "without a name": unnamed} {
				var bad []string
				b.eval(script, &bad)
				for _, text := range bad {
					t.Errorf("%s: %s: %s", name, what, text)
				}
			}
			b.quiet(name)
		}
	}
	if background["light"] == background["dark"] {
		t.Errorf("light and dark are both %s", background["light"])
	}
}

// TestPageKeyboard: tables are sorted from the keyboard, and the picture leads to them; a
// node that falls silent is told; and of many peers there is a table alone.
func TestPageKeyboard(t *testing.T) {
	b := startBrowser(t)
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		b.call(domain+".enable", nil, nil)
	}
	f := newFake(41)
	cfg := config()
	cfg.Status, cfg.Leases = f.answer, f.leases
	live, url := serve(t, cfg)
	b.open(url, 1280, 900, "light")
	b.until(`document.querySelectorAll("#peers tbody tr").length === 41`)
	b.until(`document.getElementById("mesh").textContent.includes("41 peers are too many for a picture")`)
	f.set(func(_ object, peers []object) { f.status["peers"] = peers[:7] })
	b.until(`document.querySelectorAll("#mesh a").length === 7`)

	key := func(name string, code int, text string) {
		for _, kind := range []string{"keyDown", "keyUp"} {
			b.call("Input.dispatchKeyEvent", map[string]any{"type": kind, "key": name, "code": name, "windowsVirtualKeyCode": code, "text": map[bool]string{true: text}[kind == "keyDown"]}, nil)
		}
	}
	order := func() (names []string) {
		b.eval(`[...document.querySelectorAll("#peers tbody th")].map(e => e.textContent)`, &names)
		return names
	}
	if got := order(); !slices.IsSorted(got) {
		t.Errorf("sorted by name: %q", got)
	}
	var focused string
	b.eval(`(() => { const e = document.querySelector("#peers thead th:nth-child(6) button"); e.focus(); return e.textContent })()`, &focused)
	key("Enter", 13, "\r")
	var sorted string
	b.eval(`document.querySelector("#peers th[aria-sort]").textContent + " " + document.querySelector("#peers th[aria-sort]").getAttribute("aria-sort")`, &sorted)
	if got := order(); sorted != "Round trip descending" || got[0] != "host8" {
		t.Errorf("%s sorted by %s: %q", focused, sorted, got)
	}
	// The focus stays where it is when all is drawn anew, in the picture and in the table.
	stays := func(want string) {
		f.mu.Lock()
		asked := f.asked
		f.mu.Unlock()
		waitFor(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.asked > asked+1 })
		b.eval(`document.activeElement.getAttribute("href") || document.activeElement.id`, &focused)
		if focused != want {
			t.Errorf("the focus is on %q, want %q", focused, want)
		}
	}
	const second = "peer-00000000000000000000000000000002"
	b.eval(`(() => { document.querySelector("#mesh a").focus(); return "" })()`, &focused)
	stays("#" + second)
	key("Enter", 13, "\r")
	stays(second)
	b.quiet("while the node answers")
	if err := live.Close(); err != nil {
		t.Error(err)
	}
	b.until(`document.getElementById("pulse").textContent === "The node does not answer: what is shown is old."`)
}

// TestPageViews: peers are asked what they see only once the box is ticked, which is there
// only if this node may ask; what they say is shown as text, in the picture too.
func TestPageViews(t *testing.T) {
	b := startBrowser(t)
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		b.call(domain+".enable", nil, nil)
	}
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
			b.open(url, size.width, size.height, scheme)
			f.mu.Lock()
			from := f.asked
			f.mu.Unlock()
			waitFor(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.asked > from+1 })
			b.until(`document.getElementById("ask").offsetParent !== null && document.querySelector("#mesh svg") !== null`)
			if n := asked.Load(); n != 0 {
				t.Errorf("%s: %d peers were asked before anybody wanted it", name, n)
			}
			b.eval(`document.getElementById("ask").click() || 1`, new(int))
			b.until(`document.querySelectorAll("#views tbody tr").length === 6`)
			b.until(`document.getElementById("asked").textContent === "2 of 3 peers have answered."`)
			shoot(b, fmt.Sprintf("views-%d-%s.png", size.width, scheme))
			var got struct {
				Rows, Bows []string
				Title      string
				Images     int
				Troubles   []string
				Scroll     int
			}
			b.eval(`({Rows: [...document.querySelectorAll("#views tbody tr")].map(r => [...r.cells].slice(0, 4).map(c => c.textContent).join("; ")),
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
			for what, script := range map[string]string{"contrast": contrast, "without a name": unnamed} {
				var bad []string
				b.eval(script, &bad)
				for _, text := range bad {
					t.Errorf("%s: %s: %s", name, what, text)
				}
			}
			b.eval(`document.getElementById("ask").click() || 1`, new(int))
			b.until(`document.getElementById("views-section").hidden && document.querySelectorAll("#mesh .bow").length === 0 && document.getElementById("asked").textContent === ""`)
			b.quiet(name)
		}
	}
	// A node that was not told to ask.
	cfg.Peers = nil
	_, url = serve(t, cfg)
	b.open(url, 1280, 900, "light")
	b.until(`document.querySelectorAll("#peers tbody tr").length === 3`)
	var hidden bool
	b.eval(`document.getElementById("asking").hidden`, &hidden)
	if !hidden {
		t.Error("a node that may not ask shows the box")
	}
	b.quiet("untold")
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); !cond(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("it does not come true")
		}
	}
}

// complaint is what an event says of an error or a warning in the page, "" if none.
func complaint(m message) string {
	var e struct {
		Type  string
		Entry struct{ Level, Text string }
	}
	if err := json.Unmarshal(m.Params, &e); err != nil {
		return ""
	}
	switch {
	case m.Method == "Runtime.exceptionThrown",
		m.Method == "Runtime.consoleAPICalled" && (e.Type == "error" || e.Type == "warning" || e.Type == "assert"):
		return string(m.Params)
	case m.Method == "Log.entryAdded" && (e.Entry.Level == "error" || e.Entry.Level == "warning"):
		return e.Entry.Text
	}
	return ""
}

// shoot keeps a picture of the whole page in the folder of the variable SCREENSHOTS, for a
// person to look at.
func shoot(b *browser, name string) {
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		return
	}
	var shot struct{ Data string }
	b.call("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true}, &shot)
	png, err := base64.StdEncoding.DecodeString(shot.Data)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}
