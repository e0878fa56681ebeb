package web

import (
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/browsertest"
)

// TestPageThousand: a thousand peers leave the page more than half of the time for whoever
// scrolls and types, also when their order changes each time.
func TestPageThousand(t *testing.T) {
	t.Parallel()
	b := browsertest.Start(t)
	f := newFake(1000)
	_, url := f.serve(t)
	b.Open(url, 1280, 900, "light")
	b.Until(`document.querySelectorAll("#peers tbody tr").length === 1000`)
	var sorted string
	b.Eval(`(() => { const e = document.querySelector("#peers thead th:nth-child(7) button"); e.click(); return e.textContent })()`, &sorted)
	b.Call("Performance.enable", nil, nil)
	busy := func() (seconds float64) {
		var got struct {
			Metrics []struct {
				Name  string
				Value float64
			}
		}
		b.Call("Performance.getMetrics", nil, &got)
		for _, m := range got.Metrics {
			if m.Name == "TaskDuration" {
				seconds = m.Value
			}
		}
		return seconds
	}
	asked := func() int { f.mu.Lock(); defer f.mu.Unlock(); return f.asked }
	before, first, began := busy(), asked(), time.Now()
	waitFor(t, func() bool {
		f.set(func(_ object, peers []object) { peers[0], peers[len(peers)-1] = peers[len(peers)-1], peers[0] })
		return asked() >= first+3
	})
	took, all := busy()-before, time.Since(began).Seconds()
	if took <= 0 || took > all/2 {
		t.Errorf("sorted by %s it was busy for %.2f of %.2f s", sorted, took, all)
	}
	t.Logf("busy for %.2f of %.2f s", took, all)
	b.Quiet("a thousand peers")
}

// TestPageFocus: a row that is looked at from the keyboard keeps the focus when it moves.
func TestPageFocus(t *testing.T) {
	t.Parallel()
	b := browsertest.Start(t)
	f := newFake(7)
	_, url := f.serve(t)
	b.Open(url, 1280, 900, "light")
	b.Until(`document.querySelectorAll("#peers tbody tr").length === 7`)
	for _, slow := range []int{3, 5} { // which comes to the top
		var id, now string
		f.set(func(_ object, peers []object) { id = "peer-" + peers[slow]["id"].(string) })
		b.Eval(`(() => {
			const title = document.querySelector("#peers thead th:nth-child(6)");
			if (title.getAttribute("aria-sort") !== "descending") title.querySelector("button").click();
			document.getElementById("`+id+`").focus();
			return document.activeElement.id;
		})()`, &now)
		if now != id {
			t.Fatalf("the focus is on %q, want %q", now, id)
		}
		f.set(func(_ object, peers []object) { peers[slow]["rtt_us"] = 1000 * (100 + slow) })
		b.Until(`document.querySelector("#peers tbody").rows[0].id === "` + id + `"`)
		if b.Eval(`document.activeElement.id`, &now); now != id {
			t.Errorf("the row has moved, and the focus is on %q, want %q", now, id)
		}
	}
	b.Quiet("rows that move")
}

// TestPageClock: how long a path has been what it is goes by the node's clock, however wrong
// that of the browser's host is; and a reader hears of changes from the first one on.
func TestPageClock(t *testing.T) {
	t.Parallel()
	b := browsertest.Start(t)
	f := newFake(2)
	f.set(func(_ object, peers []object) { peers[1]["path_since"] = time.Now().Add(-time.Hour - 30*time.Second) })
	_, url := f.serve(t)
	for _, wrong := range []string{"0", "90000e3", "-90000e3"} {
		var script struct{ Identifier string }
		b.Call("Page.addScriptToEvaluateOnNewDocument", map[string]any{"source": "{ const right = Date.now.bind(Date); Date.now = () => right() + " + wrong + "; }"}, &script)
		b.Open(url, 1280, 900, "light")
		b.Until(`document.querySelectorAll("#peers tbody tr").length === 2`)
		var got struct{ New, Old, Live string }
		b.Eval(`({New: document.querySelector("#peers tbody").rows[0].cells[4].textContent, Old: document.querySelector("#peers tbody").rows[1].cells[4].textContent,
			Live: getComputedStyle(document.getElementById("changes")).display})`, &got)
		if len(got.New) > len("59.9 s") || got.New[len(got.New)-1] != 's' || got.Old != "1 h 0 min" {
			t.Errorf("a browser's clock that is %s ms ahead: %q and %q", wrong, got.New, got.Old)
		}
		if got.Live == "none" {
			t.Error("changes are not there for a screen reader until there is one")
		}
		b.Call("Page.removeScriptToEvaluateOnNewDocument", map[string]any{"identifier": script.Identifier}, nil)
	}
	b.Quiet("wrong clocks")
}
