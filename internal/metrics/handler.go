package metrics

import (
	"log/slog"
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Handler answers scrapes, with what take gives, as text. take is called by one goroutine
// at a time. A nil log discards.
func Handler(take func() Snapshot, log *slog.Logger) (http.Handler, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	h := &handler{take: take}
	registry := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{&h.node, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	h.few = promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// To compress takes longer than all the rest, and the way is short.
		DisableCompression: true,
	})
	return h, nil
}

// handler is the whole of a scrape.
type handler struct {
	take func() Snapshot
	few  http.Handler // of the registry: all but the series of peers

	mu   sync.Mutex // one scrape at a time
	node nodeMetrics
	size int // of the last one
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := h.scrape(r)
	for name, values := range a.header {
		w.Header()[name] = values
	}
	w.WriteHeader(a.code)
	_, _ = w.Write(a.body) // the client may be gone
}

// scrape takes one snapshot and makes all metrics of it, before anything is sent, so that
// a slow client keeps nobody waiting.
func (h *handler) scrape(r *http.Request) *answer {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.node.now = h.take()
	a := &answer{header: http.Header{}, code: http.StatusOK, body: make([]byte, 0, h.size+h.size/16)}
	// Text is what all readers take, and what the series of peers are written as.
	asked := r.Clone(r.Context())
	asked.Header.Del("Accept")
	h.few.ServeHTTP(a, asked)
	if a.code == http.StatusOK {
		a.body = appendPeers(a.body, h.node.now.Peers)
		h.size = len(a.body)
	}
	return a
}

// answer is an http.ResponseWriter that keeps what it is given.
type answer struct {
	header http.Header
	code   int
	body   []byte
}

func (a *answer) Header() http.Header  { return a.header }
func (a *answer) WriteHeader(code int) { a.code = code }

func (a *answer) Write(b []byte) (int, error) {
	a.body = append(a.body, b...)
	return len(b), nil
}
