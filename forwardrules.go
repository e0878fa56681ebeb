package overlayd

import (
	"slices"
	"time"

	"github.com/overlayd/overlayd/internal/kernel"
)

// forwardRules is what the conductor knows of the rules by which the host's firewall
// accepts the overlay's packets.
type forwardRules struct {
	asked  kernel.ForwardRules
	failed string // why they could not be looked at or set, as it was logged last
}

// openForwardRules removes what a node has left, where this one is to leave the firewall
// alone. Otherwise it stays until our own subnets are known.
func (n *Node) openForwardRules() error {
	if n.parts.kernel != nil && n.cfg.ForwardRules == "off" {
		if err := n.removeForwardRules(); err != nil {
			n.log.Warn("what a daemon before this one has left", "error", err)
		}
	}
	return nil
}

// removeForwardRules takes the rules out of the firewall.
func (n *Node) removeForwardRules() error {
	_, err := n.parts.kernel.RemoveForwardRules(n.cfg.Device)
	return err
}

// setForwardRules has the firewall accept the packets of our subnets. It comes before the
// kernel paths are looked at, which a firewall may close.
func (c *conductor) setForwardRules() {
	n := c.n
	if n.parts.kernel == nil || n.cfg.ForwardRules == "off" || len(c.held) == 0 {
		return
	}
	devices := append([]string{n.cfg.Device}, n.parts.fast.takenBy(time.Now())...)
	c.accepting.asked = kernel.ForwardRules{
		Device: n.cfg.Device, Devices: devices, Networks: n.cfg.Networks, Own: slices.Clone(c.held),
		World: n.cfg.IPMasq, Underlay: n.parts.underlay, Inside: n.parts.kernel.Inside(n.cfg.Device, c.held),
	}
	c.askForwardRules()
}

// askForwardRules asks the kernel for the rules, and reports whether it has changed any.
// It is no failure of the node that a firewall cannot be changed: what drops packets is
// told all the same.
func (c *conductor) askForwardRules() (changed bool) {
	n, a := c.n, &c.accepting
	done, err := n.parts.kernel.SetForwardRules(a.asked)
	failed := ""
	if err != nil {
		failed = err.Error()
	}
	if failed != a.failed && failed != "" {
		n.log.Warn("the firewall was not told to accept the overlay", "error", err)
	}
	a.failed = failed
	for _, what := range done {
		n.log.Info("the firewall", "done", what)
	}
	return len(done) > 0
}

// keepForwardRules looks whether the firewall has changed, and the rules have to.
func (c *conductor) keepForwardRules() {
	if len(c.accepting.asked.Own) > 0 && c.askForwardRules() {
		c.n.diagnose() // what it has warned of is over, or begins
	}
}
