// Package neighbor speaks ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861) on
// the Ethernet that the vxlan encap carries, for the sake of VTEPs that gossip
// nothing: a kernel's VXLAN device, flannel's, a switch's.
//
// It answers for this node's own VTEP addresses, and for nothing else: the first
// address of each of its subnets, and the IPv6 link-local address made of its MAC. An
// answer goes to the endpoint of the peer that asks, and the sender must be that
// peer's address.
//
// And it asks for the MACs of the peers that are given without one, again and again:
// the answers are the proof that such a peer is there. Only an answer to a question
// of ours, from the peer that was asked, changes anything.
//
//	receive loop --Handle--> inbox --Run--> core --Send--> socket
//
// The core is pure: messages and the time in, messages and states out.
package neighbor
