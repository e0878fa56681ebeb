package browsertest

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
)

// Open opens a page in a window of a size, in the scheme "light" or "dark", and waits until
// it is loaded.
func (b *Browser) Open(url string, width, height int, scheme string) {
	b.t.Helper()
	// Not "mobile": that widens the window until everything fits.
	b.Call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}, nil)
	b.Call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}, nil)
	b.Call("Page.navigate", map[string]any{"url": url}, nil)
	b.await("Page.loadEventFired")
}

// Quiet fails the test for all that the console has said of errors and warnings since the
// last call.
func (b *Browser) Quiet(when string) {
	b.t.Helper()
	var n int
	b.Eval("1", &n) // what was said before has come
	for _, e := range b.events {
		if bad := complaint(e); bad != "" {
			b.t.Errorf("%s: the console says: %s", when, bad)
		}
	}
	b.events = nil
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

// Faint fails the test for texts that are hard to read.
func (b *Browser) Faint(when string) {
	b.t.Helper()
	b.None(when+": contrast", contrast)
}

// None fails the test for each text of the list that an expression in the page gives.
func (b *Browser) None(what, expression string) {
	b.t.Helper()
	var bad []string
	b.Eval(expression, &bad)
	for _, text := range bad {
		b.t.Errorf("%s: %s", what, text)
	}
}

// Shoot keeps a picture of the whole page in the folder of the variable SCREENSHOTS, for a
// person to look at.
func (b *Browser) Shoot(name string) {
	b.t.Helper()
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		return
	}
	var shot struct{ Data string }
	b.Call("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true}, &shot)
	png, err := base64.StdEncoding.DecodeString(shot.Data)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}
