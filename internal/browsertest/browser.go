// Package browsertest shows pages to a headless Chromium, for tests.
package browsertest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"
)

// Browser is a headless Chromium with one page. It is spoken to by the Chrome DevTools Protocol over two
// pipes: messages are JSON, each ended by a NUL (chromium, content/browser/devtools,
// devtools_pipe_handler.cc). What it cannot do fails the test. It is for one goroutine.
type Browser struct {
	t       *testing.T
	ctx     context.Context
	out     *os.File
	session string
	in      chan message
	closed  chan struct{} // the reader has ended
	done    chan struct{} // nobody waits for messages any more
	last    int
	events  []message // that came while something else was waited for
}

// message is an answer, which has an ID, or an event, which has a method.
type message struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// Start starts the first Chromium of PATH with one blank page, until the test ends; the
// test is skipped if there is none.
func Start(t *testing.T) *Browser {
	t.Helper()
	program := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			program = p
			break
		}
	}
	if program == "" {
		t.Skip("no chromium, chromium-browser or google-chrome in PATH: no page is looked at in a browser")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	dir, err := os.MkdirTemp("", "overlayd-browser")
	if err != nil {
		t.Fatal(err)
	}
	theirIn, ourOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ourIn, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-quic",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--disable-dev-shm-usage", "--hide-scrollbars", "--user-data-dir="+dir, "about:blank")
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirIn.Close()
	theirOut.Close()
	b := &Browser{t: t, ctx: ctx, out: ourOut, in: make(chan message), closed: make(chan struct{}), done: make(chan struct{})}
	go b.read(ourIn)
	t.Cleanup(func() {
		// It ends when its pipe does; who waits too long is killed.
		close(b.done)
		ourOut.Close()
		late := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		late.Stop()
		ourIn.Close()
		<-b.closed
		// A process of it that lingers may write there still: that fails no test.
		if err := os.RemoveAll(dir); err != nil {
			t.Log(err)
		}
		if t.Failed() {
			t.Logf("chromium said:\n%s", said.String())
		}
	})
	var target struct{ TargetID string }
	b.Call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.Call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		b.Call(domain+".enable", nil, nil)
	}
	return b
}

// read hands on what the browser says, until it says no more.
func (b *Browser) read(from *os.File) {
	defer close(b.closed)
	r := bufio.NewReader(from)
	for {
		line, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var m message
		if json.Unmarshal(bytes.TrimSuffix(line, []byte{0}), &m) == nil {
			select {
			case b.in <- m:
			case <-b.done:
			}
		}
	}
}

// next is the next message.
func (b *Browser) next() message {
	b.t.Helper()
	select {
	case m := <-b.in:
		return m
	case <-b.closed:
		b.t.Fatal("chromium has ended")
	case <-b.ctx.Done():
		b.t.Fatal("chromium does not answer")
	}
	return message{}
}

// Call calls a method of the protocol and waits for its answer. Params and result may be
// nil.
func (b *Browser) Call(method string, params, result any) {
	b.t.Helper()
	b.last++
	call := map[string]any{"id": b.last, "method": method}
	if params != nil {
		call["params"] = params
	}
	if b.session != "" {
		call["sessionId"] = b.session
	}
	text, err := json.Marshal(call)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.out.Write(append(text, 0)); err != nil {
		b.t.Fatalf("%s: %v", method, err)
	}
	for {
		m := b.next()
		if m.ID != b.last {
			b.events = append(b.events, m)
			continue
		}
		if m.Error != nil {
			b.t.Fatalf("%s: %s", method, m.Error.Message)
		}
		if result != nil {
			if err := json.Unmarshal(m.Result, result); err != nil {
				b.t.Fatalf("%s: %v", method, err)
			}
		}
		return
	}
}

// Until waits for an expression in the page to be true.
func (b *Browser) Until(expression string) {
	b.t.Helper()
	var came bool
	b.Eval(`new Promise(done => {
		const end = performance.now() + 20000;
		const look = () => { try { if (`+expression+`) return done(true) } catch {} performance.now() > end ? done(false) : setTimeout(look, 30) };
		look();
	})`, &came)
	if !came {
		b.t.Fatalf("it does not come true: %s", expression)
	}
}

// Eval gives the value of an expression in the page, or of the promise that it is.
func (b *Browser) Eval(expression string, value any) {
	b.t.Helper()
	var got struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails json.RawMessage
	}
	b.Call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &got)
	if got.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, got.ExceptionDetails)
	}
	if err := json.Unmarshal(got.Result.Value, value); err != nil {
		b.t.Fatal(fmt.Errorf("%s: %w", expression, err))
	}
}

// await waits for an event. Those that come before it are kept.
func (b *Browser) await(method string) {
	b.t.Helper()
	for seen := 0; ; seen++ {
		if seen == len(b.events) {
			b.events = append(b.events, b.next())
		}
		if b.events[seen].Method == method {
			b.events = slices.Delete(b.events, seen, seen+1)
			return
		}
	}
}
