package metrics

import (
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
)

// maxScrapes is how many scrapes may wait for one another.
const maxScrapes = 4

// Handler answers scrapes, with what take gives, in the formats that Prometheus asks
// for. take is called by one goroutine at a time. A nil log discards.
func Handler(take func() Snapshot, log *slog.Logger) (http.Handler, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	g, err := newGatherer(take)
	if err != nil {
		return nil, err
	}
	return promhttp.HandlerFor(g, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// To compress takes longer than all the rest, and the way is short.
		DisableCompression:  true,
		MaxRequestsInFlight: maxScrapes,
	}), nil
}

// gatherer is the whole of a scrape.
type gatherer struct {
	take     func() Snapshot
	registry *prometheus.Registry

	mu   sync.Mutex // one scrape at a time
	node nodeMetrics
}

func newGatherer(take func() Snapshot) (*gatherer, error) {
	g := &gatherer{take: take, registry: prometheus.NewRegistry()}
	for _, c := range []prometheus.Collector{&g.node, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := g.registry.Register(c); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// Gather takes one snapshot and makes all metrics of it.
func (g *gatherer) Gather() ([]*dto.MetricFamily, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.node.now = g.take()
	all, err := g.registry.Gather()
	all = append(all, peerFamilies(g.node.now.Peers)...)
	slices.SortFunc(all, func(a, b *dto.MetricFamily) int { return strings.Compare(a.GetName(), b.GetName()) })
	return all, err
}
