package forward

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/overlayd/overlayd/encap"
)

// Peer is another node as the packet path sees it. A Peer in a [Table] is
// shared with the loops: nobody changes it, a change is a new Peer in a new
// Table.
type Peer struct {
	// ID is the node's identity, for the caller's use.
	ID [16]byte
	// Name is the node's human name, for errors and the caller's use.
	Name string
	// Prefixes are the subnets that the peer owns, each inside one of the
	// overlay networks.
	Prefixes []netip.Prefix
	// Endpoint is where its packets are sent; the zero value if there is
	// nowhere to send them.
	Endpoint netip.AddrPort
	// Sources are the outer addresses that it may send from, whatever the
	// port, and at the same time the underlay addresses that it may use as
	// inner source. Endpoint's address is normally one of them; it is not
	// added by itself. Several peers may share one address. None: nothing is
	// accepted from the peer.
	Sources []netip.Addr
	// Codec is the framing that it takes. Nil: the Engine's.
	Codec encap.Codec
	// Dest is what the Codec has to know about it.
	Dest encap.Dest
	// Usable tells whether its next hop is up. Packets to a peer that is not
	// are answered with ICMP; packets from it are accepted all the same.
	Usable bool
	// MTU is the longest inner packet, in bytes, that may be sent to it. Zero:
	// the Engine's.
	MTU int
	// Counters outlive the Peer: the next Peer for the same node gets the same
	// ones, so that nothing is lost when tables are swapped. Never nil.
	Counters *PeerCounters
}

// PeerCounters counts inner packets and their bytes, IP header included,
// without the encap. Tx is what the socket took, Rx what the device took. The
// zero value is ready to use; it must not be copied.
type PeerCounters struct {
	TxPackets, TxBytes atomic.Uint64
	// The two directions are counted by different goroutines.
	_                  [cacheLine - 16]byte
	RxPackets, RxBytes atomic.Uint64
	_                  [cacheLine - 16]byte
}

// Counts is what PeerCounters had at one moment.
type Counts struct{ TxPackets, TxBytes, RxPackets, RxBytes uint64 }

// Load reads the counters.
func (c *PeerCounters) Load() Counts {
	return Counts{TxPackets: c.TxPackets.Load(), TxBytes: c.TxBytes.Load(), RxPackets: c.RxPackets.Load(), RxBytes: c.RxBytes.Load()}
}

func (p *Peer) check(networks []netip.Prefix) error {
	if p == nil {
		return fmt.Errorf("%w: nil peer", ErrTable)
	}
	if p.Counters == nil {
		return fmt.Errorf("%w: peer %q: no counters", ErrTable, p.Name)
	}
	if p.MTU < 0 {
		return fmt.Errorf("%w: peer %q: mtu %d is negative", ErrTable, p.Name, p.MTU)
	}
	if e := p.Endpoint; e != (netip.AddrPort{}) {
		if err := checkUnderlay(e.Addr(), networks); err != nil {
			return fmt.Errorf("%w: peer %q: endpoint %v: %w", ErrTable, p.Name, e, err)
		}
		if e.Port() == 0 {
			return fmt.Errorf("%w: peer %q: endpoint %v has no port", ErrTable, p.Name, e)
		}
	}
	for _, a := range p.Sources {
		if err := checkUnderlay(a, networks); err != nil {
			return fmt.Errorf("%w: peer %q: source %v: %w", ErrTable, p.Name, a, err)
		}
	}
	return nil
}

// checkUnderlay refuses what cannot be an outer address. One inside the
// overlay would make every packet to it enter the tunnel again.
func checkUnderlay(a netip.Addr, networks []netip.Prefix) error {
	switch {
	case !a.IsValid() || a.IsUnspecified() || a.IsMulticast():
		return fmt.Errorf("not a unicast address")
	case a.Is4In6():
		return fmt.Errorf("an IPv4-mapped address, give it as %v", a.Unmap())
	case a.Zone() != "":
		return fmt.Errorf("an address with a zone")
	}
	for _, n := range networks {
		if n.Contains(a) {
			return fmt.Errorf("inside the overlay network %v", n)
		}
	}
	return nil
}
