package membership

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-multierror"
)

// memberlist has no rejoin: it forgets a dead node after half a minute and
// calls nobody of its own accord. So the Member dials by itself: its seeds,
// the peers that it remembers, and members that died, for ever, so that a
// partition of any length heals.

const (
	dialsAtOnce  = 8
	dialEager    = time.Second     // between tries while not synced
	dialSoon     = 5 * time.Second // between tries in the first minutes
	dialSoonFor  = 5 * time.Minute
	dialLate     = time.Minute // the longest time between tries
	dialPatience = 3 * time.Second
)

// target is somebody to dial: a seed (host is set) or an address.
type target struct {
	host  string           // of a seed; resolved anew for each try
	addrs []netip.AddrPort // where the last try found it

	since    time.Time // when it was found missing
	next     time.Time
	inFlight bool
	lastErr  string
}

// dialDone comes back through the inbox.
type dialDone struct {
	key   string
	addrs []netip.AddrPort // as resolved, nil if that failed
	self  bool             // one of them is ours
	err   error
}

// addTargets makes a target of everybody who should be a live member and is not.
func (m *Member) addTargets(now time.Time) {
	wanted := make(map[string]bool, len(m.targets))
	add := func(key string, t target) {
		wanted[key] = true
		if _, ok := m.targets[key]; !ok {
			t.since, t.next = now, now
			m.targets[key] = &t
		}
	}
	for _, s := range m.cfg.Seeds {
		add("seed "+s, target{host: s})
	}
	for _, p := range m.remembered {
		// Whoever is there needs no call, once we are part of the cluster.
		if p.ID != m.id && !(m.leaser.synced && m.isAlive(p.ID)) {
			add("peer "+p.Gossip.String(), target{addrs: []netip.AddrPort{p.Gossip}})
		}
	}
	for _, p := range m.members {
		if p.state == StateDead && now.Sub(p.since) > 2*time.Second {
			add("peer "+p.gossip.String(), target{addrs: []netip.AddrPort{p.gossip}})
		}
	}
	for key, t := range m.targets {
		if !wanted[key] && !t.inFlight {
			delete(m.targets, key)
		}
	}
}

// dial starts what is due and returns when to call it again. It looks at all
// members, so it does so once a second and when a dial has ended.
func (m *Member) dial(now time.Time) (next time.Time) {
	if now.Before(m.nextDial) {
		return m.nextDial
	}
	m.addTargets(now)
	if m.aliveAt == nil {
		m.aliveAt = make(map[netip.AddrPort]bool, len(m.members))
		for _, p := range m.members {
			if p.state == StateAlive {
				m.aliveAt[p.gossip] = true
			}
		}
	}
	next = now.Add(dialEager)
	m.nextDial = next
	busy := 0
	for _, t := range m.targets {
		if t.inFlight {
			busy++
		}
	}
	for _, key := range m.dialOrder() {
		t := m.targets[key]
		if slices.ContainsFunc(t.addrs, func(a netip.AddrPort) bool { return m.aliveAt[a] }) && m.leaser.synced {
			// There it is. Should it go again, it is dialled with fresh zeal.
			t.since, t.next, t.lastErr = now, now.Add(dialSoon), ""
			continue
		}
		if t.inFlight || busy >= dialsAtOnce || now.Before(t.next) {
			continue
		}
		if len(t.addrs) == 1 && t.addrs[0] == m.cfg.Gossip {
			if t.host == "" {
				continue
			}
		}
		busy++
		t.inFlight = true
		m.goDial(key, t.host, slices.Clone(t.addrs))
	}
	return next
}

// dialOrder is the keys of the targets: seeds first, and then those that have
// been missing for the shortest time, so that many that are long gone do not keep
// one that is there waiting.
func (m *Member) dialOrder() []string {
	keys := slices.Collect(maps.Keys(m.targets))
	slices.SortFunc(keys, func(a, b string) int {
		s, t := m.targets[a], m.targets[b]
		return cmp.Or(cmpBool(t.host != "", s.host != ""), t.since.Compare(s.since), cmp.Compare(a, b))
	})
	return keys
}

// goDial resolves and joins in a goroutine of its own.
func (m *Member) goDial(key, host string, addrs []netip.AddrPort) {
	m.wg.Go(func() {
		d := dialDone{key: key}
		if host != "" {
			addrs, d.err = m.resolve(host)
		}
		d.addrs = addrs
		for _, a := range addrs {
			if a == m.cfg.Gossip {
				d.self = true
				continue
			}
			if d.err = m.join(a); d.err == nil {
				break
			}
		}
		m.inbox.put(d)
	})
}

// dialEnded works off the result of a dial.
func (m *Member) dialEnded(d dialDone, now time.Time) {
	t := m.targets[d.key]
	if t == nil {
		return
	}
	t.inFlight = false
	m.nextDial = time.Time{} // somebody may wait for its place
	if d.addrs != nil {
		t.addrs = d.addrs
	}
	if d.self && t.host != "" {
		m.listed = true
	}
	wait := dialSoon
	switch missing := now.Sub(t.since); {
	case !m.leaser.synced:
		wait = dialEager
	case missing > dialSoonFor:
		wait = min(dialSoon<<min(int((missing-dialSoonFor)/dialLate), 8), dialLate)
	}
	// Up to a third less, so that nodes that lost each other together do not
	// dial in step.
	t.next = now.Add(wait - time.Duration(rand.Int64N(int64(wait/3)+1)))
	if d.err != nil && withoutPort(d.err.Error()) != t.lastErr {
		t.lastErr = withoutPort(d.err.Error())
		m.log.Info("cannot join yet, trying on", "target", d.key, "error", t.lastErr)
		if why := explainJoin(d.err); why != "" && !m.leaser.synced && !m.joinSaid[why] {
			m.joinSaid[why] = true
			m.warn(fmt.Sprintf("cannot join at %s: %s", strings.TrimPrefix(strings.TrimPrefix(d.key, "seed "), "peer "), why))
		}
	}
}

// withoutPort takes our own port out of an error, which is another for each try.
func withoutPort(text string) string {
	if arrow := strings.Index(text, "->"); arrow >= 0 {
		if colon := strings.LastIndex(text[:arrow], ":"); colon >= 0 {
			return text[:colon] + text[arrow:]
		}
	}
	return text
}

// explainJoin tells what a person has to change so that a node may join, empty
// if the error does not say. memberlist gives its errors as texts only (net.go,
// readStream and handleConn). A node with another label hangs up without a word.
func explainJoin(err error) string {
	text := err.Error()
	switch {
	case strings.Contains(text, "remote state is encrypted and encryption is not configured"):
		return "that cluster has a key and this node has none: give it the cluster's with --key-file"
	case strings.Contains(text, "encryption is configured but remote state is not encrypted"):
		return "that node has no key and this one has: give both the same with --key-file"
	case strings.Contains(text, "no installed keys could decrypt"):
		return "that cluster has another key than this node: give it the cluster's with --key-file"
	case strings.HasSuffix(text, ": EOF"), strings.HasSuffix(text, "connection reset by peer"):
		return "the node there hung up without a word, as one of another cluster does: compare --cluster on both"
	}
	return ""
}

// resolve turns "host:port" into addresses, of the family that gossip runs on.
func (m *Member) resolve(seed string) ([]netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(seed); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}, nil
	}
	host, portText, err := net.SplitHostPort(seed)
	if err != nil {
		return nil, fmt.Errorf("seed %q: %w", seed, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("seed %q: the port is not between 1 and 65535", seed)
	}
	network := "ip4"
	if m.cfg.Gossip.Addr().Is6() {
		network = "ip6"
	}
	ctx, cancel := context.WithTimeout(m.ctx, dialPatience)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, network, host)
	if err != nil {
		return nil, fmt.Errorf("seed %q: %w", seed, err)
	}
	var out []netip.AddrPort
	for _, a := range addrs[:min(len(addrs), 16)] {
		out = append(out, netip.AddrPortFrom(a.Unmap(), uint16(port)))
	}
	return out, nil
}

// findSelf looks for our own address among seeds given as addresses, which
// needs no resolver and no waiting. A node without seeds is as good as listed.
func (m *Member) findSelf() {
	m.listed = len(m.cfg.Seeds) == 0
	for _, s := range m.cfg.Seeds {
		if ap, err := netip.ParseAddrPort(s); err == nil && netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()) == m.cfg.Gossip {
			m.listed = true
		}
	}
}

// startSync merges in full with a live node that holds the settings.
func (m *Member) startSync(now time.Time) {
	if m.syncing || now.Before(m.syncAfter) {
		return
	}
	type choice struct {
		id NodeID
		at netip.AddrPort
	}
	var choices []choice
	for id, p := range m.members {
		if p.state == StateAlive && p.meta.holder {
			choices = append(choices, choice{id, p.gossip})
		}
	}
	m.leaser.syncStarted()
	if len(choices) == 0 {
		// Nobody else holds the settings, so nobody else has claimed anything.
		m.mu.Lock()
		m.leaser.fullSync(now, false)
		m.leaser.syncEnded(true)
		m.mu.Unlock()
		m.inbox.wake()
		return
	}
	c := choices[rand.IntN(len(choices))]
	m.syncWith(c.id, c.at)
}

// syncDone comes back through the inbox, behind the merged state itself.
type syncDone struct{ err error }

func (m *Member) syncWith(id NodeID, a netip.AddrPort) {
	m.syncing, m.syncFrom, m.syncSeen = true, id, false
	m.wg.Go(func() {
		m.inbox.put(syncDone{m.join(a)})
	})
}

// join merges in full with the node at a, in both directions.
func (m *Member) join(a netip.AddrPort) error {
	_, err := m.list.Join([]string{a.String()})
	var several *multierror.Error
	if errors.As(err, &several) && len(several.Errors) == 1 { // whose text has several lines
		return several.Errors[0]
	}
	return err
}
