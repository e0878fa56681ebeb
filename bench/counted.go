package main

import (
	"context"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/overlayd/overlayd/bench/count"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/bench/report"
	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// tcpHeaders are those of a segment of full size: IPv4, TCP with timestamps (RFC 791, RFC
// 9293, RFC 7323).
const tcpHeaders = 20 + 20 + 12

// countPath counts what the overlay's processes do while TCP goes from one end to the
// other, with what they do in as long without traffic taken off.
func countPath(ctx context.Context, s *subject, length time.Duration) error {
	c, err := count.New()
	if err != nil {
		return err
	}
	defer c.Close()
	for _, p := range slices.Concat(s.sys.Daemons[0], s.sys.Daemons[1]) {
		if err := c.Watch(p.PID()); err != nil {
			return err
		}
	}
	quiet, err := c.Read()
	if err != nil {
		return err
	}
	began := time.Now()
	select {
	case <-time.After(length):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	idle := time.Since(began)
	before, err := c.Read()
	if err != nil {
		return err
	}
	began = time.Now()
	came, err := load.TCP(ctx, s.sys, 1, length)
	if err != nil {
		return err
	}
	took := time.Since(began)
	after, err := c.Read()
	if err != nil {
		return err
	}
	k := tally{
		path: s.Path, segments: float64(came.Bytes) / float64(s.MTU-tcpHeaders), bytes: float64(came.Bytes),
		idle: before.Since(quiet), busy: after.Since(before), scale: float64(took) / float64(idle),
	}
	k.all(s.sys.Daemons)
	for i := range s.sys.Daemons {
		mib, err := resident(s.sys.Daemons[i])
		if err != nil {
			return err
		}
		s.MemoryMiB = max(s.MemoryMiB, round(mib, 1))
	}
	return nil
}

// tally makes figures of counts.
type tally struct {
	path            *report.Path
	segments, bytes float64
	idle, busy      *count.Counts
	scale           float64 // how much longer busy took than idle
}

// net is what traffic has caused, for each segment.
func (k *tally) net(busy, idle uint64) float64 {
	return max(0, float64(busy)-k.scale*float64(idle)) / k.segments
}

func round(v float64, digits int) float64 {
	p := math.Pow10(digits)
	return math.Round(v*p) / p
}

// packets is how much of the payload's bytes at the least goes by what packets cross by:
// what is less are a daemon's own affairs.
const packets = 0.02

// side is what the processes of one host have done for each segment.
type side struct {
	toUser, fromUser, bytes, syscalls, switches, skbCopies float64
}

func (k *tally) all(daemons [2][]*lab.Process) {
	p := k.path
	p.Crossings = []report.Crossing{{Host: "send", Place: "app", Calls: "write"}}
	calls := map[string]float64{}
	var sides [2]side
	for i, host := range []string{"send", "recv"} {
		sides[i] = k.side(host, daemons[i], calls)
	}
	if len(p.Crossings) == 1 {
		// No packet crosses, so that what they do meanwhile, such as to probe the path, is
		// not done for each.
		sides = [2]side{}
	}
	p.Crossings = append(p.Crossings, report.Crossing{Host: "recv", Place: "app", ToUser: true, Calls: "read"})
	for _, f := range []struct {
		both, send, recv *float64
		of               func(side) float64
	}{
		{&p.CopiesToUser, &p.CopiesToUserSend, &p.CopiesToUserRecv, func(s side) float64 { return s.toUser }},
		{&p.CopiesFromUser, &p.CopiesFromUserSend, &p.CopiesFromUserRecv, func(s side) float64 { return s.fromUser }},
		{&p.BytesCopied, &p.BytesCopiedSend, &p.BytesCopiedRecv, func(s side) float64 { return s.bytes }},
		{&p.Syscalls, &p.SyscallsSend, &p.SyscallsRecv, func(s side) float64 { return s.syscalls }},
		{&p.ContextSwitches, &p.ContextSwitchesSend, &p.ContextSwitchesRecv, func(s side) float64 { return s.switches }},
	} {
		*f.send, *f.recv = round(f.of(sides[0]), 3), round(f.of(sides[1]), 3)
		*f.both = round(f.of(sides[0])+f.of(sides[1]), 3)
	}
	p.SKBCopies = round(sides[0].skbCopies+sides[1].skbCopies, 3)
	p.Calls = map[string]float64{}
	for name, n := range calls {
		if n = round(n, 3); n > 0 {
			p.Calls[name] = n
		}
	}
	for _, name := range slices.Sorted(maps.Keys(k.busy.Devices)) {
		// What hardly anything left by is not on the way.
		if d := k.busy.Devices[name]; float64(d.Segments) > k.segments/10 {
			p.Devices = append(p.Devices, report.Device{Name: name, Packets: d.Packets,
				Segments: round(float64(d.Segments)/float64(d.Bigger), 1), Largest: d.Largest})
		}
	}
	p.Drops = map[string]uint64{}
	for reason, n := range k.busy.Drops {
		if idle := uint64(k.scale * float64(k.idle.Drops[reason])); n > idle {
			p.Drops[reason] = n - idle
		}
	}
}

// side adds up the processes of a host. Of what crosses it takes the direction that has
// the data: the sender's host reads packets from its TUN device and sends datagrams, the
// receiver's the other way. By descriptors of another kind nothing should pass; all that
// does is taken.
func (k *tally) side(host string, processes []*lab.Process, calls map[string]float64) (s side) {
	type place struct {
		kind   count.Kind
		toUser bool
	}
	crossed := map[place]*report.Crossing{}
	for _, p := range processes {
		busy, idle := k.busy.Processes[p.PID()], k.idle.Processes[p.PID()]
		for nr, n := range busy.Calls {
			per := k.net(n, idle.Calls[nr])
			calls[count.CallName(nr)] += per
			s.syscalls += per
		}
		s.switches += k.net(busy.Switches, idle.Switches)
		s.skbCopies += k.net(busy.CopiedTimes, idle.CopiedTimes)
		for fd, f := range busy.Files {
			kind := count.KindOf(p.PID(), fd)
			was := idle.Files[fd]
			for _, way := range []struct {
				toUser    bool
				now, then count.Moved
			}{{true, f.ToUser, was.ToUser}, {false, f.FromUser, was.FromUser}} {
				data := kind == count.Other || (kind == count.TUN) == ((host == "send") == way.toUser)
				times, bytes := k.net(way.now.Times, way.then.Times), k.net(way.now.Bytes, way.then.Bytes)
				if !data || times == 0 || bytes*k.segments < packets*k.bytes {
					continue
				}
				c := crossed[place{kind, way.toUser}]
				if c == nil {
					c = &report.Crossing{Host: host, Place: string(kind), ToUser: way.toUser, Counted: true, Calls: count.CallName(way.now.Call)}
					crossed[place{kind, way.toUser}] = c
				}
				c.PerPacket += times
				c.Bytes += bytes // of all, until it is divided below
				s.bytes += bytes * k.segments / k.bytes
				if way.toUser {
					s.toUser += times
				} else {
					s.fromUser += times
				}
			}
		}
	}
	order := []place{{count.TUN, true}, {count.Other, false}, {count.Other, true}, {count.UDP, false}}
	if host == "recv" {
		order = []place{{count.UDP, true}, {count.Other, false}, {count.Other, true}, {count.TUN, false}}
	}
	for _, at := range order {
		if c := crossed[at]; c != nil && round(c.PerPacket, 3) > 0 {
			c.Bytes = round(c.Bytes/c.PerPacket, 0)
			c.PerPacket = round(c.PerPacket, 3)
			k.path.Crossings = append(k.path.Crossings, *c)
		}
	}
	return s
}
