package metrics

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
)

// nodeMetrics are those of which there are few, whatever the cluster's size.
type nodeMetrics struct{ now Snapshot }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("overlayd_"+name, help, labels, nil)
}

// The metrics of a node. Names and labels are promised: dashboards are made of them.
var (
	buildInfo    = desc("build_info", "A constant 1, with the version of overlayd and of Go.", "version", "goversion")
	nodeInfo     = desc("node_info", "A constant 1, with what this node is.", "name", "id", "encap", "fast_path")
	nodeMTU      = desc("node_mtu_bytes", "The largest packet that containers may send.")
	nodeReady    = desc("node_ready", "1 if the node holds its subnets and has merged with its cluster, else 0.")
	nodeWarnings = desc("node_warnings", "How many things are wrong outside of overlayd: see overlayd status.")
	subnetsHeld  = desc("subnets_held", "How many subnets the node holds.")
	subnetsWant  = desc("subnets_wanted", "How many subnets the node is to hold: one of each overlay network.")
	leases       = desc("leases", "Claims on subnets that this node knows of, by state.", "state")
	gossipSynced = desc("gossip_synced", "1 if the node has merged in full with its cluster, else 0.")
	gossipHealth = desc("gossip_health_score", "Memberlist's score of this node's own health: 0 is good, larger is worse.")
	gossipPeers  = desc("gossip_members", "Other nodes as gossip sees them, by state.", "state")
	pathPeers    = desc("path_peers", "Peers by the path that packets to them take.", "path")
	pathChanges  = desc("path_changes_total", "Changes of the path to a peer.", "from", "to", "reason")
	drops        = desc("drops_total", "Packets that were dropped, and frames that were refused, by reason.", "reason")
	roundTrips   = desc("probe_rtt_seconds", "Round trips of answered probes, by the path that they took.", "path")
	peersLeft    = desc("peers_without_series", "Peers that have no series of their own, since there are too many.")
)

func (m *nodeMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		buildInfo, nodeInfo, nodeMTU, nodeReady, nodeWarnings, subnetsHeld, subnetsWant, leases,
		gossipSynced, gossipHealth, gossipPeers, pathPeers, pathChanges, drops, roundTrips, peersLeft,
	} {
		ch <- d
	}
}

// Collect tells the last snapshot.
func (m *nodeMetrics) Collect(ch chan<- prometheus.Metric) {
	s := &m.now
	send := func(metric prometheus.Metric, err error) {
		if err != nil { // a label that is no UTF-8: the scrape says so
			metric = prometheus.NewInvalidMetric(nodeInfo, err)
		}
		ch <- metric
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		send(prometheus.NewConstMetric(d, prometheus.GaugeValue, v, labels...))
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		send(prometheus.NewConstMetric(d, prometheus.CounterValue, float64(v), labels...))
	}
	gauge(buildInfo, 1, s.Version, runtime.Version())
	gauge(nodeInfo, 1, printable(s.Node.Name), s.Node.ID, s.Node.Encap, s.Node.FastPath)
	gauge(nodeMTU, float64(s.Node.MTU))
	gauge(nodeReady, truth(s.Node.Ready))
	gauge(nodeWarnings, float64(s.Node.Warnings))
	gauge(subnetsHeld, float64(s.Node.Held))
	gauge(subnetsWant, float64(s.Node.Wanted))
	for state, n := range s.Leases {
		gauge(leases, float64(n), state)
	}
	gauge(gossipSynced, truth(s.Gossip.Synced))
	gauge(gossipHealth, float64(s.Gossip.Health))
	for state, n := range s.Gossip.Members {
		gauge(gossipPeers, float64(n), state)
	}
	paths := map[string]int{"none": 0, "userspace-udp": 0, "userspace-vxlan": 0, "kernel-vxlan": 0, "direct": 0}
	for i := range s.Peers {
		paths[s.Peers[i].Path]++
	}
	for path, n := range paths {
		gauge(pathPeers, float64(n), path)
	}
	for c, n := range s.Changes {
		counter(pathChanges, n, c.From, c.To, c.Reason)
	}
	for reason, n := range s.Drops {
		counter(drops, n, reason)
	}
	for _, t := range s.RoundTrips {
		buckets := make(map[float64]uint64, len(t.Buckets))
		for i, n := range t.Buckets {
			buckets[s.Bounds[i].Seconds()] = n
		}
		send(prometheus.NewConstHistogram(roundTrips, t.Count, t.Sum.Seconds(), buckets, t.Path))
	}
	gauge(peersLeft, float64(max(0, len(s.Peers)-MaxPeers)))
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
