// Package probe finds out which peers can be reached on the data path.
//
// Gossip may be alive while the data port is blocked, and may take a minute to
// notice a dead host. So every peer is sent a probe on the port that data
// takes, and has to answer it: what is trusted is that my packets arrive, not
// that I receive some.
//
//	            answered                      3 unanswered in a row
//	UNKNOWN ----------------> UP ----------------------------------> DOWN
//	   |                       ^                                      |^
//	   |                       +-------------- answered --------------+|
//	   +--------------------- 3 unanswered in a row -------------------+
//
// Unanswered probes are counted, not elapsed time: a prober that was stalled
// for a minute has missed nothing and demotes nobody. An unknown peer is usable,
// since it may well be reachable; a changed endpoint or a new boot makes a
// peer unknown again.
//
// A peer is probed every 2 s (give or take a tenth, so that many nodes do not
// fall into step), and as soon as one probe has gone unanswered for 1 s, each
// second. A host that falls silent right after an answer is therefore down
// after 2.2 + 3 * 1 = 5.2 s at most, well within the 10 s that overlayd
// promises.
//
// Small probes say nothing about large packets, which a path may swallow
// without a word: a tunnel on the way, and a firewall that drops the ICMP
// message about it. So every 10 s a probe has the size that is taken to pass,
// which is full size at first. It is lost for its size if the small probe after
// it is answered. Three such losses in a row start a search by bisection for
// the largest size that is answered; meanwhile the smallest is taken to pass.
// Every minute a search upwards begins with full size, in case the path was
// repaired. A hint, say from ICMP, lowers the size at once, and is put to the
// test 10 s later. A path that begins to swallow large packets is noticed after
// 12.2 s + 3 * 1 s at most, and the search takes 2 s for a size that does not
// pass and a round trip for one that does: some 10 s more. That a probe of a
// search is lost does not count against the peer, so a search demotes nobody.
//
// # Kernel paths
//
// Whether the kernel could carry a peer's packets is decided by package path. This
// package makes frames of what that wants to be sent, one for each inner family and
// round, and tells it what became of them. They go by sockets that are bound to the
// path's device ([Links]), from our address in the overlay to the peer's, and are
// believed only if they came by the device of the path that they name. A probe is
// answered by userspace, by the path that it came by, and by the one that data for the
// peer takes: so a port that is blocked one way hides no path that works the other
// way. It is answered only while this node takes data from the peer by that path, which
// answers say as well (flags). What a probe says of its sender's readiness only has an
// answer asked for.
//
// # Layers
//
// [Core] is the userspace protocol as a pure state machine: time and randomness go in
// as arguments, frames to send come out. kernelPaths is the same around a path.Core.
// [Prober] is the thin driver of both, with the clock, one goroutine and the queue
// between the receive loops and it.
package probe
