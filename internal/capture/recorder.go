package capture

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/overlayd/overlayd/internal/forward"
)

// queueLen bounds how many packets wait to be written, and with maxPacket how much
// memory they take.
const (
	queueLen  = 512
	maxPacket = 65535
)

// MinBytes is the least that a file may be bounded to: its headers, with long names,
// and a small packet.
const MinBytes = 2000

// Config says what is captured. Application, Inner and Outer are required.
type Config struct {
	// Keep chooses packets; it is called by the loops and must not block. Nil: all.
	Keep func(*forward.Seen) bool
	// MaxBytes ends the capture before the file becomes larger; less than MinBytes
	// counts as that. 0: nothing ends it.
	MaxBytes int64
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

// Run writes until ctx ends, w fails or the file is as large as it may be. What was
// seen before the end of ctx is written. How much was missed is written at the end, and
// in between when it has changed, once a second. flush, if it is not nil, is called
// when there is nothing else to write. Each Write is of whole blocks.
func (r *Recorder) Run(ctx context.Context, w io.Writer, flush func() error) (Stats, error) {
	if flush == nil {
		flush = func() error { return nil }
	}
	f := &file{r: r, out: pcapngWriter{w: w}}
	if r.cfg.MaxBytes > 0 {
		f.out.left = max(r.cfg.MaxBytes, MinBytes) - interfaces*statisticsLen
	}
	err := f.begin()
	for err == nil && ctx.Err() == nil {
		select {
		case c := <-r.ready:
			if err = f.add(c); err == nil && time.Since(f.told) >= time.Second {
				err = f.statistics() // also where there is always something to write
			}
			continue
		default:
		}
		if err = errors.Join(f.statistics(), flush()); err != nil {
			break
		}
		select {
		case c := <-r.ready:
			err = f.add(c)
			continue
		case <-ctx.Done():
		}
	}
	for n := len(r.ready); n > 0 && err == nil; n-- { // more may come all the time
		err = f.add(<-r.ready)
	}
	if errors.Is(err, errFull) {
		err = nil
	}
	if err == nil {
		f.out.left = 0 // room was kept for these
		f.known = [interfaces]uint64{^uint64(0), ^uint64(0)}
		err = errors.Join(f.statistics(), flush())
	}
	return f.stats(), err
}

// file is what Run writes.
type file struct {
	r       *Recorder
	out     pcapngWriter
	b       []byte // of the last datagram
	written [interfaces]uint64
	known   [interfaces]uint64 // how many missed ones the file tells of
	told    time.Time
}

func (f *file) begin() error {
	if err := f.out.section(f.r.cfg.Application); err != nil {
		return err
	}
	if err := f.out.iface(f.r.cfg.Inner, "inner packets, as they pass the tunnel device"); err != nil {
		return err
	}
	return f.out.iface(f.r.cfg.Outer, "datagrams of the underlay; their IP and UDP headers are made up")
}

// add writes a packet and gives its record back.
func (f *file) add(c *record) error {
	defer func() { f.r.free <- c }() // has room: there are no more than that
	b, comment := c.b, ""
	if c.iface == ifaceOuter {
		f.b = c.appendDatagram(f.b[:0])
		b = f.b
	}
	if c.reason != forward.None {
		comment = "dropped: " + c.reason.String()
	}
	if err := f.out.packet(c.iface, c.at, c.outbound, b, comment); err != nil {
		return err
	}
	f.written[c.iface]++
	return nil
}

// statistics writes how much was missed where that has changed.
func (f *file) statistics() error {
	f.told = time.Now()
	for i := range interfaces {
		missed := f.r.missed[i].Load()
		if missed == f.known[i] {
			continue
		}
		if err := f.out.statistics(uint32(i), time.Now(), f.written[i]+missed, missed); err != nil {
			return err
		}
		f.known[i] = missed
	}
	return nil
}

func (f *file) stats() (s Stats) {
	for i := range interfaces {
		s.Written += f.written[i]
		s.Missed += f.r.missed[i].Load()
	}
	return s
}
