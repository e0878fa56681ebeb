// Package metrics tells Prometheus what a node counts. It knows nothing of nodes: whoever
// makes a [Handler] gives it a function that takes a [Snapshot].
//
// One scrape is one Snapshot. What there are few of goes through a registry of
// prometheus/client_golang as constant metrics. The series of peers, of which there may
// be thousands, do not: a registry looks at each of them for being whole and for being
// there once, which takes several times as long as to print them. Here they come from one
// loop over one list, as text.
//
// All labels are bounded: names and ids of at most [MaxPeers] peers, and words of which
// there are a few.
package metrics
