package membership

import (
	"net/netip"
	"slices"
	"time"
)

// simNode is one node, over all its lives.
type simNode struct {
	s      *sim
	i      int
	id     NodeID
	lone   bool // has no seeds; the others have everybody's address
	listed bool // finds itself in its seed list, or has none
	static []netip.Prefix
	ahead  time.Duration // of its clock

	disk simDisk

	// Of the current life.
	life      int
	up        bool
	paused    bool
	left      bool     // has released its subnets: it only gossips what is queued
	waiting   []func() // what arrived in a pause
	dieIn     int      // crash before the dieIn-th effect from now, 0: do not
	fatal     string
	store     *store
	leaser    *leaser
	elector   elector
	queue     *broadcastQueue
	holder    bool
	syncing   bool
	syncAfter time.Time // by its own clock, as the rest
	watch     digestWatch
	digest    *digestView // of store, as of the last ping
	peers     []simPeer
	ticks     int
	wakes     uint64 // the newest wake-up; older ones are void
	busy      int    // calls of work at the same instant
	busyAt    time.Time
	held      []netip.Prefix // by the events
	everHeld  bool
	forgot    bool     // its lease file was lost
	former    []NodeID // identities that were lost with its disk
	losses    []simLoss
}

// simDisk is what a node finds after a crash.
type simDisk struct {
	id     NodeID
	holder bool // the settings are there
	claims []Claim
	met    []bool // remembered peers
}

func (d simDisk) clone() simDisk {
	return simDisk{d.id, d.holder, slices.Clone(d.claims), slices.Clone(d.met)}
}

type simPeer struct {
	alive, holder bool
	clock         bool      // what its clock shows is known
	missed        time.Time // since when it does not answer
	dial          time.Time
}

type simLoss struct {
	prefix netip.Prefix
	by     Claim
	reason string
}

// add makes a node that is not started yet.
func (s *sim) add() *simNode {
	n := &simNode{s: s, i: len(s.nodes), listed: true}
	// Identities do not sort by index, so that the lowest starts at any time.
	n.id = testID(int(s.rng.Uint32()))
	n.disk.id = n.id
	s.nodes = append(s.nodes, n)
	return n
}

func (n *simNode) wall() time.Time { return n.s.now.Add(n.ahead) }

// start begins a life, from what is on disk.
func (n *simNode) start() {
	s := n.s
	if n.up {
		return
	}
	if n.life > 0 {
		s.faulty, s.healed = true, s.now
	}
	n.life++
	n.up, n.paused, n.left, n.waiting, n.dieIn, n.fatal = true, false, false, nil, 0, ""
	now := n.wall()
	if n.id != n.disk.id { // a backup of before the disk was lost
		n.former = append(n.former, n.id)
		n.id = n.disk.id
	}
	s.logf("node %d (%v) starts, life %d, with %d claims", n.i, n.id.String()[8:16], n.life, len(n.disk.claims))
	n.store, n.queue, n.holder = newStore(), newBroadcastQueue(gossipRetransmit), n.disk.holder
	n.syncing, n.syncAfter, n.watch, n.digest, n.held, n.everHeld = false, time.Time{}, digestWatch{}, new(digestView), nil, false
	n.peers = make([]simPeer, len(s.nodes))
	n.leaser = newLeaser(n.id, s.settings, n.static, n.store, simSpread, n.disk.clone().claims, now)
	n.leaser.spreading = func(k Key) bool { return n.queue.fresh(broadcastKey{kind: kindClaim, claim: k}) }
	n.leaser.live = func(id NodeID) bool {
		return slices.ContainsFunc(s.nodes, func(o *simNode) bool { return o.id == id && n.peers[o.i].alive })
	}
	n.listed = n.listed || n.lone
	met := slices.Contains(n.disk.met, true)
	n.elector = elector{id: n.id, wait: simElect, lone: n.lone && !met, resumes: n.lone && n.disk.holder, beside: n.lone && met, started: now}
	n.work()
	if got := len(n.leaser.held()); n.up && got != len(n.disk.claims) {
		s.fail("node %d restarts with %d claims and uses %d of them at once", n.i, len(n.disk.claims), got)
	}
	life := n.life
	s.after(time.Duration(s.rng.Int64N(int64(simTick))), func() { n.tick(life) })
}

// arrives runs fn for this life after d, later if the node is paused by then.
func (n *simNode) arrives(d time.Duration, fn func()) {
	life := n.life
	n.s.after(d, func() {
		switch {
		case !n.up || n.life != life:
		case n.paused:
			if len(n.waiting) < 64 { // of a socket's buffer
				n.waiting = append(n.waiting, func() {
					if n.up && n.life == life {
						fn()
					}
				})
			}
		default:
			fn()
		}
	})
}

// send is a datagram.
func (n *simNode) send(to *simNode, fn func()) {
	s := n.s
	copies := 1
	if s.rng.Float64() < s.dup {
		copies = 2
	}
	for range copies {
		if s.rng.Float64() >= s.loss && to.up && !s.isCut(n, to) {
			to.arrives(s.delay(), func() {
				if !s.isCut(n, to) {
					fn()
				}
			})
		}
	}
}

// tick is everything that a node does from time to time.
func (n *simNode) tick(life int) {
	if !n.up || n.life != life {
		return
	}
	if !n.paused {
		n.gossip()
		if n.ticks++; n.ticks%5 == 0 {
			n.detect()
			n.ping()
			n.dial()
		}
		if n.ticks%150 == 0 {
			if p := n.anyPeer(func(p simPeer) bool { return p.alive }); p != nil {
				n.exchange(p, nil)
			}
		}
		n.work()
	}
	n.s.after(simTick, func() { n.tick(life) })
}

// anyPeer draws a peer of a kind, nil if there is none.
func (n *simNode) anyPeer(ok func(simPeer) bool) *simNode {
	var choices []*simNode
	for j, p := range n.peers {
		if ok(p) {
			choices = append(choices, n.s.nodes[j])
		}
	}
	if len(choices) == 0 {
		return nil
	}
	return choices[n.s.rng.IntN(len(choices))]
}

func (n *simNode) gossip() {
	if len(n.queue.items) == 0 {
		return
	}
	var targets []*simNode
	for j, p := range n.peers {
		if p.alive {
			targets = append(targets, n.s.nodes[j])
		}
	}
	nodes := len(targets) + 1
	n.s.rng.Shuffle(len(targets), func(i, j int) { targets[i], targets[j] = targets[j], targets[i] })
	for _, to := range targets[:min(len(targets), simFanout)] {
		for _, b := range n.queue.take(nodes, 3, gossipPacket-50, n.encode) {
			n.send(to, func() { to.receive(b); to.work() })
		}
	}
}

func (n *simNode) encode(k broadcastKey) []byte {
	switch k.kind {
	case kindSettings:
		return appendSettings(nil, n.s.settings)
	case kindClaim:
		if c, ok := n.store.claims[k.claim]; ok {
			return appendClaim(nil, c)
		}
	}
	return nil
}

// receive takes in records as they are on the wire.
func (n *simNode) receive(b []byte) (complete bool) {
	if n.left {
		return false
	}
	spread := n.leaser.synced
	for len(b) > 0 {
		r, rest, err := decodeRecord(b)
		if err != nil {
			n.s.fail("node %d got what no node should send: %v: %x", n.i, err, b)
		}
		b = rest
		switch r.kind {
		case kindSettings:
			complete = true
			continue
		case kindClock:
			if !n.leaser.synced {
				n.setSkew(r.clock.Cluster.Sub(n.wall()))
			}
			continue
		}
		changed, err := n.leaser.merge(r.claim, n.wall())
		if err != nil {
			n.s.fail("node %d refuses a claim: %v: %+v", n.i, err, r.claim)
		}
		if changed {
			if spread {
				n.queue.add(broadcastKey{kind: kindClaim, claim: r.claim.Key})
			}
		}
	}
	return complete
}

// everything is the full state, in an order that depends on nothing else.
func (n *simNode) everything() []byte {
	b := appendClock(nil, clockReading{n.id, n.wall(), n.leaser.wall(n.wall())})
	if n.holder {
		b = appendSettings(b, n.s.settings)
	}
	for _, c := range n.store.owners() {
		b = appendClaim(b, c.Claim)
	}
	return b
}

// detect is the failure detector: who does not answer for some seconds is dead.
func (n *simNode) detect() {
	for j := range n.peers {
		p, o := &n.peers[j], n.s.nodes[j]
		switch {
		case !p.alive:
		case n.s.reaches(n, o):
			p.missed, p.holder = time.Time{}, o.holder
		case p.missed.IsZero():
			p.missed = n.s.now
		case n.s.now.Sub(p.missed) > 3*time.Second+time.Duration(n.s.rng.Int64N(int64(5*time.Second))):
			*p = simPeer{}
		}
	}
}

// digests is the view of n's records.
func (n *simNode) digests() *digestView {
	n.digest = n.digest.next(n.store.digest, n.wall())
	return n.digest
}

// ping asks a peer for its digest.
func (n *simNode) ping() {
	o := n.anyPeer(func(p simPeer) bool { return p.alive })
	if o == nil {
		return
	}
	n.send(o, func() {
		digest := readDigests(o.digests().append(nil, o.wall()))
		o.send(n, func() {
			now := n.wall()
			n.peers[o.i].clock = n.peers[o.i].alive
			shares := n.watch.missed(n.digests(), &digest, now)
			if len(shares) == 0 || !n.leaser.synced || n.syncing || now.Before(n.syncAfter) {
				return
			}
			n.watch.asked(shares, now)
			n.syncWith(o)
			n.syncAfter = now.Add(digestPatience)
		})
	})
}

// dial calls whoever is not known to be alive.
func (n *simNode) dial() {
	for j := range n.peers {
		p, o := &n.peers[j], n.s.nodes[j]
		met := j < len(n.disk.met) && n.disk.met[j]
		if j == n.i || p.alive || n.s.now.Before(p.dial) || n.lone && !met {
			continue
		}
		p.dial = n.s.now.Add(dialSoon)
		if !n.leaser.synced {
			p.dial = n.s.now.Add(dialEager)
		}
		n.exchange(o, nil)
	}
}

// exchange is memberlist's push and pull over TCP: both merge the other's full
// state, and know each other as alive.
func (n *simNode) exchange(o *simNode, done func(ok bool)) {
	s := n.s
	if done == nil {
		done = func(bool) {}
	}
	failed := func() { n.arrives(dialPatience, func() { done(false); n.work() }) }
	request := n.everything()
	if o.up && o.paused && !s.isCut(n, o) {
		// It waits in the other's socket, and is old when it is read.
		o.arrives(s.delay(), func() { o.meet(n); o.mergeAll(request); o.work() })
	}
	if !s.reaches(n, o) {
		failed()
		return
	}
	life := o.life
	s.after(s.delay(), func() {
		if o.life != life || !s.reaches(n, o) || n.paused {
			failed()
			return
		}
		reply := o.everything()
		o.meet(n)
		o.mergeAll(request)
		o.work()
		n.arrives(s.delay(), func() {
			if s.isCut(n, o) {
				done(false)
				n.work()
				return
			}
			n.meet(o)
			n.mergeAll(reply)
			done(true)
			n.work()
		})
	})
}

func (n *simNode) meet(o *simNode) {
	n.peers[o.i] = simPeer{alive: true, holder: o.holder, clock: true}
	if n.holder || o.holder {
		for len(n.disk.met) < len(n.s.nodes) {
			n.disk.met = append(n.disk.met, false)
		}
		n.disk.met[o.i] = true
	}
}

func (n *simNode) mergeAll(b []byte) {
	if n.receive(b) {
		n.holder = true
		n.leaser.fullSync(n.wall(), true)
	}
}

func (n *simNode) syncWith(o *simNode) {
	n.syncing = true
	n.exchange(o, func(ok bool) {
		n.syncing, n.syncAfter = false, n.wall()
		if !ok {
			n.syncAfter = n.wall().Add(dialEager)
		}
		n.leaser.syncEnded(ok && o.holder)
	})
}

// work is Member.work.
func (n *simNode) work() {
	s := n.s
	if !n.up || n.paused || n.left {
		return
	}
	if n.busyAt != s.now {
		n.busyAt, n.busy = s.now, 0
	}
	if n.busy++; n.busy > 1000 {
		s.fail("node %d runs in circles", n.i)
	}
	now := n.wall()
	n.compareClocks()
	n.elect(now)
	holderKnown := slices.ContainsFunc(n.peers, func(p simPeer) bool { return p.alive && p.holder })
	wantSync := holderKnown && !n.leaser.synced
	n.leaser.expire(now)
	n.leaser.others(slices.ContainsFunc(n.peers, func(p simPeer) bool { return p.alive }))
	had := n.leaser.held()
	todo, next := n.leaser.step(now)
	for _, e := range todo {
		wantSync = wantSync || e.kind == effectSync
		if e.kind == effectLost {
			n.checkLoss(e, had)
		}
	}
	n.effects(todo)
	if !n.up {
		return
	}
	if wantSync && !n.syncing && !now.Before(n.syncAfter) {
		n.leaser.syncStarted()
		if o := n.anyPeer(func(p simPeer) bool { return p.alive && p.holder }); o != nil {
			n.syncWith(o)
		} else {
			n.leaser.fullSync(now, false)
			n.leaser.syncEnded(true)
			next = now
		}
	}
	if !next.IsZero() {
		n.wakes++
		wake := n.wakes
		n.arrives(max(next.Sub(now), 0), func() {
			if wake == n.wakes {
				n.work()
			}
		})
	}
}

// compareClocks is Member.compareClocks.
func (n *simNode) compareClocks() {
	if !n.leaser.synced {
		return
	}
	alive := 1
	var ahead []time.Duration
	for j, p := range n.peers {
		if p.alive {
			alive++
			if p.clock {
				ahead = append(ahead, n.s.nodes[j].ahead-n.ahead)
			}
		}
	}
	if skew, known := clusterSkew(ahead, alive); known {
		n.setSkew(skew)
	}
}

func (n *simNode) setSkew(d time.Duration) {
	if d.Abs() <= clockTolerance {
		d = 0
	}
	n.leaser.setSkew(d, n.wall())
}

func (n *simNode) elect(now time.Time) {
	if n.leaser.synced {
		return
	}
	var others []candidate
	for j, p := range n.peers {
		if o := n.s.nodes[j]; p.alive {
			others = append(others, candidate{o.id, p.holder, o.listed})
		}
	}
	if first, _ := n.elector.decide(now, n.listed, others); !first {
		return
	}
	n.s.logf("node %d acts as the first", n.i)
	for _, o := range n.s.nodes {
		if o != n && o.up && o.holder && o.leaser.synced {
			if !n.s.faulty {
				n.s.fail("node %d begins a second cluster beside node %d's", n.i, o.i)
			}
			n.s.healed = n.s.now
		}
	}
	n.holder = true
	n.queue.add(broadcastKey{kind: kindSettings})
	n.leaser.fullSync(now, false)
}

// effects carries out what the leaser wants.
func (n *simNode) effects(todo []effect) {
	s := n.s
	for _, e := range todo {
		if n.dieIn > 0 {
			if n.dieIn--; n.dieIn == 0 {
				s.logf("node %d crashes before effect %d on %v", n.i, e.kind, e.prefix)
				n.end()
				return
			}
		}
		switch e.kind {
		case effectPublish:
			n.queue.add(broadcastKey{kind: kindClaim, claim: e.key})
		case effectPersist:
			n.disk.holder, n.disk.claims = true, n.leaser.held()
		case effectHeld:
			n.gets(e)
		case effectLost:
			s.logf("node %d loses %v: %s", n.i, e.prefix, e.reason)
			n.held = slices.DeleteFunc(n.held, func(p netip.Prefix) bool { return p == e.prefix })
		case effectEvicted:
			s.logf("node %d has evicted %v: %q", n.i, e.prefix, e.reason)
			if e.reason == "" {
				n.checkEviction(e.prefix)
			}
		case effectFull:
			s.logf("node %d: %s", n.i, e.reason)
		case effectFatal:
			s.logf("node %d ends: %s", n.i, e.reason)
			n.fatal = e.reason
			n.checkFatal(e)
			n.up, n.held = false, nil
			return
		}
	}
}
