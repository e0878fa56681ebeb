package metrics

import (
	"strings"

	dto "github.com/prometheus/client_model/go"
)

// family is the metrics of one name, one for each peer or for each of its paths.
type family struct {
	name, help string
	kind       dto.MetricType
	// of gives the value of a peer; ok is false if it has none. Nil: see byPath.
	of func(p *Peer) (v float64, ok bool)
	// byPath gives the value of a peer's path.
	byPath func(c *Counts) uint64
}

// families are the metrics of peers. Names and labels are promised.
var families = []family{
	{name: "overlayd_peer_info", help: "A constant 1, with the state of a peer and the path that packets to it take.", kind: dto.MetricType_GAUGE},
	{
		name: "overlayd_peer_last_proof_timestamp_seconds", help: "When a peer last answered a probe.", kind: dto.MetricType_GAUGE,
		of: func(p *Peer) (float64, bool) { return float64(p.Proof.UnixMilli()) / 1000, !p.Proof.IsZero() },
	},
	{
		name: "overlayd_peer_mtu_bytes", help: "The largest packet that is sent to a peer.", kind: dto.MetricType_GAUGE,
		of: func(p *Peer) (float64, bool) { return float64(p.MTU), p.MTU > 0 },
	},
	{
		name: "overlayd_peer_receive_bytes_total", help: "Inner bytes from a peer, by the path that they took.", kind: dto.MetricType_COUNTER,
		byPath: func(c *Counts) uint64 { return c.RxBytes },
	},
	{
		name: "overlayd_peer_receive_packets_total", help: "Inner packets from a peer, by the path that they took.", kind: dto.MetricType_COUNTER,
		byPath: func(c *Counts) uint64 { return c.RxPackets },
	},
	{
		name: "overlayd_peer_rtt_seconds", help: "Smoothed round trip of the probes to a peer.", kind: dto.MetricType_GAUGE,
		of: func(p *Peer) (float64, bool) { return p.RTT.Seconds(), p.RTT > 0 },
	},
	{
		name: "overlayd_peer_transmit_bytes_total", help: "Inner bytes to a peer, by the path that they took.", kind: dto.MetricType_COUNTER,
		byPath: func(c *Counts) uint64 { return c.TxBytes },
	},
	{
		name: "overlayd_peer_transmit_packets_total", help: "Inner packets to a peer, by the path that they took.", kind: dto.MetricType_COUNTER,
		byPath: func(c *Counts) uint64 { return c.TxPackets },
	},
}

// labelled is a peer with its labels: in the order of their names, as they are printed.
type labelled struct {
	*Peer
	own    []*dto.LabelPair // peer, peer_id
	info   []*dto.LabelPair // path, peer, peer_id, state
	byPath [][]*dto.LabelPair
}

// words makes labels of the few values that some have.
type words map[[2]string]*dto.LabelPair

func (w words) pair(name, value string) *dto.LabelPair {
	p := w[[2]string{name, value}]
	if p == nil {
		p = pair(name, value)
		w[[2]string{name, value}] = p
	}
	return p
}

func pair(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }

// peerFamilies makes the metrics of peers.
func peerFamilies(peers []Peer) []*dto.MetricFamily {
	peers = peers[:min(len(peers), MaxPeers)]
	if len(peers) == 0 {
		return nil
	}
	words := words{}
	all := make([]labelled, len(peers))
	for i := range peers {
		p := &peers[i]
		l := labelled{Peer: p, own: []*dto.LabelPair{pair("peer", printable(p.Name)), pair("peer_id", p.ID)}}
		l.info = []*dto.LabelPair{words.pair("path", p.Path), l.own[0], l.own[1], words.pair("state", p.State)}
		for j := range p.Paths {
			l.byPath = append(l.byPath, []*dto.LabelPair{words.pair("path", p.Paths[j].Path), l.own[0], l.own[1]})
		}
		all[i] = l
	}
	out := make([]*dto.MetricFamily, 0, len(families))
	for i := range families {
		if mf := families[i].collect(all); len(mf.Metric) > 0 { // one without a metric cannot be printed
			out = append(out, mf)
		}
	}
	return out
}

func (f *family) collect(peers []labelled) *dto.MetricFamily {
	mf := &dto.MetricFamily{Name: &f.name, Help: &f.help, Type: &f.kind}
	b := newBatch(f, peers)
	for i := range peers {
		p := &peers[i]
		switch {
		case f.byPath != nil:
			for j := range p.Paths {
				b.add(p.byPath[j], float64(f.byPath(&p.Paths[j])))
			}
		case f.of == nil:
			b.add(p.info, 1)
		default:
			if v, ok := f.of(p.Peer); ok {
				b.add(p.own, v)
			}
		}
	}
	mf.Metric = b.out
	return mf
}

// batch is the metrics of one family, in a few pieces of memory instead of three for each.
type batch struct {
	metrics  []dto.Metric
	counters []dto.Counter // or gauges
	gauges   []dto.Gauge
	values   []float64
	out      []*dto.Metric
}

func newBatch(f *family, peers []labelled) *batch {
	n := len(peers)
	if f.byPath != nil {
		n = 0
		for i := range peers {
			n += len(peers[i].byPath)
		}
	}
	b := &batch{metrics: make([]dto.Metric, n), values: make([]float64, n), out: make([]*dto.Metric, 0, n)}
	if f.kind == dto.MetricType_COUNTER {
		b.counters = make([]dto.Counter, n)
	} else {
		b.gauges = make([]dto.Gauge, n)
	}
	return b
}

func (b *batch) add(labels []*dto.LabelPair, v float64) {
	i := len(b.out)
	m := &b.metrics[i]
	b.values[i] = v
	m.Label = labels
	if b.counters != nil {
		b.counters[i].Value = &b.values[i]
		m.Counter = &b.counters[i]
	} else {
		b.gauges[i].Value = &b.values[i]
		m.Gauge = &b.gauges[i]
	}
	b.out = append(b.out, m)
}

// printable makes a label of a name that came out of gossip: one that is not UTF-8 would
// spoil the whole scrape.
func printable(s string) string { return strings.ToValidUTF8(s, "\ufffd") }
