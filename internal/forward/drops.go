package forward

import "sync/atomic"

// Reason says why a packet was dropped, or why an answer to it was not sent.
type Reason uint8

// The reasons. Those that begin with Tx concern packets that were read from
// the device, those with Rx datagrams that came from a socket. Their names are
// keys of the status output and must not change.
const (
	// None is not a reason: the packet passes. It is never counted.
	None Reason = iota

	// TxMalformed: not a complete IPv4 or IPv6 packet of exactly the length
	// that its header says.
	TxMalformed
	// TxMulticast: the destination is a multicast or the limited broadcast
	// address. Kernels send such packets into every interface that is up.
	TxMulticast
	// TxMartian: source or destination is unspecified, loopback, link-local
	// or IPv4-mapped, or the source is multicast or broadcast.
	TxMartian
	// TxOwnDestination: the destination lies in a subnet of this node, but the
	// kernel routed it into the tunnel. Sending it on would be a loop.
	TxOwnDestination
	// TxOutsideNetwork: the destination is outside the overlay networks.
	TxOutsideNetwork
	// TxNoOwner: an overlay address that no node owns. Answered with ICMP.
	TxNoOwner
	// TxPeerDown: the owner's next hop is down, or it has no endpoint.
	// Answered with ICMP.
	TxPeerDown
	// TxNoSocket: the owner's endpoint is of an address family for which
	// there is no socket. Answered with ICMP.
	TxNoSocket
	// TxTooBig: longer than the inner MTU towards the owner. Answered with
	// ICMP.
	TxTooBig
	// TxSocketTooBig: the underlay refused the datagram's size: EMSGSIZE, or an
	// ICMP message that is believed.
	TxSocketTooBig
	// TxSocketNoBuffers: the kernel had no memory for it (ENOBUFS, ENOMEM).
	TxSocketNoBuffers
	// TxSocketRefused: a firewall rule (EPERM, EACCES) or the receiver's host
	// (ECONNREFUSED) refused it.
	TxSocketRefused
	// TxSocketUnreachable: the underlay has no way to the endpoint
	// (ENETUNREACH, EHOSTUNREACH, ENETDOWN).
	TxSocketUnreachable
	// TxSocketError: any other error of the socket.
	TxSocketError
	// TxDeviceError: a Read of the device failed.
	TxDeviceError
	// TxICMPNotSent: an ICMP error was due but is not sent, since its rate is
	// limited or the device did not take it. The packet that it is about is
	// counted under its own reason.
	TxICMPNotSent

	// RxSocketFull: the kernel had no room in a socket's queue, since datagrams come
	// faster than we take them. Brought up to date each second.
	RxSocketFull
	// RxChecksum: the outer UDP checksum is wrong. The kernel has dropped it; brought up
	// to date each second. A datagram of up to 76 bytes the kernel drops before it knows
	// whose it is: then it is counted as the host's alone (nstat: UdpInCsumErrors).
	RxChecksum
	// RxOversized: longer than any datagram that we expect, so that its end
	// was lost.
	RxOversized
	// RxUnknownSource: the outer source address is no known peer's.
	RxUnknownSource
	// RxMalformedFrame: the encap cannot make sense of it.
	RxMalformedFrame
	// RxVXLANReserved: a VXLAN header without the I flag or with a reserved bit set.
	RxVXLANReserved
	// RxUnknownVNI: a frame of another VXLAN network.
	RxUnknownVNI
	// RxUnknownMAC: a frame for another VTEP, or one that came back to its sender.
	RxUnknownMAC
	// RxUnknownEtherType: a frame that carries neither IP, ARP nor our own control
	// frames.
	RxUnknownEtherType
	// RxMalformed: the inner packet is not a complete IPv4 or IPv6 packet of
	// exactly the length that its header says.
	RxMalformed
	// RxMulticast: the inner destination is multicast or the limited broadcast, or so
	// is the MAC: kernels send such frames now and then, and nothing is lost with them.
	RxMulticast
	// RxMartian: as TxMartian.
	RxMartian
	// RxSpoofedSource: the peer may not send with this inner source.
	RxSpoofedSource
	// RxWrongDestination: the inner destination is not in our subnets.
	RxWrongDestination
	// RxECN: the underlay has marked congestion on a packet whose sender does not
	// know of ECN: it has to be dropped instead (RFC 6040 section 4.2).
	RxECN
	// RxDeviceRefused: the device did not take the packet.
	RxDeviceRefused
	// RxICMPNotBelieved: an ICMP message about the size of a datagram that this
	// node cannot have sent.
	RxICMPNotBelieved
	// RxSocketError: a receive call failed.
	RxSocketError

	reasonCount
)

var reasonNames = [reasonCount]string{
	None:                "none",
	TxMalformed:         "tx_malformed",
	TxMulticast:         "tx_multicast",
	TxMartian:           "tx_martian",
	TxOwnDestination:    "tx_own_destination",
	TxOutsideNetwork:    "tx_outside_network",
	TxNoOwner:           "tx_no_owner",
	TxPeerDown:          "tx_peer_down",
	TxNoSocket:          "tx_no_socket",
	TxTooBig:            "tx_too_big",
	TxSocketTooBig:      "tx_socket_too_big",
	TxSocketNoBuffers:   "tx_socket_no_buffers",
	TxSocketRefused:     "tx_socket_refused",
	TxSocketUnreachable: "tx_socket_unreachable",
	TxSocketError:       "tx_socket_error",
	TxDeviceError:       "tx_device_error",
	TxICMPNotSent:       "tx_icmp_not_sent",
	RxSocketFull:        "rx_socket_full",
	RxChecksum:          "rx_checksum",
	RxOversized:         "rx_oversized",
	RxUnknownSource:     "rx_unknown_source",
	RxMalformedFrame:    "rx_malformed_frame",
	RxVXLANReserved:     "rx_vxlan_reserved",
	RxUnknownVNI:        "rx_unknown_vni",
	RxUnknownMAC:        "rx_unknown_mac",
	RxUnknownEtherType:  "rx_unknown_ethertype",
	RxMalformed:         "rx_malformed",
	RxMulticast:         "rx_multicast",
	RxMartian:           "rx_martian",
	RxSpoofedSource:     "rx_spoofed_source",
	RxWrongDestination:  "rx_wrong_destination",
	RxECN:               "rx_ecn",
	RxDeviceRefused:     "rx_device_refused",
	RxICMPNotBelieved:   "rx_icmp_not_believed",
	RxSocketError:       "rx_socket_error",
}

// String returns the reason's name in snake_case.
func (r Reason) String() string {
	if r < reasonCount {
		return reasonNames[r]
	}
	return "unknown"
}

// cacheLine is the size of a cache line on amd64 and most arm64 processors.
// Counters of different writers are kept apart by it.
const cacheLine = 64

type paddedCounter struct {
	n atomic.Uint64
	_ [cacheLine - 8]byte
}

// Drops counts dropped packets by reason. The zero value is ready to use, and
// all methods may be called by any goroutine. It must not be copied.
type Drops struct {
	counters [reasonCount]paddedCounter
}

// Add counts n more packets under r.
func (d *Drops) Add(r Reason, n uint64) {
	if r != None {
		d.counters[r].n.Add(n)
	}
}

// Count returns how many packets have been counted under r.
func (d *Drops) Count(r Reason) uint64 { return d.counters[r].n.Load() }

// Snapshot returns all counters by the names of their reasons, those at 0 too.
// Each counter is read once; together they are no snapshot of one moment.
func (d *Drops) Snapshot() map[string]uint64 {
	m := make(map[string]uint64, reasonCount-1)
	for r := None + 1; r < reasonCount; r++ {
		m[r.String()] = d.Count(r)
	}
	return m
}
