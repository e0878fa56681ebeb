// Package web answers a node's observers by HTTP: /metrics, /healthz, /readyz, /status,
// /leases, a page for people at /, and, if they are wanted, profiles and what the peers
// say. It changes nothing in a node, asks nobody who they are, and knows nothing of nodes
// but what [Config] gives it.
//
// Whoever reaches the address may read all of it, so it belongs on loopback or into a
// trusted network. No other site's page can read an answer in a browser; on loopback also
// not by a name of its own that leads there (see hosts.go).
package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

// Bounds on what clients can make a node do.
const (
	maxConns      = 128
	maxHeader     = 16 << 10
	headerTimeout = 5 * time.Second
	writeTimeout  = 30 * time.Second
	idleTimeout   = time.Minute
	closeTimeout  = 300 * time.Millisecond
)

// Config is what a Server answers with. All but Pprof, Peers and Logger are required; the
// functions are called by many goroutines.
type Config struct {
	// Status and Leases give documents, which are sent as JSON.
	Status, Leases func() any
	// Healthy and Ready say in one line why the node is not, nil if it is.
	Healthy, Ready func() error
	// Metrics answers /metrics.
	Metrics http.Handler
	// Pprof adds /debug/pprof/.
	Pprof bool
	// Peers adds /mesh, for which the peers are asked. Nil: nobody is asked anything.
	Peers *Asking
	// Logger nil discards.
	Logger *slog.Logger
}

// Server answers by HTTP until Close.
type Server struct {
	http   http.Server
	ln     net.Listener
	cancel context.CancelFunc

	serving sync.WaitGroup // the accept loop
	once    sync.Once
	err     error

	mu     sync.Mutex
	closed bool           // guarded by mu
	asked  sync.WaitGroup // requests; Add only with mu held and closed unset
}

// Listen takes an address, which the host need not have yet, or any more: packets are not
// to wait for it. What comes is answered after Serve.
func Listen(addr netip.AddrPort) (net.Listener, error) {
	free := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		level, option := unix.SOL_IP, unix.IP_FREEBIND
		if network == "tcp6" {
			level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
		}
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }), err)
	}}
	ln, err := free.Listen(context.Background(), "tcp", addr.String())
	switch {
	case err == nil:
		return ln, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("the HTTP address %v is taken by another program: stop it, or choose another --http-listen", addr)
	}
	return nil, fmt.Errorf("the HTTP address %v cannot be listened on: %w", addr, err)
}

// Serve answers on ln, which is the Server's from now on, until Close.
func Serve(ln net.Listener, cfg Config) *Server {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{ln: ln, cancel: cancel}
	s.http = http.Server{
		Handler:           s.counted(guarded(ln.Addr(), routes(ctx, cfg))),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       headerTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	s.serving.Go(func() {
		if err := s.http.Serve(netutil.LimitListener(ln, maxConns)); !errors.Is(err, http.ErrServerClosed) {
			log.Error("HTTP is no longer answered", "error", err)
		}
	})
	return s
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Close ends all requests and returns when they have ended. It may be called more than
// once.
func (s *Server) Close() error {
	s.once.Do(func() {
		s.cancel()
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if err := s.http.Shutdown(ctx); err != nil {
			s.err = s.http.Close() // those that are too slow
		}
		s.serving.Wait()
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.asked.Wait()
	})
	return s.err
}

// counted counts the requests, so that Close can wait for them.
func (s *Server) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			http.Error(w, "the node is stopping", http.StatusServiceUnavailable)
			return
		}
		s.asked.Add(1)
		s.mu.Unlock()
		defer s.asked.Done()
		next.ServeHTTP(w, r)
	})
}
