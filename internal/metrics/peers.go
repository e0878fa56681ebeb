package metrics

import (
	"strconv"
	"strings"
)

// family is the metrics of one name, one for each peer or for each of its paths.
type family struct {
	name, kind, help string
	// of gives the value of a peer; ok is false if it has none. Nil: see byPath.
	of func(p *Peer) (v float64, ok bool)
	// byPath gives the value of a peer's path. Nil, as of: a constant 1 with what the
	// peer is.
	byPath func(c *Counts) uint64
}

// families are the metrics of peers. Names and labels are promised.
var families = []family{
	{name: "overlayd_peer_info", kind: "gauge", help: "A constant 1, with the state of a peer and the path that packets to it take."},
	{
		name: "overlayd_peer_last_proof_timestamp_seconds", kind: "gauge", help: "When a peer last answered a probe.",
		of: func(p *Peer) (float64, bool) { return float64(p.Proof.UnixMilli()) / 1000, !p.Proof.IsZero() },
	},
	{
		name: "overlayd_peer_mtu_bytes", kind: "gauge", help: "The largest packet that is sent to a peer.",
		of: func(p *Peer) (float64, bool) { return float64(p.MTU), p.MTU > 0 },
	},
	{
		name: "overlayd_peer_receive_bytes_total", kind: "counter", help: "Inner bytes from a peer, by the path that they took.",
		byPath: func(c *Counts) uint64 { return c.RxBytes },
	},
	{
		name: "overlayd_peer_receive_packets_total", kind: "counter", help: "Inner packets from a peer, by the path that they took.",
		byPath: func(c *Counts) uint64 { return c.RxPackets },
	},
	{
		name: "overlayd_peer_rtt_seconds", kind: "gauge", help: "Smoothed round trip of the probes to a peer.",
		of: func(p *Peer) (float64, bool) { return p.RTT.Seconds(), p.RTT > 0 },
	},
	{
		name: "overlayd_peer_transmit_bytes_total", kind: "counter", help: "Inner bytes to a peer, by the path that they took.",
		byPath: func(c *Counts) uint64 { return c.TxBytes },
	},
	{
		name: "overlayd_peer_transmit_packets_total", kind: "counter", help: "Inner packets to a peer, by the path that they took.",
		byPath: func(c *Counts) uint64 { return c.TxPackets },
	},
}

// appendPeers writes the series of peers in the text format that Prometheus reads
// (exposition format 0.0.4).
func appendPeers(b []byte, peers []Peer) []byte {
	peers = peers[:min(len(peers), MaxPeers)]
	if len(peers) == 0 {
		return b
	}
	who := make([]string, len(peers)) // the labels that all of a peer's series have
	for i := range peers {
		who[i] = `peer="` + escape(peers[i].Name) + `",peer_id="` + escape(peers[i].ID) + `"`
	}
	for i := range families {
		f := &families[i]
		b = append(b, "# HELP "+f.name+" "+f.help+"\n# TYPE "+f.name+" "+f.kind+"\n"...)
		for j := range peers {
			b = f.append(b, &peers[j], who[j])
		}
	}
	return b
}

// append writes the series of one peer.
func (f *family) append(b []byte, p *Peer, who string) []byte {
	switch {
	case f.byPath != nil:
		for k := range p.Paths {
			c := &p.Paths[k]
			b = append(b, f.name...)
			b = append(b, `{path="`...)
			b = append(b, c.Path...)
			b = append(b, `",`...)
			b = append(b, who...)
			b = append(b, "} "...)
			b = strconv.AppendUint(b, f.byPath(c), 10)
			b = append(b, '\n')
		}
	case f.of == nil:
		b = append(b, f.name...)
		b = append(b, `{path="`...)
		b = append(b, p.Path...)
		b = append(b, `",`...)
		b = append(b, who...)
		b = append(b, `,state="`...)
		b = append(b, p.State...)
		b = append(b, "\"} 1\n"...)
	default:
		if v, ok := f.of(p); ok {
			b = append(b, f.name...)
			b = append(b, '{')
			b = append(b, who...)
			b = append(b, "} "...)
			b = strconv.AppendFloat(b, v, 'g', -1, 64)
			b = append(b, '\n')
		}
	}
	return b
}

// escaped is how the text format has what would end a label.
var escaped = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// escape makes a label of a name that came out of gossip.
func escape(s string) string { return escaped.Replace(printable(s)) }

// printable is a text without what is not UTF-8, which would spoil the whole scrape.
func printable(s string) string { return strings.ToValidUTF8(s, "\ufffd") }
