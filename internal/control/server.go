package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Bounds on what clients can make a node do. Requests carry no bodies of
// note, and answers are built in memory, so a slow client costs a connection
// and nothing else, and that not for long.
const (
	maxConns     = 64
	maxBody      = 64 << 10
	maxHeader    = 16 << 10
	readTimeout  = 5 * time.Second
	queryTimeout = 30 * time.Second
	leaveTimeout = 30 * time.Second
	closeTimeout = 300 * time.Millisecond
)

// Handlers is what a node answers with.
type Handlers struct {
	// Stream answers GET /v1/capture, for as long as the client listens. It writes with
	// StreamWriter.
	Stream http.Handler
	// Query answers everything but /v1/leave. The context of its requests ends
	// when the client goes away and when the server closes.
	Query http.Handler
	// Leave answers POST /v1/leave. It is expected to close the server before
	// it returns; its error is what the client gets.
	Leave func(ctx context.Context) error
}

// Server serves a node's requests on the socket of its run directory.
type Server struct {
	dir    string
	http   http.Server
	cancel context.CancelFunc

	serving sync.WaitGroup // the accept loop
	queries sync.WaitGroup // Query handlers; Add only with mu held and closed unset

	mu      sync.Mutex
	closed  bool       // guarded by mu
	leaving int        // guarded by mu: Leave handlers, which outlive the server
	left    *sync.Cond // of mu: leaving has changed

	once sync.Once
	err  error
}

// Serve makes the socket in the lock's directory and answers requests there
// until Close. A nil log discards. The lock stays the caller's, who releases it
// after Close.
func Serve(lock *Lock, h Handlers, log *slog.Logger) (*Server, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ln, err := listen(lock.Dir())
	if err != nil {
		if errors.Is(err, ErrRunning) {
			return nil, err
		}
		return nil, fmt.Errorf("control socket: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{dir: lock.Dir(), cancel: cancel}
	s.left = sync.NewCond(&s.mu)
	s.http = http.Server{
		Handler:        s.handler(h),
		ReadTimeout:    readTimeout,
		WriteTimeout:   readTimeout + queryTimeout,
		MaxHeaderBytes: maxHeader,
		BaseContext:    func(net.Listener) context.Context { return ctx },
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	// One request per connection: an idle one would only use up the bound.
	s.http.SetKeepAlivesEnabled(false)
	s.serving.Go(func() {
		if err := s.http.Serve(&boundedListener{UnixListener: ln}); !errors.Is(err, http.ErrServerClosed) {
			log.Error("control socket no longer answers", "error", err)
		}
	})
	return s, nil
}

// Close removes the socket, ends the queries that run, and returns when they
// have ended. It does not wait for Leave, which calls it. It may be called more
// than once.
func (s *Server) Close() error {
	s.once.Do(func() {
		s.err = ignoreNotExist(os.Remove(filepath.Join(s.dir, SocketName)))
		s.cancel()
		// Answers that are being written get a moment, clients that never
		// asked do not.
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if err := s.http.Shutdown(ctx); err != nil {
			_ = s.http.Close() // only closes what Shutdown has closed already
		}
		s.serving.Wait()
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.queries.Wait()
	})
	return s.err
}

// Drain returns when clients that asked the node to leave have their answer,
// or when ctx ends. A process that exits as soon as its node has stopped calls
// it first.
func (s *Server) Drain(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.left.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.leaving > 0 && ctx.Err() == nil {
		s.left.Wait()
	}
}

// StreamWriter is for answers that take as long as they take: each Write must be
// taken within some seconds. Flush sends what was written.
type StreamWriter struct {
	w http.ResponseWriter
	c *http.ResponseController
}

// NewStreamWriter makes one of a request's writer.
func NewStreamWriter(w http.ResponseWriter) *StreamWriter {
	return &StreamWriter{w, http.NewResponseController(w)}
}

// Write must be taken within readTimeout.
func (s *StreamWriter) Write(b []byte) (int, error) {
	if err := s.c.SetWriteDeadline(time.Now().Add(readTimeout)); err != nil {
		return 0, err
	}
	return s.w.Write(b)
}

// Flush sends what was written.
func (s *StreamWriter) Flush() error { return s.c.Flush() }

// Abort has the client see that the answer is not whole: nothing more can be written,
// not even its end.
func (s *StreamWriter) Abort() { _ = s.c.SetWriteDeadline(time.Unix(1, 0)) }

// enterQuery counts a query in, unless the server is closed.
func (s *Server) enterQuery() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.queries.Add(1)
	return true
}

// enterLeave counts a Leave handler in, unless the server is closed.
func (s *Server) enterLeave() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.leaving++
	return true
}

func (s *Server) exitLeave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving--
	s.left.Broadcast()
}

func (s *Server) handler(h Handlers) http.Handler {
	stopping := &Error{CodeFailed, "the node is stopping"}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/leave", func(w http.ResponseWriter, r *http.Request) {
		if !s.enterLeave() {
			WriteError(w, stopping)
			return
		}
		defer s.exitLeave()
		serveLeave(w, r, h.Leave)
	})
	mux.HandleFunc("GET /v1/capture", func(w http.ResponseWriter, r *http.Request) {
		if !s.enterQuery() {
			WriteError(w, stopping)
			return
		}
		defer s.queries.Done()
		h.Stream.ServeHTTP(w, r)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if !s.enterQuery() {
			WriteError(w, stopping)
			return
		}
		defer s.queries.Done()
		ctx, cancel := context.WithTimeout(r.Context(), queryTimeout)
		defer cancel()
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		h.Query.ServeHTTP(w, r)
	})
	return mux
}

// serveLeave takes the connection out of the server's hands, because leaving
// closes the server, and the client wants to hear how it ended.
func serveLeave(w http.ResponseWriter, r *http.Request, leave func(context.Context) error) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		WriteError(w, err)
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Time{})
	// A client that goes away does not call the node back.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), leaveTimeout)
	defer cancel()
	err = leave(ctx)
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	writeRaw(buf.Writer, err)
}

// writeRaw writes a whole HTTP answer: {} or the error.
func writeRaw(w *bufio.Writer, err error) {
	status, body := http.StatusOK, []byte("{}")
	if err != nil {
		status, body = http.StatusInternalServerError, asError(err).body()
	}
	fmt.Fprintf(w, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n",
		status, http.StatusText(status), len(body))
	_, _ = w.Write(body)
	_ = w.Flush() // the client may be gone; the node has left all the same
}

// boundedListener turns connections beyond maxConns away with an answer, so
// that nobody hangs in the backlog.
type boundedListener struct {
	*net.UnixListener
	mu   sync.Mutex
	open int
}

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.UnixListener.Accept()
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		full := l.open >= maxConns
		if !full {
			l.open++
		}
		l.mu.Unlock()
		if !full {
			return &boundedConn{Conn: c, l: l}, nil
		}
		refuse(c)
	}
}

// refuse answers a client that is one too many. It takes the request first, as
// an answer to no request is one that clients do not understand, but waits for
// it only as long as nobody behind it would notice.
func refuse(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := c.Read(make([]byte, 4<<10)); err != nil {
		return
	}
	body := (&Error{CodeBusy, "the node is busy with other clients: try again"}).body()
	_, _ = fmt.Fprintf(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		len(body), body)
}

type boundedConn struct {
	net.Conn
	l    *boundedListener
	once sync.Once
}

func (c *boundedConn) Close() error {
	c.once.Do(func() {
		c.l.mu.Lock()
		c.l.open--
		c.l.mu.Unlock()
	})
	return c.Conn.Close()
}
