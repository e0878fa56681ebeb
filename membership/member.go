package membership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// Member takes part in a cluster: it gossips, holds this node's leases and
// gives out Views. All its decisions are made by one goroutine; the protocol
// itself lives in the leaser and the elector, which know neither sockets nor
// clocks.
type Member struct {
	cfg  Config
	log  *slog.Logger
	disk *disk
	id   NodeID
	boot uint64

	resumed    []Claim // held in the last run
	holder     bool    // has the cluster's settings: from disk, a merge, or as first node
	remembered []rememberedPeer

	view    atomic.Pointer[View]
	changed chan struct{}
	meta    atomic.Pointer[[]byte]
	digest  atomic.Pointer[digestView]
	skew    atomic.Int64 // of the cluster's time, nanoseconds
	refused refusals
	inbox   *inbox
	// numMembers is how many nodes are alive, this one among them.
	numMembers atomic.Int32

	// mu guards what memberlist's goroutines read: the store and the queue.
	// The Member's goroutine takes it around each piece of work, and never
	// calls memberlist under it.
	mu    sync.Mutex
	store *store
	queue *broadcastQueue

	// The rest belongs to the Member's goroutine.
	leaser     *leaser
	elector    elector
	members    map[NodeID]*member
	targets    map[targetKey]*target
	listed     bool
	syncing    bool
	syncAfter  time.Time
	watch      digestWatch
	dirty      bool                    // the view must be made anew
	changes    map[NodeID]bool         // members that have changed since the last view
	peers      []*Peer                 // of the last view; never changed in place
	ahead      []time.Duration         // memory of compareClocks
	nextSkew   time.Time               // when the clocks are compared again
	skewSaid   bool                    // a wrong clock was found and said so
	diskSaid   bool                    // a lease was not written and said so
	aliveAt    map[netip.AddrPort]bool // where live members are, nil if it has changed
	nextDial   time.Time               // when targets are looked over again
	nextForget time.Time               // when members are looked over again
	silent     bool                    // ends without a good-bye
	vanish     atomic.Bool             // the same, since Vanish was called
	twins      map[twin]*twinTest      // other lives of ours that gossip takes for alive
	syncFrom   NodeID                  // who was asked for everything last
	syncSeen   bool                    // a state of it with the settings has come since
	names      nameSet
	begun      time.Time
	evictions  map[netip.Prefix]chan error
	savePeers  time.Time // when remembered peers are written next, zero if unchanged
	metaBusy   bool      // an UpdateNode is under way
	waitSaid   bool
	otherSaid  bool            // another cluster was met and said so
	joinSaid   map[string]bool // why joining fails, as far as it was said

	list    *memberlist.Memberlist
	keyring *memberlist.Keyring // nil without keys; not changed after Start
	ctx     context.Context     // ends dials and lookups
	cancel  context.CancelFunc
	stop    chan stopRequest
	done    chan struct{} // closed when the Member's goroutine has ended
	wg      sync.WaitGroup
	started bool
	stopped sync.Once
	err     error // why it ended by itself; read after done
}

// member is another node as gossip knows it, at its highest boot.
type member struct {
	life
	state State
	since time.Time
	down  bool // memberlist has given this boot up
	// earlier are lower boots that gossip takes for alive: mostly the node's own
	// past, which is soon found dead.
	earlier []life
	// clock is what its wall clock showed when ours was clockAt, zero if that is
	// not known.
	clock, clockAt time.Time
}

// life is one boot of a node.
type life struct {
	boot   uint64
	meta   meta
	gossip netip.AddrPort
}

// maxMembers bounds the nodes kept, dead ones among them.
const maxMembers = 1 << 16

type stopRequest struct {
	release bool
	reply   chan struct{}
}

// New opens the state directory and prepares a Member. It starts no goroutine
// and no network traffic. Stop must be called in the end, also without Start.
func New(cfg Config) (*Member, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Spread == 0 {
		cfg.Spread = defaultSpread
	}
	if cfg.Elect == 0 {
		cfg.Elect = defaultElect
	}
	if cfg.OnEvent == nil {
		cfg.OnEvent = func(Event) {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Member{
		cfg: cfg, log: cfg.Logger,
		changed: make(chan struct{}, 1), inbox: newInbox(),
		store: newStore(), queue: newBroadcastQueue(gossipRetransmit),
		members: make(map[NodeID]*member), targets: make(map[targetKey]*target),
		changes: make(map[NodeID]bool), joinSaid: make(map[string]bool), twins: make(map[twin]*twinTest), evictions: make(map[netip.Prefix]chan error),
		stop: make(chan stopRequest), done: make(chan struct{}),
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	var err error
	if m.disk, err = openDisk(cfg.StateDir); err != nil {
		return nil, err
	}
	if err := m.load(time.Now()); err != nil {
		m.disk.close()
		return nil, err
	}
	return m, nil
}

// load reads what an earlier run left.
func (m *Member) load(now time.Time) error {
	n, err := m.disk.identity(now)
	if err != nil {
		return err
	}
	m.id, m.boot = n.ID, n.Boot
	s, claims, found, aside, err := m.disk.lease(m.id)
	if err != nil {
		return err
	}
	if aside != "" {
		m.log.Warn("the lease file could not be read and was moved aside; the other nodes are asked for the lease", "file", aside)
	}
	switch {
	case found && s.Equal(m.cfg.Settings):
		m.resumed, m.holder = claims, true
	case found:
		// Another cluster's lease means nothing here, and neither do its peers.
		// Nothing is overwritten before this node holds a new lease.
		m.log.Warn("the settings have changed since the last run: its lease is not used", "then", s.String(), "now", m.cfg.Settings.String())
		return nil
	}
	peers, aside, err := m.disk.peers()
	if err != nil {
		return err
	}
	if aside != "" {
		m.log.Warn("the remembered peers could not be read and were moved aside", "file", aside)
	}
	m.remembered = peers
	return nil
}

// ID is the node's identity.
func (m *Member) ID() NodeID { return m.id }

// Boot is the number of this run: higher than that of every run before.
func (m *Member) Boot() uint64 { return m.boot }

// Resumed are the subnets held in the last run, which Start uses at once.
func (m *Member) Resumed() []netip.Prefix {
	var out []netip.Prefix
	for _, c := range m.resumed {
		out = append(out, c.Prefix)
	}
	return out
}

// View returns the current picture of the cluster; it is never nil after Start.
func (m *Member) View() *View { return m.view.Load() }

// Changed gets a value when there is a new View. Several changes may arrive as
// one. It has one receiver.
func (m *Member) Changed() <-chan struct{} { return m.changed }

// Done is closed when the Member has ended, by Stop or by itself; Err says why.
func (m *Member) Done() <-chan struct{} { return m.done }

// Err returns why the Member ended by itself, nil if it has not. It may be
// called once Done is closed.
func (m *Member) Err() error { return m.err }

// Start opens the sockets and begins to gossip. It returns without waiting for
// anybody: leases come as events.
func (m *Member) Start() error {
	if m.started {
		return errors.New("membership: started twice")
	}
	now := time.Now()
	m.leaser = newLeaser(m.id, m.cfg.Settings, m.cfg.Static, m.store, m.cfg.Spread, m.resumed, now)
	m.elector = m.newElector(now)
	m.begun = now
	m.leaser.live, m.leaser.reserved = m.isAlive, m.cfg.Reserved
	m.leaser.spreading = func(k Key) bool { return m.queue.fresh(broadcastKey{kind: kindClaim, claim: k}) }
	m.leaser.twins = func() bool { return len(m.twins) > 0 }
	m.findSelf()
	m.setMeta()
	m.setDigest()
	m.makeView()
	list, err := m.createMemberlist(m.ctx)
	if err != nil {
		return err
	}
	m.list = list
	m.started = true
	go m.run()
	return nil
}

// Leave gives this node's subnets back, says good-bye and stops.
func (m *Member) Leave(ctx context.Context) error { return m.end(ctx, true) }

// Stop says good-bye, keeps the lease for the next start, and stops. It may be
// called at any time and more than once. ctx bounds the good-bye.
func (m *Member) Stop(ctx context.Context) error { return m.end(ctx, false) }

// Vanish is Stop without a good-bye: to the others this node looks as if it had died,
// so that they go on with what works without it.
func (m *Member) Vanish(ctx context.Context) error {
	m.vanish.Store(true)
	return m.end(ctx, false)
}

func (m *Member) end(ctx context.Context, release bool) (err error) {
	m.stopped.Do(func() {
		if m.started {
			req := stopRequest{release: release, reply: make(chan struct{})}
			select {
			case m.stop <- req:
				<-req.reply
			case <-m.done: // it ended by itself
			}
			m.farewell(ctx)
		}
		m.cancel()
		if m.list != nil {
			err = m.list.Shutdown()
		}
		m.wg.Wait()
		err = errors.Join(err, m.disk.close())
	})
	return err
}

// farewell lets the good-bye spread: memberlist's own, and the records queued
// behind it, a few gossip rounds each.
func (m *Member) farewell(ctx context.Context) {
	if m.silent || m.vanish.Load() || m.list.NumMembers() < 2 {
		return
	}
	patience := time.Second
	if deadline, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(deadline)/2)
	}
	if patience <= 0 {
		return
	}
	if err := m.list.Leave(patience); err != nil {
		m.log.Debug("good-bye was not heard", "error", err)
		return
	}
	select {
	case <-time.After(min(3*gossipInterval, patience)):
	case <-ctx.Done():
	}
}

// run is the Member's goroutine.
func (m *Member) run() {
	defer close(m.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-m.inbox.signal:
		case <-timer.C:
		case req := <-m.stop:
			m.beginEnd(req.release)
			close(req.reply)
			return
		}
		next, err := m.work(time.Now())
		if err != nil {
			m.err = err
			m.beginEnd(false)
			return
		}
		timer.Reset(time.Until(next))
	}
}

// work handles what has arrived and what is due.
func (m *Member) work(now time.Time) (next time.Time, err error) {
	for _, item := range m.inbox.take() {
		if err := m.handle(item, now); err != nil {
			return next, err
		}
	}
	next = m.dial(now)
	m.compareClocks(now)
	next = m.testTwins(now, next)
	m.forget(now)
	if err := m.elect(now); err != nil {
		return next, err
	}
	wantSync := m.holderKnown() && !m.leaser.synced

	m.mu.Lock()
	if m.leaser.expire(now) {
		m.dirty = true
	}
	m.leaser.others(m.anyAlive())
	todo, at := m.leaser.step(now)
	m.setDigest()
	m.mu.Unlock()
	if !at.IsZero() && at.Before(next) {
		next = at
	}
	for _, e := range todo {
		if e.kind == effectSync {
			wantSync = true
		}
		if err := m.do(e); err != nil {
			return next, err
		}
	}
	if wantSync {
		m.startSync(now)
	}
	m.refreshMeta()
	m.rememberPeers(now)
	if m.dirty {
		m.makeView()
	}
	return next, nil
}

// do carries one effect of the leaser out.
func (m *Member) do(e effect) error {
	switch e.kind {
	case effectPublish:
		m.mu.Lock()
		m.queue.add(broadcastKey{kind: kindClaim, claim: e.key})
		m.mu.Unlock()
		m.dirty = true
	case effectPersist:
		if err := m.disk.saveLease(m.id, m.cfg.Settings, m.leaser.held()); err != nil {
			m.diskSaid = true
			m.warn(AboutDisk, "the lease could not be written: it will be lost at a restart: "+err.Error())
		} else if m.diskSaid {
			m.diskSaid = false
			m.warn(AboutDisk, "")
		}
	case effectHeld:
		m.dirty = true
		m.cfg.OnEvent(Event{Kind: LeaseHeld, Prefix: e.prefix, Reason: e.reason})
	case effectLost:
		m.dirty = true
		m.cfg.OnEvent(Event{Kind: LeaseLost, Prefix: e.prefix, Reason: e.reason})
	case effectFull:
		m.warn(AboutJoining, e.reason)
	case effectEvicted:
		m.evictionEnded(e)
	case effectFatal:
		return fmt.Errorf("%w: %s", ErrSubnetTaken, e.reason)
	}
	return nil
}

func (m *Member) warn(about Subject, reason string) {
	m.cfg.OnEvent(Event{Kind: Warning, Reason: reason, About: about})
}

func (m *Member) newElector(now time.Time) elector {
	seeded, remembers := len(m.cfg.Seeds) > 0, len(m.remembered) > 0
	return elector{
		id: m.id, wait: m.cfg.Elect, started: now,
		lone: !seeded && !remembers, resumes: !seeded && m.holder, beside: !seeded && remembers,
	}
}

// elect becomes the first node if it is to be.
func (m *Member) elect(now time.Time) error {
	if m.leaser.synced {
		return nil
	}
	var others []candidate
	for id, p := range m.members {
		if p.state == StateAlive {
			others = append(others, candidate{id, p.meta.holder, p.meta.listed})
		}
	}
	first, _ := m.elector.decide(now, m.listed, others)
	if !first {
		if !m.waitSaid && now.Sub(m.elector.started) > 2*m.cfg.Elect {
			m.waitSaid = true
			m.warn(AboutJoining, "no node that knows this cluster's leases has answered yet: trying on; without one, only a node without --join, or one that finds itself in its list, begins a new cluster")
		}
		return nil
	}
	if len(m.cfg.Seeds) > 0 || len(others) > 0 {
		m.log.Info("no node holds the cluster's settings: acting as the first one")
	}
	return m.becomeHolder(now)
}

// becomeHolder takes note that this node has the cluster's settings and has
// merged in full.
func (m *Member) becomeHolder(now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.holder {
		m.holder = true
		m.queue.add(broadcastKey{kind: kindSettings})
	}
	m.leaser.fullSync(now, false)
	m.dirty = true
	return nil
}

func (m *Member) holderKnown() bool {
	for _, p := range m.members {
		if p.state == StateAlive && p.meta.holder {
			return true
		}
	}
	return false
}

func (m *Member) isAlive(id NodeID) bool {
	p := m.members[id]
	return p != nil && p.state == StateAlive
}

func (m *Member) anyAlive() bool {
	for _, p := range m.members {
		if p.state == StateAlive {
			return true
		}
	}
	return false
}

// beginEnd prepares the good-bye: the last records to spread.
func (m *Member) beginEnd(release bool) {
	now := time.Now()
	var todo []effect
	m.mu.Lock()
	if release {
		todo = m.leaser.leave(now)
	}
	if !m.silent && !m.vanish.Load() {
		m.queue.add(broadcastKey{kind: kindFarewell, farewell: farewell{m.id, m.boot}})
	}
	m.mu.Unlock()
	for _, e := range todo {
		m.do(e)
	}
	if release {
		if err := m.disk.removeLease(); err != nil {
			m.log.Warn("the released lease could not be removed from disk", "error", err)
		}
	}
	for _, reply := range m.evictions {
		reply <- errors.New("this node stops")
	}
	m.rememberPeersNow()
	m.makeView()
}
