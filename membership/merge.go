package membership

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// handle works off one item of the inbox. An error ends the Member.
func (m *Member) handle(item any, now time.Time) error {
	switch it := item.(type) {
	case nodeUp:
		m.nodeUp(it, now)
		return m.checkName()
	case nodeDown:
		m.nodeDown(it, now)
	case gossipMsg:
		rest := it.data
		for len(rest) > 0 {
			var r record
			var err error
			if r, rest, err = decodeRecord(rest); err != nil {
				m.count(err)
				continue
			}
			if err := m.mergeRecord(r, now, true); err != nil {
				return err
			}
		}
	case fullState:
		return m.mergeAll(it.data, now)
	case digestMsg:
		m.compareDigest(it, now)
	case dialDone:
		m.dialEnded(it, now)
	case syncDone:
		m.syncing = false
		if next := now.Add(dialEager); m.syncAfter.Before(next) {
			m.syncAfter = next
		}
		// What it brought was handled before this. Whoever has not synced, or has
		// other settings, or whose state was dropped, has told us nothing.
		m.leaser.syncEnded(it.err == nil && m.syncSeen)
		if it.err != nil {
			m.log.Debug("full exchange failed", "error", it.err)
		}
	case metaDone:
		m.metaBusy = false
	case conflict:
		m.meetTwin(life{boot: m.boot, gossip: it.addr})
	case twinAnswered:
		return m.twinAnswered(it, now)
	case evictRequest:
		m.beginEviction(it, now)
	case adjustRequest:
		it.reply <- m.adjust(it.Adjustment, now)
	}
	return nil
}

// checkName refuses to start beside a live node of the same name. A node that
// has synced, or resumes its lease, is past its start; of two that start together the one with the
// higher id gives way. A node of that name at our own address is what was here
// before us.
func (m *Member) checkName() error {
	if m.leaser.synced || len(m.resumed) > 0 {
		return nil
	}
	for id, p := range m.members {
		if p.state != StateAlive || p.meta.name != m.cfg.Name || p.gossip.Addr() == m.cfg.Gossip.Addr() {
			continue
		}
		if p.meta.holder || bytes.Compare(id[:], m.id[:]) < 0 {
			return fmt.Errorf("%w: %q is the name of the live node %v at %v: give this one another with --name", ErrNameTaken, m.cfg.Name, id, p.gossip.Addr())
		}
	}
	return nil
}

// mergeRecord takes in one record. spread: tell others if it was news.
func (m *Member) mergeRecord(r record, now time.Time, spread bool) error {
	switch r.kind {
	case kindSettings:
		return m.meetSettings(r.settings)
	case kindClock:
		m.heardClock(r.clock, now)
	case kindFarewell:
		if !m.saidGoodbye(r.farewell, now) {
			return nil
		}
		m.mu.Lock()
		m.queue.add(broadcastKey{kind: kindFarewell, farewell: r.farewell})
		m.mu.Unlock()
	case kindClaim:
		m.mu.Lock()
		changed, err := m.leaser.merge(r.claim, now)
		if changed && spread {
			m.queue.add(broadcastKey{kind: kindClaim, claim: r.claim.Key})
		}
		m.mu.Unlock()
		if err != nil {
			m.count(err)
		}
		if changed {
			m.dirty = true
		}
	}
	return nil
}

// meetSettings compares the cluster's settings with ours. A node that has not
// synced yet gives way; one that has keeps its own and says so.
func (m *Member) meetSettings(s Settings) error {
	if s.Equal(m.cfg.Settings) {
		return nil
	}
	if m.leaser.synced || len(m.resumed) > 0 {
		m.count(errRecordNetwork)
		if !m.otherSaid {
			m.otherSaid = true
			m.warn(AboutSettings, fmt.Sprintf("nodes of a cluster with other settings gossip with this one: they have %v; this node has %v", s, m.cfg.Settings))
		}
		return nil
	}
	return fmt.Errorf("%w: the cluster has %v; this node is configured with %v", ErrSettings, s, m.cfg.Settings)
}

// mergeAll takes in another node's full state.
func (m *Member) mergeAll(b []byte, now time.Time) error {
	// Others hear of the news too, except when a newcomer takes in everything.
	spread := m.leaser.synced
	complete := false // it came from a node that holds the settings
	var from NodeID
	for len(b) > 0 {
		r, rest, err := decodeRecord(b)
		b = rest
		if err != nil {
			m.count(err)
			if rest == nil { // the rest cannot be found
				complete = false
				break
			}
			continue
		}
		switch {
		case r.kind == kindSettings && r.settings.Equal(m.cfg.Settings):
			complete = true
		case r.kind == kindClock:
			from = r.clock.Node
		}
		if err := m.mergeRecord(r, now, spread); err != nil {
			return err
		}
	}
	if complete {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.holder = true
		m.syncSeen = m.syncSeen || m.syncing && from == m.syncFrom
		m.leaser.fullSync(now, true)
		m.dirty = true
	}
	return nil
}

// setDigest publishes the store's digests.
func (m *Member) setDigest() {
	old := m.digest.Load()
	if old == nil {
		old = new(digestView)
	}
	m.digest.Store(old.next(m.store.digest, time.Now()))
}

// compareDigest exchanges everything with a node when one of us has missed something.
func (m *Member) compareDigest(it digestMsg, now time.Time) {
	m.heardTime(it.from.Name, it.clock, now)
	shares := m.watch.missed(m.digest.Load(), &it.digest, now)
	if len(shares) == 0 || !m.leaser.synced || m.syncing || now.Before(m.syncAfter) {
		return
	}
	addr, ok := netip.AddrFromSlice(it.from.Addr)
	if !ok {
		return
	}
	m.watch.asked(shares, now)
	id, _, _ := parseGossipName(it.from.Name)
	m.syncWith(id, netip.AddrPortFrom(addr.Unmap(), it.from.Port))
	m.syncAfter = now.Add(digestPatience)
}

// encodeAll is the full state: the time, the settings if this node holds them,
// and all claims.
func (m *Member) encodeAll() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	b := make([]byte, 0, claimLen*(len(m.store.claims)+2))
	// The time first: whether records are void depends on it.
	b = appendClock(b, clockReading{m.id, now, now.Add(time.Duration(m.skew.Load()))})
	if m.holder {
		b = appendSettings(b, m.cfg.Settings)
	}
	for _, c := range m.store.claims {
		b = appendClaim(b, c)
	}
	return b
}

func (m *Member) nextBroadcasts(overhead, limit int) [][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.queue.take(max(int(m.numMembers.Load()), 1), overhead, limit, func(k broadcastKey) []byte {
		switch k.kind {
		case kindSettings:
			return appendSettings(nil, m.cfg.Settings)
		case kindFarewell:
			return appendFarewell(nil, k.farewell)
		}
		if c, ok := m.store.claims[k.claim]; ok {
			return appendClaim(nil, c)
		}
		return nil
	})
}

// metaDone comes back through the inbox when UpdateNode has ended.
type metaDone struct{}

func (m *Member) setMeta() (changed bool) {
	mt := meta{
		holder: m.holder, listed: m.listed, caps: m.cfg.Caps, ports: m.cfg.Ports,
		mtu: uint16(m.cfg.MTU), mac: VTEPMAC(m.id), addrs: m.cfg.Addrs, name: m.cfg.Name, vni: m.cfg.VNI,
	}
	b := mt.append(nil)
	if old := m.meta.Load(); old != nil && bytes.Equal(*old, b) {
		return false
	}
	m.meta.Store(&b)
	return true
}

// refreshMeta gossips our own entry when it has changed.
func (m *Member) refreshMeta() {
	if m.metaBusy || !m.setMeta() {
		return
	}
	m.metaBusy = true
	m.wg.Go(func() {
		if err := m.list.UpdateNode(time.Second); err != nil {
			m.log.Debug("own entry not confirmed", "error", err)
		}
		m.inbox.put(metaDone{})
	})
}

const (
	savePeersAfter = 5 * time.Second
	maxRemembered  = 1024
)

func (m *Member) peersChanged(now time.Time) {
	if m.savePeers.IsZero() {
		m.savePeers = now.Add(savePeersAfter)
	}
}

func (m *Member) rememberPeers(now time.Time) {
	if !m.savePeers.IsZero() && !now.Before(m.savePeers) {
		m.rememberPeersNow()
	}
}

// rememberPeersNow writes where peers were met, live ones first, once this
// node is part of the cluster.
func (m *Member) rememberPeersNow() {
	m.savePeers = time.Time{}
	if !m.holder {
		return
	}
	type entry struct {
		rememberedPeer
		alive bool
	}
	var all []entry
	for id, p := range m.members {
		if p.state != StateLeft {
			all = append(all, entry{rememberedPeer{id, p.meta.name, p.gossip}, p.state == StateAlive})
		}
	}
	// Of those that were not met in this life, and that nothing is left of, a
	// node that has been up for long knows no more.
	forget := m.leaser.synced && time.Since(m.begun) > m.cfg.Settings.LeaseTime
	for _, r := range m.remembered {
		if forget && len(m.store.byOwner[r.ID]) == 0 {
			continue
		}
		if _, ok := m.members[r.ID]; !ok && r.ID != m.id {
			all = append(all, entry{r, false})
		}
	}
	slices.SortFunc(all, func(a, b entry) int {
		if r := cmpBool(b.alive, a.alive); r != 0 {
			return r
		}
		return cmp.Compare(a.ID.String(), b.ID.String())
	})
	peers := make([]rememberedPeer, 0, len(all))
	for _, e := range all[:min(len(all), maxRemembered)] {
		peers = append(peers, e.rememberedPeer)
	}
	if slices.Equal(peers, m.remembered) {
		return
	}
	m.remembered = peers
	if err := m.disk.savePeers(peers); err != nil {
		m.log.Warn("the known peers could not be written", "error", err)
	}
}
