package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start serves h in a new run directory until the test ends.
func start(t *testing.T, h Handlers) (*Server, *Client) {
	t.Helper()
	lock, err := Acquire(filepath.Join(t.TempDir(), "run"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Serve(lock, h, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := lock.Release(); err != nil {
			t.Error(err)
		}
	})
	return s, NewClient(lock.Dir())
}

func answer(doc any) Handlers {
	return Handlers{Query: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { WriteJSON(w, doc) })}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestRequestAndAnswer(t *testing.T) {
	var got string
	_, c := start(t, Handlers{Query: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Method + " " + r.URL.Path + " " + r.URL.Query().Get("target")
		WriteJSON(w, map[string]int{"n": 7})
	})})
	b, err := c.Post(testContext(t), "/v1/ping", url.Values{"target": {"a b/&"}})
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]int
	if err := json.Unmarshal(b, &doc); err != nil || doc["n"] != 7 {
		t.Fatalf("answer %s: %v", b, err)
	}
	if want := "POST /v1/ping a b/&"; got != want {
		t.Fatalf("request %q, want %q", got, want)
	}
}

func TestErrorsTravel(t *testing.T) {
	for _, tt := range []struct {
		err     error
		code    string
		text    string
		timeout bool
	}{
		{errors.New("no such peer"), CodeFailed, "no such peer", false},
		{fmt.Errorf("peer b: %w", context.DeadlineExceeded), CodeTimeout, "peer b: context deadline exceeded", true},
		{&Error{CodeRequest, "bad target"}, CodeRequest, "bad target", false},
		{fmt.Errorf("wrapped: %w", &Error{CodeBusy, "busy"}), CodeBusy, "busy", false},
		{errors.New("two\nlines\x1b[2J"), CodeFailed, "two lines\x1b[2J", false},
	} {
		t.Run(tt.text, func(t *testing.T) {
			_, c := start(t, Handlers{Query: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { WriteError(w, tt.err) })})
			_, err := c.Get(testContext(t), "/v1/status", nil)
			var e *Error
			if !errors.As(err, &e) || e.Code != tt.code || e.Error() != tt.text {
				t.Fatalf("got %#v, want code %s and %q", err, tt.code, tt.text)
			}
			if got := errors.Is(err, context.DeadlineExceeded); got != tt.timeout {
				t.Fatalf("is a deadline: %t, want %t", got, tt.timeout)
			}
		})
	}
}

func TestUnknownRequestNamesTheVersion(t *testing.T) {
	_, c := start(t, Handlers{Query: http.NotFoundHandler()})
	_, err := c.Get(testContext(t), "/v2/status", nil)
	if err == nil || !strings.Contains(err.Error(), "another version") {
		t.Fatalf("got %v", err)
	}
}

func TestSocketMode(t *testing.T) {
	// Neither a wide nor a narrow umask may change the mode. Umask belongs to
	// the process, so this test runs alone.
	for _, umask := range []int{0, 0o022, 0o777} {
		func() {
			dir := t.TempDir()
			defer syscall.Umask(syscall.Umask(umask))
			lock, err := Acquire(filepath.Join(dir, "run"))
			if err != nil && umask == 0o777 && os.Geteuid() != 0 {
				return // only root can use a directory without any permission
			}
			if err != nil {
				t.Fatal(err)
			}
			defer lock.Release()
			s, err := Serve(lock, answer(nil), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			fi, err := os.Lstat(filepath.Join(lock.Dir(), SocketName))
			if err != nil {
				t.Fatal(err)
			}
			if want := fs.ModeSocket | 0o660; fi.Mode() != want {
				t.Errorf("umask %04o: socket mode %v, want %v", umask, fi.Mode(), want)
			}
			if fi, _ := os.Stat(lock.Dir()); fi.Mode().Perm() != 0o755 {
				t.Errorf("umask %04o: run directory mode %v", umask, fi.Mode())
			}
			left, err := os.ReadDir(lock.Dir())
			if err != nil || len(left) != 2 {
				t.Errorf("umask %04o: files %v, want lock and socket: %v", umask, left, err)
			}
		}()
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	lock, err := Acquire(filepath.Join(t.TempDir(), "run"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Serve(lock, answer(nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // both are idempotent
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := lock.Release(); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(lock.Dir()); err != nil || len(left) != 0 {
		t.Fatalf("left behind: %v %v", left, err)
	}
}

func TestSecondNodeIsRefused(t *testing.T) {
	_, c := start(t, answer(nil))
	_, err := Acquire(c.dir)
	if !errors.Is(err, ErrRunning) {
		t.Fatalf("got %v", err)
	}
	want := fmt.Sprintf("another overlayd is already running with run directory %s (process %d)", c.dir, os.Getpid())
	if err.Error() != want {
		t.Fatalf("got  %q\nwant %q", err, want)
	}
	if err := c.Check(testContext(t)); err != nil {
		t.Fatalf("the first node was disturbed: %v", err)
	}
}

func TestSocketThatAnswersIsNotReplaced(t *testing.T) {
	_, c := start(t, answer("first"))
	// Somebody removes the lock file: the lock is free, the socket is not.
	if err := os.Remove(filepath.Join(c.dir, LockName)); err != nil {
		t.Fatal(err)
	}
	lock, err := Acquire(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release()
	if _, err := Serve(lock, answer("second"), nil); !errors.Is(err, ErrRunning) {
		t.Fatalf("got %v", err)
	}
	if b, err := c.Get(testContext(t), "/", nil); err != nil || strings.TrimSpace(string(b)) != `"first"` {
		t.Fatalf("the first node was disturbed: %s %v", b, err)
	}
}

func TestStaleFilesAreReplaced(t *testing.T) {
	dir := t.TempDir()
	// What a killed daemon leaves: a socket that nobody listens on, a lock
	// file that nobody holds, a half-made socket.
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, SocketName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	if err := os.WriteFile(filepath.Join(dir, LockName), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, stageName, "s"), 0o700); err != nil {
		t.Fatal(err)
	}
	c := NewClient(dir)
	if err := c.Check(testContext(t)); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("stale socket: %v", err)
	}
	lock, err := Acquire(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release()
	s, err := Serve(lock, answer(nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := c.Check(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

func TestForeignFileIsKept(t *testing.T) {
	lock, err := Acquire(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release()
	path := filepath.Join(lock.Dir(), SocketName)
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Serve(lock, answer(nil), nil); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Fatalf("got %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "mine" {
		t.Fatalf("the file is now %q", b)
	}
}

func TestLongPath(t *testing.T) {
	lock, err := Acquire(filepath.Join(t.TempDir(), strings.Repeat("long/", 40)))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release()
	s, err := Serve(lock, answer(nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := NewClient(lock.Dir()).Check(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

// TestLockRace takes and releases a lock from many goroutines: removing the
// file at Release must never let two hold it.
func TestLockRace(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	var wg sync.WaitGroup
	taken := 0
	for range 8 {
		wg.Go(func() {
			for range 200 {
				lock, err := Acquire(dir)
				if errors.Is(err, ErrRunning) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if !mu.TryLock() {
					t.Error("two holders")
				} else {
					taken++
					mu.Unlock()
				}
				if err := lock.Release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if taken == 0 {
		t.Error("nobody ever got the lock")
	}
}

func TestNotRunning(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, filepath.Join(dir, "none"), filepath.Join(dir, "file")} {
		c := NewClient(d)
		_, err := c.Get(testContext(t), "/v1/status", nil)
		want := "no overlayd is running at " + d + "/overlayd.sock"
		if !errors.Is(err, ErrNotRunning) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestPermissionDenied(t *testing.T) {
	c := NewClient("/run")
	err := c.explain(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)})
	if !errors.Is(err, fs.ErrPermission) || err.Error() != "socket /run/overlayd.sock: permission denied" {
		t.Fatalf("got %v", err)
	}
}

// TestSlowClientsHurtNobody opens connections that say nothing, or half a
// request, up to one below the bound.
func TestSlowClientsHurtNobody(t *testing.T) {
	s, c := start(t, answer(1))
	for i := range maxConns - 1 {
		conn, err := dial(testContext(t), c.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%2 == 0 {
			fmt.Fprint(conn, "GET /v1/status HTTP/1.1\r\nHo")
		}
	}
	for i := range 10 {
		if _, err := c.Get(testContext(t), "/v1/status", nil); err != nil {
			if i == 0 {
				t.Fatal(err)
			}
			// The connection of the round before may still be counted.
			var e *Error
			if !errors.As(err, &e) || e.Code != CodeBusy {
				t.Fatal(err)
			}
		}
	}
	began := time.Now()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("closing took %s", took)
	}
}

func TestTooManyClientsAreTold(t *testing.T) {
	_, c := start(t, answer(1))
	for range maxConns {
		conn, err := dial(testContext(t), c.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	// Connections are accepted in order, so this one is beyond the bound.
	_, err := c.Get(testContext(t), "/v1/status", nil)
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeBusy {
		t.Fatalf("got %v", err)
	}
}

func TestHugeRequestsAreRefused(t *testing.T) {
	read := make(chan error, 1)
	_, c := start(t, Handlers{Query: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		read <- err
		WriteJSON(w, nil)
	})})
	conn, err := dial(testContext(t), c.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("a", 2*maxHeader)+"\r\n\r\n")
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(line, "431") {
		t.Errorf("huge header: %q %v", line, err)
	}
	resp, err := c.http.Post("http://overlayd/", "text/plain", strings.NewReader(strings.Repeat("a", maxBody+1)))
	if err == nil {
		resp.Body.Close()
	}
	var tooLong *http.MaxBytesError
	if err := <-read; !errors.As(err, &tooLong) {
		t.Errorf("huge body: %v", err)
	}
}

// TestCloseEndsQueries closes while a query waits for its context.
func TestCloseEndsQueries(t *testing.T) {
	entered := make(chan struct{})
	s, c := start(t, Handlers{Query: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	})})
	done := make(chan error, 1)
	go func() {
		_, err := c.Get(testContext(t), "/v1/status", nil)
		done <- err
	}()
	<-entered
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	<-done
}

// TestLeave leaves the way a node does: the handler closes the server and
// gives the lock up before it returns.
func TestLeave(t *testing.T) {
	for _, want := range []error{nil, errors.New("the release did not spread")} {
		t.Run(fmt.Sprint(want), func(t *testing.T) {
			lock, err := Acquire(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			var s *Server
			ready := make(chan struct{})
			s, err = Serve(lock, Handlers{Query: http.NotFoundHandler(), Leave: func(context.Context) error {
				<-ready
				return errors.Join(want, s.Close(), lock.Release())
			}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			close(ready)
			err = NewClient(lock.Dir()).Leave(testContext(t))
			if (err == nil) != (want == nil) || err != nil && err.Error() != want.Error() {
				t.Fatalf("got %v, want %v", err, want)
			}
			s.Drain(testContext(t))
			if left, err := os.ReadDir(lock.Dir()); err != nil || len(left) != 0 {
				t.Fatalf("left behind: %v %v", left, err)
			}
		})
	}
}

// TestLeaveOfAProcessThatExits cuts the answer off, as an exit would.
func TestLeaveOfAProcessThatExits(t *testing.T) {
	dir := t.TempDir()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, SocketName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		http.ReadRequest(bufio.NewReader(conn))
		ln.Close()
		conn.Close()
	}()
	if err := NewClient(dir).Leave(testContext(t)); err != nil {
		t.Fatal(err)
	}
	<-done
}

// TestLeaveIsNotTakenBack closes the client's connection while the node
// leaves.
func TestLeaveIsNotTakenBack(t *testing.T) {
	entered, finish := make(chan struct{}), make(chan struct{})
	result := make(chan error, 1)
	s, c := start(t, Handlers{Query: http.NotFoundHandler(), Leave: func(ctx context.Context) error {
		close(entered)
		<-finish
		result <- ctx.Err()
		return nil
	}})
	ctx, cancel := context.WithCancel(testContext(t))
	left := make(chan struct{})
	go func() {
		defer close(left)
		_ = c.Leave(ctx)
	}()
	<-entered
	short, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	s.Drain(short) // returns, though the handler runs
	cancel()
	<-left
	close(finish)
	if err := <-result; err != nil {
		t.Fatalf("leaving was called off: %v", err)
	}
	s.Drain(testContext(t))
}
