package probe

import (
	"errors"
	"sync/atomic"

	"github.com/overlayd/overlayd/encap"
)

// reason is why a control frame was dropped.
type reason int

const (
	dropMalformed reason = iota
	dropVersion
	dropUnknownPeer
	dropReceiver
	dropStaleBoot
	dropPath
	dropNotReady
	dropQueueFull
	dropAuth
	dropUnexpected
	dropRateLimited
	dropSendFailed
	reasons
)

// reasonNames are the names in the status output.
var reasonNames = [reasons]string{
	dropMalformed:   "control_malformed",         // not a frame, or an oversized one
	dropVersion:     "control_version",           // of a format version that we do not know
	dropUnknownPeer: "control_unknown_peer",      // not from the address of a known peer
	dropReceiver:    "control_other_receiver",    // addressed to another node
	dropStaleBoot:   "control_stale_boot",        // from an earlier boot of the peer
	dropPath:        "control_path",              // of another path than it arrived by
	dropNotReady:    "control_not_ready",         // by a kernel path that this node takes no data from, or before it knows which those are
	dropQueueFull:   "control_queue_full",        // faster than we work
	dropAuth:        "control_auth",              // tag wrong, missing, or without a key here
	dropUnexpected:  "control_unexpected_answer", // late, repeated or forged
	dropRateLimited: "control_rate_limited",      // more probes than one peer gets answered
	dropSendFailed:  "control_send_failed",       // ours, not sent
}

// counters counts drops. The zero value is ready; it is safe for concurrent
// use.
type counters [reasons]atomic.Uint64

func (c *counters) add(r reason) { c[r].Add(1) }

// addError counts a frame that was not taken because of err.
func (c *counters) addError(err error) {
	switch {
	case errors.Is(err, ErrUnknownPeer):
		c.add(dropUnknownPeer)
	case errors.Is(err, ErrReceiver):
		c.add(dropReceiver)
	case errors.Is(err, ErrStaleBoot):
		c.add(dropStaleBoot)
	case errors.Is(err, ErrPath):
		c.add(dropPath)
	case errors.Is(err, ErrNotReady):
		c.add(dropNotReady)
	case errors.Is(err, ErrUnexpected):
		c.add(dropUnexpected)
	case errors.Is(err, ErrRateLimited):
		c.add(dropRateLimited)
	case errors.Is(err, encap.ErrUntagged), errors.Is(err, encap.ErrTagged), errors.Is(err, encap.ErrTag):
		c.add(dropAuth)
	case errors.Is(err, encap.ErrVersion):
		c.add(dropVersion)
	default:
		c.add(dropMalformed)
	}
}
