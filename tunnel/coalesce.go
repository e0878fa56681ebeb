package tunnel

import (
	"bytes"
	"encoding/binary"
)

const (
	// maxOpen is how many superpackets are open at once: the flows of one batch,
	// mostly.
	maxOpen = 8
	// maxSegments bounds the datagrams of one UDP superpacket: UDP_MAX_SEGMENTS of
	// kernels before 6.10 (linux/include/linux/udp.h).
	maxSegments = 64
)

// Coalescer joins the packets of a batch that follow each other in their flows
// into superpackets, as the kernel's GRO does (tcp_gro_receive and
// udp_gro_receive in linux/net/ipv4): the first packet's headers, and the payload
// of all where it was received. Only headers are written. Checksums of what is
// joined are verified first. What is not joined passes as it is, and packets of
// one flow stay in order. It is not safe for concurrent use.
type Coalescer struct {
	features Features
	pkts     []Packet
	joined   []joined   // of each of pkts
	pieces   [][][]byte // its Frags; kept for the next batch
	open     [maxOpen]openGroup
	nOpen    int
	victim   int // whose place the next group takes
}

// joined is what a packet of the result is made of.
type joined struct {
	n       int // packets in it
	t       transport
	segment int // payload bytes of the first packet
	size    int // of the whole
}

// openGroup is a packet of the result that can still grow.
type openGroup struct {
	at      int    // in pkts
	next    uint32 // the sequence number that continues it (TCP)
	id      uint16 // of the last packet (IPv4)
	checked bool   // the first packet's checksum was found right
}

// NewCoalescer makes one for a device with these features.
func NewCoalescer(f Features) *Coalescer { return &Coalescer{features: f} }

// Reset forgets all packets.
func (c *Coalescer) Reset() {
	for i := range c.pkts {
		clear(c.pieces[i])
		c.pieces[i] = c.pieces[i][:0]
	}
	clear(c.pkts)
	c.pkts, c.joined, c.nOpen, c.victim = c.pkts[:0], c.joined[:0], 0, 0
}

// Len is how many packets there are now.
func (c *Coalescer) Len() int { return len(c.pkts) }

// Add takes in an IP packet, whose memory is the Coalescer's until Reset, and
// returns the index in Packets of what it has become part of.
func (c *Coalescer) Add(b []byte) int {
	if !c.features.Checksum { // the device takes no superpackets: nothing to look for
		return c.append(b, transport{})
	}
	t, ok := findTransport(b, len(b))
	if !ok {
		c.nOpen = 0 // whatever flow it is of, nothing may be joined across it
		return c.append(b, t)
	}
	i := c.find(b, t)
	switch {
	case !c.joinable(b, t):
		if i >= 0 {
			c.drop(i)
		}
		return c.append(b, t)
	case i >= 0:
		if at, ok := c.extend(i, b, t); ok {
			return at
		}
		c.drop(i)
	}
	return c.start(b, t)
}

// Packets returns what was added, joined and in order. It is valid until Reset.
func (c *Coalescer) Packets() []Packet {
	for i := range c.pkts {
		if c.joined[i].n > 1 && !c.pkts[i].Offload.NeedsChecksum {
			c.finish(i)
		}
	}
	return c.pkts
}

// Joined returns how many packets the i-th of Packets stands for, and how many
// bytes they had together.
func (c *Coalescer) Joined(i int) (packets, size int) {
	j := &c.joined[i]
	return j.n, j.size + (j.n-1)*j.t.payload
}

func (c *Coalescer) append(b []byte, t transport) int {
	i := len(c.pkts)
	c.pkts = append(c.pkts, Packet{Data: b})
	c.joined = append(c.joined, joined{1, t, len(b) - t.payload, len(b)})
	if i == len(c.pieces) {
		c.pieces = append(c.pieces, nil)
	}
	return i
}

// joinable reports whether a packet may be part of a superpacket at all.
func (c *Coalescer) joinable(b []byte, t transport) bool {
	if !c.features.Checksum || len(b) == t.payload {
		return false
	}
	h := b[t.start:]
	if t.proto == protoUDP {
		// Without a checksum it cannot be told whether it is as it was sent.
		return c.features.UDP && int(binary.BigEndian.Uint16(h[4:])) == len(h) && (h[6] != 0 || h[7] != 0)
	}
	if b[0]>>4 == 4 && !c.features.TCP4 || b[0]>>4 == 6 && !c.features.TCP6 {
		return false
	}
	const ece = 0x40
	return h[13]&^(tcpPSH|ece) == tcpACK
}

// find returns the open group of a packet's flow, -1 if there is none.
func (c *Coalescer) find(b []byte, t transport) int {
	for i := range c.nOpen {
		o := &c.joined[c.open[i].at].t
		a := c.pkts[c.open[i].at].Data
		if o.proto == t.proto && a[0]>>4 == b[0]>>4 && bytes.Equal(a[o.start:o.start+4], b[t.start:t.start+4]) &&
			bytes.Equal(addresses(a), addresses(b)) {
			return i
		}
	}
	return -1
}

// addresses are source and destination of an IP packet.
func addresses(b []byte) []byte {
	if b[0]>>4 == 4 {
		return b[12:20]
	}
	return b[8:40]
}

func (c *Coalescer) drop(i int) {
	c.nOpen--
	c.open[i] = c.open[c.nOpen]
}

// start opens a group with its first packet.
func (c *Coalescer) start(b []byte, t transport) int {
	at := c.append(b, t)
	g := openGroup{at: at, id: binary.BigEndian.Uint16(b[4:])}
	if t.proto == protoTCP {
		if b[t.start+13]&tcpPSH != 0 {
			return at // whoever sent it wants it to be delivered now
		}
		g.next = binary.BigEndian.Uint32(b[t.start+4:]) + uint32(len(b)-t.payload)
	}
	if c.nOpen < maxOpen {
		c.open[c.nOpen] = g
		c.nOpen++
		return at
	}
	c.victim = (c.victim + 1) % maxOpen
	c.open[c.victim] = g
	return at
}

// extend joins a packet to its flow's group, if it continues it exactly, and
// returns the group's index in Packets.
func (c *Coalescer) extend(i int, b []byte, t transport) (at int, ok bool) {
	g := &c.open[i]
	at = g.at
	j := &c.joined[at]
	a := c.pkts[at].Data
	n := len(b) - t.payload
	if t != j.t || n > j.segment || j.size+n > maxIP || !sameIP(a, b, t, g.id) {
		return at, false
	}
	push := false
	if t.proto == protoTCP {
		if binary.BigEndian.Uint32(b[t.start+4:]) != g.next || !sameTCP(a[t.start:t.payload], b[t.start:t.payload]) {
			return at, false
		}
		push = b[t.start+13]&tcpPSH != 0
	} else if j.n == maxSegments {
		return at, false
	}
	if !g.checked {
		if g.checked = t.checksumRight(a); !g.checked {
			return at, false
		}
	}
	if !t.checksumRight(b) {
		return at, false
	}
	c.pieces[at] = append(c.pieces[at], b[t.payload:])
	j.n++
	j.size += n
	g.next += uint32(n)
	g.id = binary.BigEndian.Uint16(b[4:])
	if push {
		a[t.start+13] |= tcpPSH
	}
	if push || n < j.segment {
		c.drop(i)
	}
	return at, true
}

// sameIP reports whether b may follow a in a superpacket as far as their IP
// headers say. When it is cut again, the segments get identifications that count
// up, so those must, where they mean something (RFC 6864 section 4.1).
func sameIP(a, b []byte, t transport, id uint16) bool {
	if a[0]>>4 == 6 {
		return bytes.Equal(a[:4], b[:4]) && bytes.Equal(a[6:8], b[6:8]) && bytes.Equal(a[ipv6HeaderLen:t.start], b[ipv6HeaderLen:t.start])
	}
	return bytes.Equal(a[:2], b[:2]) && bytes.Equal(a[6:10], b[6:10]) && bytes.Equal(a[ipv4HeaderLen:t.start], b[ipv4HeaderLen:t.start]) &&
		(binary.BigEndian.Uint16(b[6:])&ipv4DF != 0 || binary.BigEndian.Uint16(b[4:]) == id+1)
}

// sameTCP compares what of two TCP headers must be alike: all but ports, sequence
// number, PSH and checksum.
func sameTCP(a, b []byte) bool {
	return bytes.Equal(a[8:13], b[8:13]) && a[13]|tcpPSH == b[13]|tcpPSH && bytes.Equal(a[14:16], b[14:16]) && bytes.Equal(a[18:], b[18:])
}

// checksumRight verifies the transport checksum of a whole packet.
func (t transport) checksumRight(b []byte) bool {
	return fold(sum(b[t.start:], pseudoSum(b, t.proto, len(b)-t.start))) == 0xffff
}

// finish makes a superpacket of a group: its headers, its checksum to be
// completed by whoever cuts it, and its description.
func (c *Coalescer) finish(i int) {
	p, j := &c.pkts[i], &c.joined[i]
	t, b := j.t, p.Data
	o := Offload{
		NeedsChecksum: true, SegmentSize: uint16(j.segment), HeaderLen: uint16(t.payload),
		ChecksumStart: uint16(t.start), ChecksumOffset: uint16(t.checksumAt()),
	}
	o.GSO = GSOUDP
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(j.size))
		b[10], b[11] = 0, 0
		binary.NativeEndian.PutUint16(b[10:], Checksum(b[:t.start]))
		if t.proto == protoTCP {
			o.GSO = GSOTCP4
		}
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(j.size-ipv6HeaderLen))
		if t.proto == protoTCP {
			o.GSO = GSOTCP6
		}
	}
	if t.proto == protoUDP {
		binary.BigEndian.PutUint16(b[t.start+4:], uint16(j.size-t.start))
	}
	binary.NativeEndian.PutUint16(b[t.start+t.checksumAt():], fold(pseudoSum(b, t.proto, j.size-t.start)))
	p.Frags, p.Offload = c.pieces[i], o
}
