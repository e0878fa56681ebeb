package capture

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/internal/forward"
)

// queueLen bounds how many packets wait to be written, and with maxPacket how much
// memory they take.
const (
	queueLen  = 512
	maxPacket = 65535
)

// Config says what is captured. All fields but Keep are required.
type Config struct {
	// Keep chooses packets; it is called by the loops and must not block. Nil: all.
	Keep func(*forward.Seen) bool
	// Application, Inner and Outer name the program and the two interfaces in the file.
	Application, Inner, Outer string
}

// Stats is what became of the packets that were chosen.
type Stats struct {
	Written, Missed uint64
}

// Recorder keeps copies of packets until they are written.
type Recorder struct {
	cfg    Config
	free   chan *record
	ready  chan *record
	missed [interfaces]atomic.Uint64
}

// The interfaces of the file.
const (
	ifaceInner = iota
	ifaceOuter
	interfaces
)

// record is a copy of a packet.
type record struct {
	at            time.Time
	iface         uint32
	outbound      bool
	local, remote netip.AddrPort
	class         uint8
	reason        forward.Reason
	b             []byte
}

// New makes a Recorder. It starts nothing.
func New(cfg Config) *Recorder {
	r := &Recorder{cfg: cfg, free: make(chan *record, queueLen), ready: make(chan *record, queueLen)}
	for range queueLen {
		r.free <- new(record)
	}
	return r
}

// Saw is a forward.Tap.
func (r *Recorder) Saw(s *forward.Seen) {
	if r.cfg.Keep != nil && !r.cfg.Keep(s) {
		return
	}
	iface := uint32(ifaceInner)
	if s.Outer {
		iface = ifaceOuter
	}
	select {
	case c := <-r.free:
		c.at, c.iface, c.outbound, c.local, c.remote, c.class, c.reason = time.Now(), iface, s.Outbound, s.Local, s.Remote, s.Class, s.Reason
		c.b = c.b[:0]
		for _, p := range s.Pieces {
			c.b = append(c.b, p[:min(len(p), maxPacket-len(c.b))]...)
		}
		r.ready <- c // has room for every record there is
	default:
		r.missed[iface].Add(1)
	}
}

// Run writes until ctx ends or w fails. What was seen before the end of ctx is
// written, then how much was missed. flush, if not nil, is called whenever there is
// nothing more to write at the moment.
func (r *Recorder) Run(ctx context.Context, w io.Writer, flush func() error) (Stats, error) {
	var written [interfaces]uint64
	stats := func() (s Stats) {
		for i := range interfaces {
			s.Written += written[i]
			s.Missed += r.missed[i].Load()
		}
		return s
	}
	if flush == nil {
		flush = func() error { return nil }
	}
	out := pcapngWriter{w: w}
	err := out.section(r.cfg.Application)
	if err == nil {
		err = out.iface(r.cfg.Inner, "inner packets, as they pass the tunnel device")
	}
	if err == nil {
		err = out.iface(r.cfg.Outer, "datagrams of the underlay; their IP and UDP headers are made up")
	}
	buf := gopacket.NewSerializeBuffer()
	write := func(c *record) error {
		b, comment := c.b, ""
		if c.iface == ifaceOuter {
			if b, err = c.datagram(buf); err != nil {
				return fmt.Errorf("capture: %w", err)
			}
		}
		if c.reason != forward.None {
			comment = "dropped: " + c.reason.String()
		}
		if err := out.packet(c.iface, c.at, c.outbound, b, comment); err != nil {
			return err
		}
		written[c.iface]++
		r.free <- c
		return nil
	}
	for err == nil {
		select {
		case c := <-r.ready:
			err = write(c)
			continue
		default:
		}
		if err = flush(); err != nil {
			break
		}
		select {
		case c := <-r.ready:
			err = write(c)
			continue
		case <-ctx.Done():
		}
		for len(r.ready) > 0 && err == nil {
			err = write(<-r.ready)
		}
		for i := range interfaces {
			if err == nil {
				err = out.statistics(uint32(i), time.Now(), written[i]+r.missed[i].Load(), r.missed[i].Load())
			}
		}
		if err == nil {
			err = flush()
		}
		return stats(), err
	}
	return stats(), err
}

// datagram puts IP and UDP headers in front of what a socket took or gave. The TTL is
// the default one, and the checksums are right, whatever they were.
func (c *record) datagram(buf gopacket.SerializeBuffer) ([]byte, error) {
	src, dst := c.remote, c.local
	if c.outbound {
		src, dst = dst, src
	}
	if !c.local.Addr().IsValid() || c.local.Addr().Is4() != c.remote.Addr().Is4() { // a socket of all addresses
		any := netip.IPv6Unspecified()
		if c.remote.Addr().Is4() {
			any = netip.IPv4Unspecified()
		}
		if c.outbound {
			src = netip.AddrPortFrom(any, src.Port())
		} else {
			dst = netip.AddrPortFrom(any, dst.Port())
		}
	}
	const ttl = 64
	var ip interface {
		gopacket.NetworkLayer
		gopacket.SerializableLayer
	}
	if c.remote.Addr().Is4() {
		ip = &layers.IPv4{Version: 4, TOS: c.class, TTL: ttl, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocolUDP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	} else {
		ip = &layers.IPv6{Version: 6, TrafficClass: c.class, HopLimit: ttl, NextHeader: layers.IPProtocolUDP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	}
	udp := &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		return nil, err
	}
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, udp, gopacket.Payload(c.b))
	return buf.Bytes(), err
}
