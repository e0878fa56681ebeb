package membership

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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

// targetKey is what a target is dialled for: a seed, resolved anew for each try, or
// a peer's address.
type targetKey struct {
	seed string
	peer netip.AddrPort
}

func (k targetKey) String() string {
	if k.seed != "" {
		return "seed " + k.seed
	}
	return "peer " + k.peer.String()
}

// target is somebody to dial.
type target struct {
	key   targetKey
	addrs []netip.AddrPort // where the last try found it

	since    time.Time // when it was found missing
	next     time.Time
	inFlight bool
	lastErr  string
}

// dialDone comes back through the inbox.
type dialDone struct {
	key   targetKey
	addrs []netip.AddrPort // as resolved, nil if that failed
	self  bool             // one of them is ours
	err   error
}

// addTargets makes a target of everybody who should be a live member and is not.
func (m *Member) addTargets(now time.Time) {
	wanted := make(map[targetKey]bool, len(m.targets))
	add := func(key targetKey) {
		wanted[key] = true
		if _, ok := m.targets[key]; !ok {
			t := &target{key: key, since: now, next: now}
			if key.seed == "" {
				t.addrs = []netip.AddrPort{key.peer}
			}
			m.targets[key] = t
		}
	}
	for _, s := range m.cfg.Seeds {
		add(targetKey{seed: s})
	}
	for _, p := range m.remembered {
		// Whoever is there needs no call, once we are part of the cluster.
		if p.ID != m.id && !(m.leaser.synced && m.isAlive(p.ID)) {
			add(targetKey{peer: p.Gossip})
		}
	}
	for _, p := range m.members {
		if p.state == StateDead && now.Sub(p.since) > 2*time.Second {
			add(targetKey{peer: p.gossip})
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
	var due []*target
	for _, t := range m.targets {
		switch {
		case m.leaser.synced && slices.ContainsFunc(t.addrs, func(a netip.AddrPort) bool { return m.aliveAt[a] }):
			// There it is. Should it go again, it is dialled with fresh zeal.
			t.since, t.next, t.lastErr = now, now.Add(dialSoon), ""
		case !t.inFlight && !now.Before(t.next) && t.key.peer != m.cfg.Gossip:
			due = append(due, t)
		}
		if t.inFlight {
			busy++
		}
	}
	slices.SortFunc(due, (*target).before)
	for _, t := range due[:min(len(due), max(dialsAtOnce-busy, 0))] {
		t.inFlight = true
		m.goDial(t.key, slices.Clone(t.addrs))
	}
	return next
}

// before orders targets: seeds first, and then those that have been missing for the
// shortest time, so that many that are long gone do not keep one that is there
// waiting.
func (t *target) before(u *target) int {
	return cmp.Or(cmpBool(u.key.seed != "", t.key.seed != ""), u.since.Compare(t.since),
		cmp.Compare(t.key.seed, u.key.seed), t.key.peer.Compare(u.key.peer))
}

// goDial resolves and joins in a goroutine of its own.
func (m *Member) goDial(key targetKey, addrs []netip.AddrPort) {
	m.wg.Go(func() {
		d := dialDone{key: key}
		if key.seed != "" {
			addrs, d.err = m.resolve(key.seed)
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
	if d.self && t.key.seed != "" {
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
		m.log.Info("cannot join yet, trying on", "target", d.key.String(), "error", t.lastErr)
		if why := explainJoin(d.err); why != "" && !m.leaser.synced && !m.joinSaid[why] {
			m.joinSaid[why] = true
			_, at, _ := strings.Cut(d.key.String(), " ")
			m.warn(AboutJoining, fmt.Sprintf("cannot join at %s: %s", at, why))
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
