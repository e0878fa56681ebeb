package overlayd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/overlayd/overlayd/internal/metrics"
	"github.com/overlayd/overlayd/internal/web"
)

// listen reads HTTPListen.
func (r *resolved) listen() error {
	text := r.HTTPListen
	if text == "" {
		if r.Pprof {
			return badConfig("profiles are wanted without an HTTP address: give one with --http-listen")
		}
		if r.HTTPPeers != 0 {
			return badConfig("peers are to be asked by HTTP without an HTTP address of this node: give one with --http-listen")
		}
		return nil
	}
	if !strings.Contains(text, ":") {
		text = ":" + text // a port alone
	}
	host, port, err := net.SplitHostPort(text)
	switch {
	case err != nil:
	case host == "" || host == "localhost":
		// Unlike elsewhere: to be seen by everybody has to be said.
		r.http, err = netip.ParseAddrPort("127.0.0.1:" + port)
	default:
		r.http, err = netip.ParseAddrPort(text)
	}
	if err != nil {
		return badConfig("HTTP address %q is not PORT, ADDR:PORT or [ADDR6]:PORT: 9570 means 127.0.0.1:9570", r.HTTPListen)
	}
	for _, n := range r.Networks {
		if n.Contains(r.http.Addr().Unmap()) {
			return badConfig("HTTP address %v lies inside the overlay network %v, of which this node has nothing yet when it starts: give another", r.http, n)
		}
	}
	return nil
}

// openDoor takes the HTTP address, early: that it is taken is to be told before
// anything is changed.
func (n *Node) openDoor() (err error) {
	if n.cfg.http.IsValid() {
		n.parts.door, err = web.Listen(n.cfg.http)
	}
	return err
}

// nobodysDoor says so if this host does not have an HTTP address, as after a DHCP server
// has given out another one.
func nobodysDoor(door netip.AddrPort) string {
	at := door.Addr().Unmap()
	if !at.IsValid() || at.IsUnspecified() || at.IsLoopback() {
		return ""
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == at.WithZone("") {
			return ""
		}
	}
	return fmt.Sprintf("the HTTP address %v is none of this host's: nothing answers there until it is, or choose another --http-listen", door)
}

// serveHTTP begins to answer.
func (n *Node) serveHTTP() error {
	if n.parts.door == nil {
		return nil
	}
	scrapes, err := metrics.Handler(n.metrics, n.log)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	n.parts.web = web.Serve(n.parts.door, web.Config{
		Status:  func() any { return n.Status() },
		Leases:  func() any { return n.Leases() },
		Healthy: n.healthy, Ready: n.carries,
		Metrics: scrapes, Pprof: n.cfg.Pprof, Peers: n.asking(), Logger: n.log,
	})
	n.log.Info("HTTP is answered", "address", n.parts.web.Addr().String())
	return nil
}

// stuckAfter is how long the conductor may be away from its events: it comes back at
// least each diagnoseEvery.
const stuckAfter = 3 * diagnoseEvery

// healthy tells whether the node runs: whether it has not ended, and whether those who
// know the cluster and the peers answer. What carries packets ends the node when it fails.
func (n *Node) healthy() error {
	if !n.running() {
		return ErrNotStarted
	}
	if err := n.over(); err != nil {
		return err
	}
	n.parts.prober.Answered(n.parts.member.ID()) // does not come back if the prober is stuck
	if at := time.Unix(0, n.beat.Load()); time.Since(at) > stuckAfter {
		return fmt.Errorf("changes of the cluster are not followed since %s", at.Format(time.TimeOnly))
	}
	return nil
}

// carries tells whether the node can carry packets, and all of its cluster's.
func (n *Node) carries() error {
	if err := n.healthy(); err != nil {
		return err
	}
	switch m := n.mesh.Load(); {
	case len(m.held) < len(n.cfg.Networks):
		return fmt.Errorf("%d of %d subnets are held", len(m.held), len(n.cfg.Networks))
	case !m.view.Synced:
		return errors.New("not merged with the cluster yet")
	}
	return nil
}
