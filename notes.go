package overlayd

import (
	"slices"
	"sync"

	"github.com/overlayd/overlayd/internal/kernel"
)

// notes are what is wrong with this host, outside of the node.
type notes struct {
	conflicts []string // found at start; not changed afterwards

	mu       sync.Mutex
	findings []string
}

// all returns everything that stands now, for the status.
func (w *notes) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append(slices.Clone(w.conflicts), w.findings...)
}

// diagnose looks this host over and tells what is new.
func (n *Node) diagnose() {
	if n.parts.kernel == nil {
		return
	}
	var texts []string
	for _, f := range n.parts.kernel.Diagnose(kernel.DiagnoseConfig{
		Device: n.cfg.Device, Underlay: n.parts.underlay, Networks: n.cfg.Networks,
		Own: n.parts.member.View().Held,
	}) {
		texts = append(texts, f.Text)
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
