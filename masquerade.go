package overlayd

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/membership"
)

// masquerade is what the conductor knows of the rules that hide containers behind the
// host's address.
type masquerade struct {
	stands  bool // as it was asked for last
	asked   kernel.Masquerade
	triedAt time.Time
	saidAt  time.Time // that somebody else has harmed it
}

// openMasquerade removes what a node has left that was to masquerade, where this one is
// not to. One that is lets it stand until its own subnets are known.
func (n *Node) openMasquerade() error {
	if n.parts.kernel != nil && !n.cfg.IPMasq {
		if err := n.removeMasquerade(); err != nil {
			n.log.Warn("what a daemon before this one has left", "error", err)
		}
	}
	return nil
}

// removeMasquerade takes the rules out of the kernel.
func (n *Node) removeMasquerade() error {
	_, err := n.parts.kernel.RemoveMasquerade(n.cfg.Device)
	return err
}

// setMasquerade has the rules stand for our subnets, and reports whether subnet.env has
// something else to say. A failure is noted, and tried again.
func (c *conductor) setMasquerade(view *membership.View) (changed bool) {
	n, m := c.n, &c.masq
	if !n.cfg.IPMasq || len(c.held) == 0 && !m.stands {
		return false // what a dead daemon left stays as it is until our subnets are known
	}
	asked := kernel.Masquerade{Device: n.cfg.Device, Own: slices.Clone(c.held), Networks: n.cfg.Networks}
	asked.Ports, asked.Peers = n.dataPorts(view)
	if m.stands && reflect.DeepEqual(asked, m.asked) {
		return false
	}
	m.asked = asked
	return c.askMasquerade(time.Now())
}

// askMasquerade asks the kernel for what is to stand. Without a subnet there is nobody
// to hide.
func (c *conductor) askMasquerade(now time.Time) (changed bool) {
	n, m := c.n, &c.masq
	stood := m.stands
	m.triedAt = now
	var err error
	if len(m.asked.Own) == 0 {
		err = n.removeMasquerade()
		m.stands = false
	} else {
		err = n.parts.kernel.SetMasquerade(m.asked)
		m.stands = err == nil
	}
	why := ""
	if err != nil {
		why = fmt.Sprintf("containers do not reach the world beyond the overlay by this host's address, as --ip-masq asks: %s",
			strings.TrimPrefix(err.Error(), "kernel: "))
	}
	if n.notes.setMasquerade(why) {
		n.events.publish(Event{Kind: EventWarning, Reason: why})
	}
	return m.stands != stood
}

// keepMasquerade puts the rules back when somebody else has taken or changed them, and
// tries again for those that could not be had. It reports whether the node goes on.
func (c *conductor) keepMasquerade(now time.Time) bool {
	n, m := c.n, &c.masq
	if len(m.asked.Own) == 0 {
		return true
	}
	if m.stands {
		stands, err := n.parts.kernel.CheckMasquerade()
		if stands {
			return true
		}
		if now.Sub(m.saidAt) >= time.Minute {
			m.saidAt = now
			what := "somebody has changed it"
			if err != nil {
				what = err.Error()
			}
			n.log.Warn("masquerading is set up again", "what", what)
		}
	} else if now.Sub(m.triedAt) < mendEvery {
		return true
	}
	if c.askMasquerade(now) {
		if err := c.writeEnv(); err != nil {
			n.finish(err)
			return false
		}
	}
	return true
}

// dataPorts are the UDP ports on which this node and its peers take data: those that it
// was told, and where a peer has others.
func (n *Node) dataPorts(view *membership.View) (ports []uint16, others []netip.AddrPort) {
	ports = []uint16{n.cfg.UDPPort, n.cfg.VXLANPort, n.cfg.KernelVXLANPort}
	add := func(a netip.Addr, port uint16) {
		if port != 0 && !slices.Contains(ports, port) {
			others = append(others, netip.AddrPortFrom(a, port))
		}
	}
	for _, p := range view.Peers {
		for _, a := range p.Addrs {
			add(a, p.Ports.UDP)
			add(a, p.Ports.VXLAN)
			add(a, p.Ports.KernelVXLAN)
		}
	}
	for _, p := range n.live().StaticPeers {
		add(p.Endpoint.Addr(), p.Endpoint.Port())
	}
	slices.SortFunc(others, netip.AddrPort.Compare)
	return ports, slices.Compact(others)
}
