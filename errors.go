package overlayd

import (
	"errors"
	"fmt"

	"github.com/overlayd/overlayd/membership"
)

// Errors of a Node, to be compared with errors.Is.
var (
	// ErrConfig: a Config that can never work, whatever the state of this host.
	ErrConfig = errors.New("overlayd: bad configuration")
	// ErrStopped: the node was stopped; make a new one to start again.
	ErrStopped = errors.New("overlayd: the node was stopped")
	// ErrStarted: Start was called before.
	ErrStarted = errors.New("overlayd: the node was started before")
	// ErrNotStarted: the node is not running.
	ErrNotStarted = errors.New("overlayd: the node is not running")
	// ErrCloned: another live node has this one's identity, as a copy of its
	// machine would. This one has drawn a new identity, with which a new Node
	// starts.
	ErrCloned = membership.ErrCloned
	// ErrUnderlayChanged: the underlay interface has another address than the node was
	// started with. The node has ended without a word to its peers and has left its kernel
	// paths and routes in place; a new Node, with the same Config, goes on from there.
	ErrUnderlayChanged = errors.New("overlayd: the underlay address has changed")
	// ErrNeedsRestart: a Config differs from the running node's in settings that cannot
	// change while it runs.
	ErrNeedsRestart = errors.New("cannot change without a restart")
	// ErrEvict: a subnet cannot be taken from its owner.
	ErrEvict = membership.ErrEvict
	// ErrNoPeer: no peer has this name, id or address.
	ErrNoPeer = errors.New("no such peer")
	// ErrNoRoute: an address does not belong to the overlay.
	ErrNoRoute = errors.New("no route")
)

// configError is one line about a value that can never work.
type configError struct{ err error }

func (e configError) Error() string        { return e.err.Error() }
func (e configError) Unwrap() error        { return e.err }
func (e configError) Is(target error) bool { return target == ErrConfig }

func badConfig(format string, args ...any) error {
	return configError{fmt.Errorf(format, args...)}
}
