package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// callLimit is how many system calls a host may need for a TCP segment of full
// size.
const callLimit = 0.1

// countCalls counts the system calls of each daemon while TCP flows, with the
// kernel's tracepoint raw_syscalls:sys_enter, and prints them for each segment.
func countCalls(ctx context.Context, w io.Writer, s *system, length time.Duration) error {
	if len(s.daemons) == 0 {
		return nil
	}
	counter, err := newCallCounter(s)
	if err != nil {
		return fmt.Errorf("count system calls: %w", err)
	}
	defer counter.close()
	before, err := counter.read(s)
	if err != nil {
		return err
	}
	bytes, err := transfer(ctx, s, 1, length)
	if err != nil {
		return err
	}
	after, err := counter.read(s)
	if err != nil {
		return err
	}
	segments := float64(bytes) / float64(s.mtu-52) // IPv4, TCP with timestamps
	for i, role := range []string{"sender", "receiver"} {
		calls := float64(after[i]-before[i]) / segments
		word := "reached"
		if calls > callLimit {
			word = "missed"
		}
		fmt.Fprintf(w, "system calls of the %s's daemon per full-size TCP segment: %.3f (goal: %.1f, %s)\n", role, calls, callLimit, word)
	}
	return nil
}

// callCounter counts system calls by process in the kernel.
type callCounter struct {
	counts *ebpf.Map // process id to calls
	link   link.Link
	prog   *ebpf.Program
}

func newCallCounter(s *system) (c *callCounter, err error) {
	c = &callCounter{}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	c.counts, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 16})
	if err != nil {
		return c, err
	}
	for _, p := range s.daemons {
		if err := c.counts.Put(uint32(p.PID()), uint64(0)); err != nil {
			return c, err
		}
	}
	c.prog, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.RawTracepoint, License: "GPL",
		Instructions: asm.Instructions{
			asm.FnGetCurrentPidTgid.Call(),
			asm.RSh.Imm(asm.R0, 32),
			asm.StoreMem(asm.RFP, -4, asm.R0, asm.Word),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, c.counts.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		},
	})
	if err != nil {
		return c, err
	}
	c.link, err = link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sys_enter", Program: c.prog})
	return c, err
}

func (c *callCounter) read(s *system) (calls []uint64, err error) {
	for _, p := range s.daemons {
		var n uint64
		err = errors.Join(err, c.counts.Lookup(uint32(p.PID()), &n))
		calls = append(calls, n)
	}
	return calls, err
}

func (c *callCounter) close() {
	if c.link != nil {
		c.link.Close()
	}
	if c.prog != nil {
		c.prog.Close()
	}
	if c.counts != nil {
		c.counts.Close()
	}
}
