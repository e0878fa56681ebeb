package web

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/browsertest"
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

// serve serves it until the test ends.
func (f *fake) serve(t *testing.T) (*Server, string) {
	t.Helper()
	cfg := config()
	cfg.Status, cfg.Leases = f.answer, f.leases
	return serve(t, cfg)
}

func (f *fake) leases() any {
	return object{"schema": "overlayd.leases/v1", "leases": []object{
		{"prefix": "100.96.1.0/24", "owner": "host1", "owner_id": "00", "owner_state": "self", "state": "held", "class": "dynamic", "wins": true, "why": "no stronger claim", "expires": "2026-12-04T13:02:55Z"},
		{"prefix": "100.96.2.0/24", "owner": "host2", "owner_id": "02", "owner_state": "alive", "state": "held", "class": "static", "wins": true, "why": "no stronger claim", "expires": "2026-12-04T13:02:55Z"},
	}}
}

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

// TestPage: the page of a node in a browser, at a phone's width and a desk's, light and
// dark: it shows what the node says, and a change of a path while one looks.
func TestPage(t *testing.T) {
	t.Parallel()
	b := browsertest.Start(t)
	background := map[string]string{}
	for _, size := range []struct{ width, height int }{{320, 640}, {360, 800}, {1280, 900}} {
		for _, scheme := range []string{"light", "dark"} {
			name := fmt.Sprintf("%dx%d, %s", size.width, size.height, scheme)
			f := newFake(6)
			f.set(func(node object, peers []object) {
				peers[3]["name"], peers[5]["path_reason"], peers[5]["endpoint"], node["warnings"] = hostile, hostile, hostile, []string{hostile}
			})
			_, url := f.serve(t)
			b.Open(url, size.width, size.height, scheme)
			b.Until(`document.querySelectorAll("#peers tbody tr").length === 6 && document.querySelectorAll("#leases tbody tr").length === 2 && document.querySelectorAll("#drops tbody tr").length === 2`)
			b.Until(`document.querySelector("#peers tbody td:nth-child(7)").textContent.endsWith("bit/s")`)

			// The change that is to be seen, without anybody doing anything.
			f.set(func(_ object, peers []object) {
				peers[2]["path"], peers[2]["path_since"] = "kernel-vxlan", time.Now()
				peers[0]["path"], peers[0]["path_reason"] = "userspace-udp", "kernel-vxlan was left at 13:00:00: probes are unanswered"
			})
			b.Until(`document.querySelectorAll("#changes li").length === 2`)
			b.Shoot(fmt.Sprintf("%d-%s.png", size.width, scheme))
			var got struct {
				Title, Pulse, Changes, Background, Live, Path string
				Scroll, Inner, Images, Nodes, Rows            int
			}
			b.Eval(`({Title: document.title, Pulse: document.getElementById("pulse").textContent,
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
			b.Faint(name)
			b.None(name+": picture", outside)
			b.None(name+": without a name", unnamed)
			b.Quiet(name)
		}
	}
	if background["light"] == background["dark"] {
		t.Errorf("light and dark are both %s", background["light"])
	}
}

// TestPageKeyboard: tables are sorted from the keyboard, and the picture leads to them; a
// node that falls silent is told; and of many peers there is a table alone.
func TestPageKeyboard(t *testing.T) {
	t.Parallel()
	b := browsertest.Start(t)
	f := newFake(41)
	live, url := f.serve(t)
	b.Open(url, 1280, 900, "light")
	b.Until(`document.querySelectorAll("#peers tbody tr").length === 41`)
	b.Until(`document.getElementById("mesh").textContent.includes("41 peers are too many for a picture")`)
	f.set(func(_ object, peers []object) { f.status["peers"] = peers[:7] })
	b.Until(`document.querySelectorAll("#mesh a").length === 7`)

	key := func(name string, code int, text string) {
		for _, kind := range []string{"keyDown", "keyUp"} {
			b.Call("Input.dispatchKeyEvent", map[string]any{"type": kind, "key": name, "code": name, "windowsVirtualKeyCode": code, "text": map[bool]string{true: text}[kind == "keyDown"]}, nil)
		}
	}
	order := func() (names []string) {
		b.Eval(`[...document.querySelectorAll("#peers tbody th")].map(e => e.textContent)`, &names)
		return names
	}
	if got := order(); !slices.IsSorted(got) {
		t.Errorf("sorted by name: %q", got)
	}
	var focused string
	b.Eval(`(() => { const e = document.querySelector("#peers thead th:nth-child(6) button"); e.focus(); return e.textContent })()`, &focused)
	key("Enter", 13, "\r")
	var sorted string
	b.Eval(`document.querySelector("#peers th[aria-sort]").textContent + " " + document.querySelector("#peers th[aria-sort]").getAttribute("aria-sort")`, &sorted)
	if got := order(); sorted != "Round trip descending" || got[0] != "host8" {
		t.Errorf("%s sorted by %s: %q", focused, sorted, got)
	}
	// The focus stays where it is when all is drawn anew, in the picture and in the table.
	stays := func(want string) {
		f.mu.Lock()
		asked := f.asked
		f.mu.Unlock()
		waitFor(t, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.asked > asked+1 })
		b.Eval(`document.activeElement.getAttribute("href") || document.activeElement.id`, &focused)
		if focused != want {
			t.Errorf("the focus is on %q, want %q", focused, want)
		}
	}
	const second = "peer-00000000000000000000000000000002"
	b.Eval(`(() => { document.querySelector("#mesh a").focus(); return "" })()`, &focused)
	stays("#" + second)
	key("Enter", 13, "\r")
	stays(second)
	b.Quiet("while the node answers")
	if err := live.Close(); err != nil {
		t.Error(err)
	}
	b.Until(`document.getElementById("pulse").textContent === "The node does not answer: what is shown is old."`)
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
