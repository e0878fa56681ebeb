package overlayd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/overlayd/overlayd/internal/control"
	"github.com/overlayd/overlayd/internal/forward"
	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/neighbor"
	"github.com/overlayd/overlayd/internal/probe"
	"github.com/overlayd/overlayd/internal/web"
	"github.com/overlayd/overlayd/membership"
	"github.com/overlayd/overlayd/tunnel"
)

// Node is one node of an overlay. Its methods may be called by any goroutine.
//
//	New --> Start --> (running) --> Stop or Leave, or it ends by itself --> Wait returns
//
// Stop works at any point of this, also before and during Start. A Node is used
// once: after Stop make a new one.
type Node struct {
	cfg *resolved
	log *slog.Logger

	ready  chan struct{} // closed once the node can carry packets
	ended  chan struct{} // closed when everything is torn down
	events eventHub

	// quit ends the node; cause is why, nil if it was asked to.
	quit   context.Context
	finish context.CancelCauseFunc

	mu       sync.Mutex
	phase    phase
	tearDown sync.Once
	release  atomic.Bool // Leave: give the lease back
	// What follows is read after ended.
	stopErr  error
	released bool // the lease was given back

	keys  sync.Mutex // held while keys are changed, and while a new Config is taken up
	parts parts
	// reloaded is the Config that was taken up last, nil if none was: see live.
	reloaded atomic.Pointer[resolved]
	reloads  chan reloadRequest   // to the conductor
	mesh     atomic.Pointer[mesh] // what status and the data path agree on
	notes    notes                // warnings about this host
	moved    pathChanges
	// queueDrops is what readQueue has read, as of the last time.
	queueDrops atomic.Uint64
	beat       atomic.Int64 // when the conductor was last seen at work, Unix nanoseconds
}

// phase is where in its life a Node is.
type phase uint8

const (
	phaseNew phase = iota
	phaseStarting
	phaseRunning
	phaseStopped
)

// parts are what Start puts together, in this order. Those that are nil were
// not needed or not reached.
type parts struct {
	lock      *control.Lock
	kernel    *kernel.Kernel
	underlay  string // interface name, empty if not known
	outer     underlayMTU
	endpoints []netip.Addr
	mtu       innerMTU
	member    *membership.Member
	conns     []*net.UDPConn
	sending   []*net.UDPConn // what the first queue sends by, if not by conns
	more      []forward.QueueConns
	device    tunnel.Device
	engine    *forward.Engine
	prober    *probe.Prober
	neighbors *neighbor.Resolver // of the vxlan encap
	fast      *fastPaths         // nil: no kernel paths are wanted
	// framings tells how peers are sent frames; the conductor's.
	framings atomic.Pointer[framings]
	// statics is what is known of the way to static peers.
	statics staticMTUs
	server  *control.Server
	door    net.Listener // of web, until it serves
	web     *web.Server  // nil: HTTP is not wanted

	// The goroutines of a running node: the conductor, which ends with quit,
	// and those that carry packets and probes, which end with halt, so that
	// traffic goes on while gossip says good-bye.
	conducting sync.WaitGroup
	carrying   sync.WaitGroup
	halt       context.CancelFunc

	// envWritten tells that subnet.env is ours; the conductor's until it ends.
	envWritten bool
}

// New checks cfg and returns a node that has not been started: no goroutine, no
// file, no socket. What is wrong with cfg is said in one line; values that can
// never work satisfy errors.Is(err, ErrConfig).
func New(cfg Config) (*Node, error) {
	r, err := resolve(cfg)
	if err != nil {
		return nil, err
	}
	n := &Node{
		cfg: r, log: r.log,
		ready: make(chan struct{}), ended: make(chan struct{}), reloads: make(chan reloadRequest),
	}
	n.quit, n.finish = context.WithCancelCause(context.Background())
	n.mesh.Store(&mesh{view: &membership.View{}})
	return n, nil
}

// errAsked is the cause of an end that somebody asked for.
var errAsked = errors.New("asked to stop")

// Start sets the data plane up and begins to gossip. It does not wait for a
// lease: see Ready. When it fails it has taken down again what it had set up,
// and says why in one line. ctx bounds Start itself, not the node's life.
func (n *Node) Start(ctx context.Context) error {
	n.mu.Lock()
	switch n.phase {
	case phaseNew:
		n.phase = phaseStarting
	case phaseStopped:
		n.mu.Unlock()
		return ErrStopped
	default:
		n.mu.Unlock()
		return ErrStarted
	}
	n.mu.Unlock()

	err := n.assemble(ctx)
	if err == nil {
		err = n.over()
	}
	if err != nil {
		n.finish(err)
		n.dismantle()
		return err
	}
	n.enter(phaseRunning)
	go n.guard()
	return nil
}

func (n *Node) enter(p phase) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.phase = p
}

// over tells why the node is to end, nil if it is not.
func (n *Node) over() error {
	cause := context.Cause(n.quit)
	if errors.Is(cause, errAsked) {
		return ErrStopped
	}
	return cause
}

// guard takes the node down when something ends it.
func (n *Node) guard() {
	<-n.quit.Done()
	n.dismantle()
}

// Ready is closed when the node holds its subnets and the data plane is set up
// for them, for the first time.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Wait returns when the node has stopped and everything is taken down: nil
// after Stop or Leave, else why it stopped by itself. On a node that was never
// started it waits for Stop.
func (n *Node) Wait() error {
	<-n.ended
	if s := n.parts.server; s != nil {
		// Whoever calls Wait may end the process next: let the client that asked
		// the node to leave have its answer.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.Drain(ctx)
	}
	if cause := context.Cause(n.quit); !errors.Is(cause, errAsked) {
		return cause
	}
	return nil
}

// Stop says good-bye to the peers, takes down all that the node has made, and
// keeps the lease for the next start. It returns when all is done, within two
// seconds, and may be called at any time and more than once; each call returns
// the same.
func (n *Node) Stop() error {
	n.finish(errAsked)
	n.mu.Lock()
	fresh := n.phase == phaseNew
	if fresh {
		n.phase = phaseStopped
	}
	n.mu.Unlock()
	if fresh {
		n.dismantle()
	}
	<-n.ended
	return n.stopErr
}

// Leave gives the node's subnets back, says good-bye and stops. Started again,
// the node looks for subnets as a new one does. It returns
// ErrNotStarted on a node that is not running, and ErrStopped when the node was
// stopping already and has kept its subnets. ctx does not interrupt it: it takes
// two seconds at most.
func (n *Node) Leave(ctx context.Context) error {
	if !n.running() {
		return ErrNotStarted
	}
	n.release.Store(true)
	err := n.Stop()
	if !n.released {
		err = errors.Join(fmt.Errorf("%w before it could give its subnets back", ErrStopped), err)
	}
	return err
}

// Events returns a channel of what happens from now on. It is closed when ctx
// ends and when the node has stopped. A reader that is slower than events come
// misses the oldest ones; Event.Missed tells how many.
func (n *Node) Events(ctx context.Context) <-chan Event { return n.events.subscribe(ctx) }
