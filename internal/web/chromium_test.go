package web

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// browser is a headless Chromium that is spoken to by the Chrome DevTools Protocol over two
// pipes: messages are JSON, each ended by a NUL (chromium, content/browser/devtools,
// devtools_pipe_handler.cc).
type browser struct {
	t       *testing.T
	ctx     context.Context
	out     *os.File
	session string
	in      chan message
	closed  chan struct{} // the reader has ended
	done    chan struct{} // nobody waits for messages any more
	last    int
	events  []message // that came while an answer was waited for
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

// startBrowser starts the first Chromium of PATH with one blank page; the test is skipped if
// there is none.
func startBrowser(t *testing.T) *browser {
	program := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			program = p
			break
		}
	}
	if program == "" {
		t.Skip("no chromium, chromium-browser or google-chrome in PATH: the page is not looked at in a browser")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	dir, err := os.MkdirTemp("", "overlayd-web")
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
	b := &browser{t: t, ctx: ctx, out: ourOut, in: make(chan message), closed: make(chan struct{}), done: make(chan struct{})}
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
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	return b
}

// read hands on what the browser says, until it says no more.
func (b *browser) read(from *os.File) {
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
func (b *browser) next() message {
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

// call calls a method and waits for its answer; events that come before are kept.
func (b *browser) call(method string, params, result any) {
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

// until waits for an expression in the page to be true.
func (b *browser) until(expression string) {
	b.t.Helper()
	var came bool
	b.eval(`new Promise(done => {
		const end = performance.now() + 20000;
		const look = () => { try { if (`+expression+`) return done(true) } catch {} performance.now() > end ? done(false) : setTimeout(look, 30) };
		look();
	})`, &came)
	if !came {
		b.t.Fatalf("it does not come true: %s", expression)
	}
}

// eval gives the value of an expression in the page, or of the promise that it is.
func (b *browser) eval(expression string, value any) {
	b.t.Helper()
	var got struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails json.RawMessage
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &got)
	if got.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, got.ExceptionDetails)
	}
	if err := json.Unmarshal(got.Result.Value, value); err != nil {
		b.t.Fatal(fmt.Errorf("%s: %w", expression, err))
	}
}
