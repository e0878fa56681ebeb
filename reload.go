package overlayd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/overlayd/overlayd/membership"
)

// Reload has the running node take up what a new Config says otherwise than the one it
// runs with: Join, FastPath, StaticPeers, AllowSource and Keys. It returns their names,
// as those of the flags ("--join"), none if nothing is different.
//
// cfg is checked as New does, and is to be whole. All of it is taken up or nothing: a
// faulty one, or one that differs in anything else, changes nothing. The error is then
// as of New, or wraps ErrNeedsRestart and names all that would need a restart. Logger,
// OnKeys and OnReload are not looked at.
//
// From FastPath "off" at the start there is no way to another: nothing was set up for
// it. Nor to one that needs a smaller MTU, nor from no key to one, nor back. A static
// peer must not have what this node has leased. Traffic goes on; where kernel
// paths are not allowed any more it goes to userspace first. OnKeys is not called: the
// new keys are where cfg has them from.
func (n *Node) Reload(cfg Config) (changed []string, err error) {
	if cfg.Name == "" && !n.cfg.named {
		cfg.Name = n.cfg.Name // the host's may have changed, and is not asked for
	}
	next, err := resolve(cfg)
	if err != nil {
		return nil, err
	}
	if !n.running() {
		return nil, ErrNotStarted
	}
	n.keys.Lock()
	defer n.keys.Unlock()
	if cold := n.needRestart(next, cfg.Queues); len(cold) > 0 {
		return nil, fmt.Errorf("%s %w", strings.Join(cold, ", "), ErrNeedsRestart)
	}
	changed = n.different(next)
	if len(changed) == 0 {
		return nil, nil
	}
	m := n.parts.member
	for _, own := range m.View().Held {
		if err := next.sparesLease(own); err != nil {
			return nil, err
		}
	}
	// The capabilities last: a peer that hears of them finds that it is so, and does not
	// shut its guard to what we still send.
	want := membership.Adjustment{Seeds: next.seeds, Reserved: next.unclaimed(), Caps: n.live().caps()}
	if err := m.Adjust(n.quit, want); err != nil {
		return nil, n.unlessStopped(fmt.Errorf("static peers: %w", err))
	}
	req := reloadRequest{next, make(chan struct{})}
	select {
	case n.reloads <- req:
	case <-n.quit.Done():
		return nil, ErrStopped
	}
	select {
	case <-req.done:
	case <-n.quit.Done():
		return nil, ErrStopped
	}
	want.Caps = next.caps()
	if err := m.Adjust(n.quit, want); err != nil {
		return nil, n.unlessStopped(err)
	}
	if err := n.installKeys(next.Keys); err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	return changed, nil
}

// reloadRequest is a new Config on its way to the conductor, which closes done when all
// goes by it.
type reloadRequest struct {
	cfg  *resolved
	done chan struct{}
}

// live is the Config whose Join, FastPath, StaticPeers and AllowSource count now. For
// everything else there is cfg. It is the conductor that replaces it.
func (n *Node) live() *resolved {
	if r := n.reloaded.Load(); r != nil {
		return r
	}
	return n.cfg
}

// takeUp is the conductor's.
func (n *Node) takeUp(next *resolved) {
	n.parts.fast.narrow(n.live(), next, time.Now())
	n.reloaded.Store(next)
}

func (n *Node) unlessStopped(err error) error {
	if n.quit.Err() != nil {
		return ErrStopped
	}
	return err
}

// reload is for whoever asks by the control socket.
func (n *Node) reload(ctx context.Context) ([]string, error) {
	if n.cfg.OnReload == nil {
		return nil, errors.New("the program that runs this node does not reload its settings: restart it")
	}
	return n.cfg.OnReload(ctx)
}
