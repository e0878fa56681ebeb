package neighbor

// reason is why a message was not heeded.
type reason int

const (
	malformed reason = iota
	notOurs
	spoofed
	unsolicited
	rateLimited
	queueFull
	sendFailed
	reasons
	none reason = -1
)

// reasonNames are the names in the status output.
var reasonNames = [reasons]string{
	malformed:   "neighbor_malformed",    // neither sound ARP nor sound neighbour discovery
	notOurs:     "neighbor_not_ours",     // about an address that is not this node's VTEP's
	spoofed:     "neighbor_spoofed",      // from an address that its sender may not speak for
	unsolicited: "neighbor_unsolicited",  // an answer to nothing that was asked
	rateLimited: "neighbor_rate_limited", // more questions than one peer gets answered
	queueFull:   "neighbor_queue_full",   // faster than we work
	sendFailed:  "neighbor_send_failed",  // ours, not sent
}
