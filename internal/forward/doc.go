// Package forward moves inner packets between a TUN device and the UDP sockets
// of the underlay, and decides which of them may pass.
//
// There are two directions, each with goroutines of its own:
//
//	device --Read--> admit inner header --> Table.Route --> peer's endpoint --> one batch per socket
//	socket --recv--> known sender? --> Decode --> admit --> Table.accept --> one Device.Write per batch
//
// Each peer is sent the framing that it takes; what is received is of one framing.
// ARP and neighbour discovery of the vxlan encap are given to Config.Neighbor. Where
// there are several sockets to send by, a flow keeps to one of them.
//
// All decisions are pure functions over an immutable [Table], which lies
// behind an atomic pointer and is replaced as a whole by [Engine.SetTable]. The
// decisions take no lock, use no channel and allocate nothing. What does not
// pass is dropped and counted under a [Reason].
//
// A loop waits in the kernel for its descriptor, on a thread that is its own for as
// long as packets come (tunnel/rawfd), and its other system calls never wait.
//
// The outer header gets the inner one's DSCP and ECN, and what the underlay says by
// the outer ECN is put into the inner header (RFC 6040). Everything is sent with DF.
// What says that a size does not pass, the kernel by EMSGSIZE or a router by an ICMP
// message that is believed, is told to Config.TooBig; what follows from it comes
// back as the peers' MTU in a new Table.
//
// What is slow and rare is kept off the loops: ICMP errors are made and written
// by one goroutine, and another one logs the drop counters. A Tap is shown what passes,
// and copies it.
package forward
