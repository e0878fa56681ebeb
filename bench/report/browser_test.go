package report

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/overlayd/overlayd/internal/browsertest"
)

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
	b := browsertest.Start(t)
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
	background := map[string]string{}
	for _, size := range []struct{ width, height int }{{360, 800}, {1280, 900}} {
		for _, scheme := range []string{"light", "dark"} {
			name := fmt.Sprintf("%dx%d, %s", size.width, size.height, scheme)
			b.Open("file://"+file, size.width, size.height, scheme)
			var got struct {
				Scroll, Inner, Paths int
				Background           string
			}
			b.Eval(`({Scroll: document.documentElement.scrollWidth, Inner: innerWidth,
				Paths: [...document.querySelectorAll("svg")].filter(e => e.getClientRects().length).length,
				Background: getComputedStyle(document.body).backgroundColor})`, &got)
			if got.Inner != size.width || got.Scroll > got.Inner {
				t.Errorf("%s: the page is %d wide, the window %d", name, got.Scroll, got.Inner)
			}
			if got.Paths != 9 {
				t.Errorf("%s: %d drawings are seen, want one of each path that ran", name, got.Paths)
			}
			background[scheme] = got.Background
			b.Faint(name)
			b.None(name+": drawings", outside)
			b.Quiet(name)
			b.Shoot(fmt.Sprintf("%d-%s.png", size.width, scheme))
		}
	}
	if background["light"] == background["dark"] {
		t.Errorf("light and dark are both %s", background["light"])
	}
}
