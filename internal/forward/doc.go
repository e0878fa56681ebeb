// Package forward moves inner packets between a TUN device and the UDP sockets
// of the underlay, and decides which of them may pass.
//
// There are two directions, each with goroutines of its own:
//
//	device --Read--> admit inner header --> Table.Route --> peer's endpoint --> one batch per socket
//	socket --recv--> known sender? --> Decode --> admit --> Table.accept --> one Device.Write per batch
//
// All decisions are pure functions over an immutable [Table], which lies
// behind an atomic pointer and is replaced as a whole by [Engine.SetTable]. The
// decisions take no lock, use no channel and allocate nothing. What does not
// pass is dropped and counted under a [Reason].
//
// What is slow and rare is kept off the loops: ICMP errors are made and written
// by one goroutine, and another one logs the drop counters.
package forward
