// Package count counts, by the kernel's own tracepoints, what processes cost: how often
// and how many bytes they take from the kernel and give to it, by descriptor, their system
// calls and context switches; and beside that the packets that leave by each device, and
// those that are dropped.
//
//	raw_syscalls:sys_enter, sys_exit    calls; bytes by what they return, for sendmmsg
//	                                    and recvmmsg by the sum of msg_len
//	sched:sched_switch                  context switches
//	skb:skb_copy_datagram_iovec         what the kernel says that it copies to a process
//	net:net_dev_start_xmit              packets and their segments, by device
//	skb:kfree_skb                       dropped packets, by reason
package count

import (
	"errors"
	"fmt"
	"maps"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// ErrTooMany: more processes than can be watched at once.
var ErrTooMany = errors.New("too many processes to watch")

// Counter counts from New to Close.
type Counter struct {
	maps    table
	progs   []*ebpf.Program
	links   []link.Link
	reasons map[uint32]string
	pids    []int
}

// New begins to count. It needs root, and a kernel that lets it attach programs to
// tracepoints.
func New() (c *Counter, err error) {
	c = &Counter{}
	defer func() {
		if err != nil {
			c.Close()
			c, err = nil, fmt.Errorf("count: %w", err)
		}
	}()
	for _, m := range mapSpecs {
		m.spec.Name = m.name
		if *m.of(&c.maps), err = ebpf.NewMap(&m.spec); err != nil {
			return c, fmt.Errorf("map %s: %w", m.name, err)
		}
	}
	kfree, err := readFormat("skb", "kfree_skb")
	if err != nil {
		return c, err
	}
	c.reasons = kfree.symbols()
	xmit, err := readFormat("net", "net_dev_start_xmit")
	if err != nil {
		return c, err
	}
	iovec, err := readFormat("skb", "skb_copy_datagram_iovec")
	if err != nil {
		return c, err
	}
	var offsets [5]int16
	var errs error
	for i, f := range []struct {
		of   *format
		name string
	}{{&kfree, "reason"}, {&xmit, "name"}, {&xmit, "len"}, {&xmit, "gso_segs"}, {&iovec, "len"}} {
		offsets[i], err = f.of.at(f.name)
		errs = errors.Join(errs, err)
	}
	if errs != nil {
		return c, errs
	}
	for _, p := range []struct {
		group, event string
		program      asm.Instructions
	}{
		{"raw_syscalls", "sys_exit", c.maps.sysExit()},
		{"raw_syscalls", "sys_enter", c.maps.sysEnter()},
		{"sched", "sched_switch", c.maps.schedSwitch()},
		{"skb", "skb_copy_datagram_iovec", c.maps.copyDatagram(offsets[4])},
		{"net", "net_dev_start_xmit", c.maps.startXmit(offsets[1], offsets[2], offsets[3])},
		{"skb", "kfree_skb", c.maps.kfreeSKB(offsets[0])},
	} {
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.TracePoint, License: "GPL", Instructions: p.program})
		if err != nil {
			return c, fmt.Errorf("program for %s:%s: %w", p.group, p.event, err)
		}
		c.progs = append(c.progs, prog)
		l, err := link.Tracepoint(p.group, p.event, prog, nil)
		if err != nil {
			return c, fmt.Errorf("%s:%s: %w", p.group, p.event, err)
		}
		c.links = append(c.links, l)
	}
	return c, nil
}

// Watch adds a process to those that are counted.
func (c *Counter) Watch(pid int) error {
	if len(c.pids) == slots {
		return ErrTooMany
	}
	if err := c.maps.Pids.Put(uint32(pid), uint32(len(c.pids))); err != nil {
		return fmt.Errorf("count: %w", err)
	}
	c.pids = append(c.pids, pid)
	return nil
}

// Process is what a process has done.
type Process struct {
	// Calls are its system calls, by their number.
	Calls map[int]uint64
	// Switches is how often one of its threads was put off a processor.
	Switches uint64
	// Files are what it has moved, by descriptor.
	Files map[int]File
	// CopiedTimes and CopiedBytes are what the kernel says that it has copied to it from
	// packets. Not all that is received is told: what is in one piece is not.
	CopiedTimes, CopiedBytes uint64
}

// File is what has crossed by one descriptor.
type File struct{ ToUser, FromUser Moved }

// Moved is how often, and how many bytes, and by which system call the last time. What
// crosses in one piece, such as a message of many, is one.
type Moved struct {
	Times, Bytes uint64
	Call         int
}

// Device is what has left by a device: packets, those of more than 1000 bytes, the segments
// in these, and the length of the largest.
type Device struct{ Packets, Bigger, Segments, Largest uint64 }

// Counts are the state of all counters.
type Counts struct {
	Processes map[int]Process // by their id
	Devices   map[string]Device
	Drops     map[string]uint64
}

// Read reads the counters.
func (c *Counter) Read() (*Counts, error) {
	all := &Counts{Processes: map[int]Process{}, Devices: map[string]Device{}, Drops: map[string]uint64{}}
	for slot, pid := range c.pids {
		p, err := c.process(slot)
		if err != nil {
			return nil, fmt.Errorf("count: %w", err)
		}
		all.Processes[pid] = p
	}
	var name [devName]byte
	var dev passed
	for i := c.maps.Devices.Iterate(); i.Next(&name, &dev); {
		n := 0
		for n < len(name) && name[n] != 0 {
			n++
		}
		all.Devices[string(name[:n])] = Device(dev)
	}
	var reason uint32
	var packets uint64
	for i := c.maps.Drops.Iterate(); i.Next(&reason, &packets); {
		name := c.reasons[reason]
		if name == "" {
			name = fmt.Sprintf("reason %d", reason)
		}
		all.Drops[name] = packets
	}
	return all, nil
}

func (c *Counter) process(slot int) (p Process, err error) {
	p = Process{Calls: map[int]uint64{}, Files: map[int]File{}}
	for nr := range calls {
		var n uint64
		if err := c.maps.Calls.Lookup(uint32(slot*calls+nr), &n); err != nil {
			return p, err
		}
		if n > 0 {
			p.Calls[nr] = n
		}
	}
	for fd := range files {
		var to, from moved
		at := uint32((slot*files + fd) * 2)
		if err := errors.Join(c.maps.Moved.Lookup(at+toUser, &to), c.maps.Moved.Lookup(at+fromUser, &from)); err != nil {
			return p, err
		}
		if to.Times > 0 || from.Times > 0 {
			p.Files[fd] = File{Moved{to.Times, to.Bytes, int(to.Call)}, Moved{from.Times, from.Bytes, int(from.Call)}}
		}
	}
	var copied moved
	err = errors.Join(c.maps.Switches.Lookup(uint32(slot), &p.Switches), c.maps.Copied.Lookup(uint32(slot), &copied))
	p.CopiedTimes, p.CopiedBytes = copied.Times, copied.Bytes
	return p, err
}

// Since is what was counted after before was read.
func (c *Counts) Since(before *Counts) *Counts {
	d := &Counts{Processes: map[int]Process{}, Devices: map[string]Device{}, Drops: map[string]uint64{}}
	for pid, p := range c.Processes {
		d.Processes[pid] = p.since(before.Processes[pid])
	}
	for name, n := range c.Devices {
		o := before.Devices[name]
		if n.Packets > o.Packets {
			d.Devices[name] = Device{n.Packets - o.Packets, n.Bigger - o.Bigger, n.Segments - o.Segments, n.Largest}
		}
	}
	for reason, n := range c.Drops {
		if n > before.Drops[reason] {
			d.Drops[reason] = n - before.Drops[reason]
		}
	}
	return d
}

func (p Process) since(o Process) Process {
	d := p
	d.Calls, d.Files = maps.Clone(p.Calls), maps.Clone(p.Files)
	for nr, n := range o.Calls {
		d.Calls[nr] -= n
	}
	for fd, f := range o.Files {
		now := d.Files[fd]
		now.ToUser.Times, now.ToUser.Bytes = now.ToUser.Times-f.ToUser.Times, now.ToUser.Bytes-f.ToUser.Bytes
		now.FromUser.Times, now.FromUser.Bytes = now.FromUser.Times-f.FromUser.Times, now.FromUser.Bytes-f.FromUser.Bytes
		d.Files[fd] = now
	}
	d.Switches -= o.Switches
	d.CopiedTimes, d.CopiedBytes = p.CopiedTimes-o.CopiedTimes, p.CopiedBytes-o.CopiedBytes
	return d
}

// Close ends the counting. Nothing of it stays in the kernel, as it does not when the
// process dies.
func (c *Counter) Close() {
	for _, l := range c.links {
		l.Close()
	}
	for _, p := range c.progs {
		p.Close()
	}
	for _, m := range mapSpecs {
		if mm := *m.of(&c.maps); mm != nil {
			mm.Close()
		}
	}
}
