package report

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// contrast returns texts whose contrast with what is behind them is below 4.5 to 1, which
// WCAG 2.2 asks for (1.4.3). What is behind is the nearest opaque background; text in a
// drawing is held against the page's, which its boxes differ little from.
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

// outside returns texts of the visible drawings that stick out of them, or run into another
// text or an arrow.
const outside = `(() => {
	const bad = [];
	for (const svg of document.querySelectorAll("svg")) {
		const whole = svg.getBoundingClientRect();
		if (!whole.width) continue;
		const all = [...svg.querySelectorAll("text")].map(e => [e.textContent, e.getBoundingClientRect()]);
		const arrows = [...svg.querySelectorAll("path")].map(e => e.getBoundingClientRect());
		all.forEach(([text, r], i) => {
			if (arrows.some(o => r.left < o.right + 3 && o.left < r.right + 3 && r.top + 3 < o.bottom && o.top < r.bottom - 3)) bad.push(text + " over an arrow");
			if (r.left < whole.left - 1 || r.right > whole.right + 1 || r.bottom > whole.bottom + 1) bad.push("out: " + text);
			for (const [other, o] of all.slice(i + 1))
				if (r.left < o.right - 1 && o.left < r.right - 1 && r.top < o.bottom - 4 && o.top < r.bottom - 4) bad.push(text + " over " + other);
		});
	}
	return bad;
})()`

// The page is shown by a browser without complaint, in both schemes, and a phone need not
// scroll it sideways.
func TestBrowser(t *testing.T) {
	b := startBrowser(t)
	file := filepath.Join(t.TempDir(), "page.html")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := sample().HTML(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		b.call(domain+".enable", nil, nil)
	}
	background := map[string]string{}
	for _, size := range []struct{ width, height int }{{360, 800}, {1280, 900}} {
		for _, scheme := range []string{"light", "dark"} {
			name := fmt.Sprintf("%dx%d, %s", size.width, size.height, scheme)
			// Not "mobile": that widens the window until everything fits.
			b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": size.width, "height": size.height,
				"deviceScaleFactor": 1, "mobile": false}, nil)
			b.call("Emulation.setEmulatedMedia", map[string]any{
				"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
			b.call("Page.navigate", map[string]any{"url": "file://" + file}, nil)
			for _, e := range b.await("Page.loadEventFired") {
				if bad := complaint(e); bad != "" {
					t.Errorf("%s: %s", name, bad)
				}
			}
			var got struct {
				Scroll, Inner, Paths int
				Background           string
			}
			b.eval(`({Scroll: document.documentElement.scrollWidth, Inner: innerWidth,
				Paths: [...document.querySelectorAll("svg")].filter(e => e.getClientRects().length).length,
				Background: getComputedStyle(document.body).backgroundColor})`, &got)
			if got.Inner != size.width || got.Scroll > got.Inner {
				t.Errorf("%s: the page is %d wide, the window %d", name, got.Scroll, got.Inner)
			}
			if got.Paths != 9 {
				t.Errorf("%s: %d drawings are seen, want one of each path that ran", name, got.Paths)
			}
			background[scheme] = got.Background
			for what, script := range map[string]string{"contrast": contrast, "drawings": outside} {
				var bad []string
				b.eval(script, &bad)
				for _, text := range bad {
					t.Errorf("%s: %s: %s", name, what, text)
				}
			}
			shoot(b, fmt.Sprintf("%d-%s.png", size.width, scheme))
		}
	}
	if background["light"] == background["dark"] {
		t.Errorf("light and dark are both %s", background["light"])
	}
	// What was said after the last load.
	for _, e := range b.events {
		if bad := complaint(e); bad != "" {
			t.Error(bad)
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
