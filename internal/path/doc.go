// Package path decides by which path each peer is sent data: through userspace,
// through the kernel's VXLAN, or by a plain route.
//
//	USERSPACE --peer ready--> PROVING --3 full-size rounds answered in a row--> CARRYING
//	    ^                        |  no answer: rest, 1 s .. 5 min                  |
//	    +------ hold-down -------+<--- rounds unanswered while userspace answers --+
//
// Each direction is decided by its sender. Userspace is never torn down, and both
// ends accept on every path at any time, so a move loses nothing while both paths
// work.
//
// A round is one probe for each inner address family, sent through the real kernel
// path. It is answered when all of its probes are. What is counted is rounds that
// stay unanswered, not time that passes: a prober that was stalled demotes nobody.
//
//   - A path is proven by three rounds in a row that are answered, of full size if
//     those pass. If they do not, while one of the smallest size does, and full size
//     is lost once more, bisection finds the size that passes, and the path carries no
//     more than that.
//   - While a peer is sent data, its path is tried every 150 ms, and a round may take
//     300 ms and twice the round trip. A path that dies is left after three lost
//     rounds, so 150 + 2 * 150 + 300 = 750 ms after it died at the latest. An idle
//     peer's path is tried every 5 s, and at once when data begins to flow.
//   - A path is left only for one that answers. With each lost round userspace is
//     asked too. When nothing of the peer's daemon answers, its kernel is asked by an
//     ICMP echo through the path: a dead daemon is no dead host, and what its kernel
//     does goes on without it. Only when that is silent too the path is left, for
//     userspace, whose next hop is then down.
//   - Who fails is held down: 10 s, doubling to 5 min, forgotten after 10 good minutes.
//   - The proof ends at the peer's host, data goes on into its containers. So a path is
//     also left when data goes out and nothing comes back, where something did come back
//     before the hand-off.
//
// [Core] is deterministic and does no I/O: events and the time go in, probes to send
// and states come out. Package probe drives it.
package path
