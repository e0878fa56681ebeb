package overlayd

import (
	"maps"
	"slices"
	"sync"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/membership"
)

// notes are what is wrong with this host, outside of the node.
type notes struct {
	conflicts []string // found at start; not changed afterwards

	mu        sync.Mutex
	findings  []string
	gossip    []string // why this node is not part of its cluster, while it is not
	joined    bool
	lasting   map[membership.Subject]string // of gossip, too, but over only when it says so
	contested []string                      // subnets of static peers that nodes have leased
	refused   string                        // why there is no forwarding table of what gossip says
	repair    string                        // why our own addresses and routes cannot be put back, empty if they stand
	masq      string                        // why there is no masquerading, though it was asked for
}

// all returns everything that stands now, for the status.
func (w *notes) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.Concat(w.conflicts, w.findings, w.contested, w.gossip)
	for _, about := range slices.Sorted(maps.Keys(w.lasting)) {
		all = append(all, w.lasting[about])
	}
	for _, text := range []string{w.refused, w.repair, w.masq} {
		if text != "" {
			all = append(all, text)
		}
	}
	return all
}

// maxGossipNotes bounds what is kept of what gossip has to say.
const maxGossipNotes = 8

// setGossip takes note of a warning of gossip's; without a text, of its end.
func (w *notes) setGossip(about membership.Subject, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case about == membership.AboutJoining:
	case text == "":
		delete(w.lasting, about)
		return
	default:
		if w.lasting == nil {
			w.lasting = make(map[membership.Subject]string)
		}
		w.lasting[about] = text
		return
	}
	if !slices.Contains(w.gossip, text) && len(w.gossip) < maxGossipNotes {
		w.gossip = append(w.gossip, text)
	}
}

// setJoined takes note that this node is part of its cluster and has its subnets,
// or is not: what kept it from that is over.
func (w *notes) setJoined(joined bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if joined && !w.joined {
		w.gossip = nil
	}
	w.joined = joined
}

// setContested takes note of who claims what static peers have, and returns what is
// new.
func (w *notes) setContested(texts []string) (fresh []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range texts {
		if !slices.Contains(w.contested, t) {
			fresh = append(fresh, t)
		}
	}
	w.contested = texts
	return fresh
}

// setRefused takes note that the forwarding table stays as it was, or does not.
func (w *notes) setRefused(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refused = ""
	if err != nil {
		w.refused = "packets go on as they went before the last change of the cluster: " + err.Error()
	}
}

// setRepair takes note of how putting our own state back went.
func (w *notes) setRepair(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.repair = ""
	if err != nil {
		w.repair = "the overlay's addresses and routes on this host cannot be put back: " + err.Error()
	}
}

// setMasquerade takes note of why there is no masquerading, empty if there is no
// reason, and reports whether that is new.
func (w *notes) setMasquerade(why string) (fresh bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fresh = why != "" && why != w.masq
	w.masq = why
	return fresh
}

// diagnose looks this host over and tells what is new.
func (n *Node) diagnose() {
	var texts []string
	if k := n.parts.kernel; k != nil {
		for _, f := range k.Diagnose(kernel.DiagnoseConfig{
			Device: n.cfg.Device, Underlay: n.parts.underlay, Networks: n.cfg.Networks,
			Own: n.parts.member.View().Held, World: n.cfg.IPMasq,
		}) {
			texts = append(texts, f.Text)
		}
	}
	if text := nobodysDoor(n.cfg.http); text != "" {
		texts = append(texts, text)
	}
	n.notes.mu.Lock()
	old := n.notes.findings
	n.notes.findings = texts
	n.notes.mu.Unlock()
	for _, t := range texts {
		if !slices.Contains(old, t) {
			n.events.publish(Event{Kind: EventWarning, Reason: t})
		}
	}
}
