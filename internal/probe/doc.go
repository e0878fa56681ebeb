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
// The package has two layers. [Core] is the protocol as a pure state machine:
// time and randomness go in as arguments, frames to send come out. [Prober]
// is the thin driver with the clock, one goroutine and the queue between the
// receive loop and it. What is counted per path lives in a type of its own
// (track), so that the kernel paths each get one beside the userspace path's.
package probe
