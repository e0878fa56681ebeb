package count

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// The kernel's programs, in its own instructions: there are few of them, and so neither a
// compiler nor a generated file is needed. Each begins with the tracepoint's record in R1,
// keeps it in R6, and ends with "out".

const (
	slots   = 16   // processes that are watched
	calls   = 512  // numbers of system calls that are counted
	files   = 1024 // descriptors; what is above is counted as the last
	msgs    = 1024 // messages of one call: UIO_MAXIOV (linux/include/uapi/linux/uio.h)
	bigger  = 1000 // bytes from which on a packet is one of data
	devName = 16   // IFNAMSIZ
)

// struct mmsghdr (linux/include/linux/socket.h) on 64 bits: its size, and where msg_len is.
const (
	mmsgSize = 64
	mmsgLen  = 56
)

// Offsets in the records of raw_syscalls, which the kernel's tracepoints have had since
// they exist; the others are read from tracefs.
const (
	offID   = 8
	offArg0 = 16
	offArg1 = 24
	offRet  = 16
)

// directions.
const (
	toUser   = 0
	fromUser = 1
)

// dataCalls are the system calls that move bytes through a descriptor.
var dataCalls = map[int32]int32{
	unix.SYS_READ: toUser, unix.SYS_READV: toUser, unix.SYS_RECVFROM: toUser, unix.SYS_RECVMSG: toUser, unix.SYS_RECVMMSG: toUser,
	unix.SYS_WRITE: fromUser, unix.SYS_WRITEV: fromUser, unix.SYS_SENDTO: fromUser, unix.SYS_SENDMSG: fromUser, unix.SYS_SENDMMSG: fromUser,
}

// moved is what crossed by one descriptor in one direction.
type moved struct {
	Times, Bytes uint64
	Call         uint64 // the last one that did it
}

// passed is what a device has sent.
type passed struct{ Packets, Bigger, Segments, Largest uint64 }

// maps are where the programs count.
type table struct {
	Pids     *ebpf.Map // process -> slot
	Calls    *ebpf.Map // slot, number -> calls
	Pending  *ebpf.Map // thread -> descriptor, second argument, number
	Moved    *ebpf.Map // slot, descriptor, direction -> moved
	Switches *ebpf.Map // slot -> times that it was put off a processor
	Copied   *ebpf.Map // slot -> moved, by skb_copy_datagram_iter
	Devices  *ebpf.Map // name -> passed
	Drops    *ebpf.Map // reason -> packets
}

var mapSpecs = []struct {
	name string
	spec ebpf.MapSpec
	of   func(*table) **ebpf.Map
}{
	{"pids", ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: slots}, func(m *table) **ebpf.Map { return &m.Pids }},
	{"calls", ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: slots * calls}, func(m *table) **ebpf.Map { return &m.Calls }},
	{"pending", ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 24, MaxEntries: 4096}, func(m *table) **ebpf.Map { return &m.Pending }},
	{"moved", ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 24, MaxEntries: slots * files * 2}, func(m *table) **ebpf.Map { return &m.Moved }},
	{"switches", ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: slots}, func(m *table) **ebpf.Map { return &m.Switches }},
	{"copied", ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 24, MaxEntries: slots}, func(m *table) **ebpf.Map { return &m.Copied }},
	{"devices", ebpf.MapSpec{Type: ebpf.Hash, KeySize: devName, ValueSize: 32, MaxEntries: 256}, func(m *table) **ebpf.Map { return &m.Devices }},
	{"drops", ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 512}, func(m *table) **ebpf.Map { return &m.Drops }},
}

// out ends a program.
func out() asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, 0).WithSymbol("out"), asm.Return()}
}

// lookup leaves the value for the key at RFP+key in R0, and goes to label if there is none.
func lookup(m *ebpf.Map, key int32, label string) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, key),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, label),
	}
}

// add adds 1, or a register, to the number at R0+offset.
func add(offset int16) asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R1, 1), addRegister(asm.R1, offset)}
}

func addRegister(r asm.Register, offset int16) asm.Instruction {
	in := asm.StoreXAdd(asm.R0, r, asm.DWord)
	in.Offset = offset
	return in
}

// watched ends the program for processes that are not watched. The slot of the others is
// in R8 then, and the thread in R7.
func (m *table) watched() asm.Instructions {
	return append(asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetCurrentPidTgid.Call(),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.RSh.Imm(asm.R0, 32),
		asm.StoreMem(asm.RFP, -4, asm.R0, asm.Word),
	}, append(lookup(m.Pids, -4, "out"), asm.LoadMem(asm.R8, asm.R0, 0, asm.Word))...)
}

// sysEnter counts a call, and remembers the arguments of one that moves bytes.
func (m *table) sysEnter() asm.Instructions {
	in := append(m.watched(),
		asm.LoadMem(asm.R9, asm.R6, offID, asm.DWord),
		asm.JGE.Imm(asm.R9, calls, "out"),
		asm.Mov.Reg(asm.R1, asm.R8), asm.Mul.Imm(asm.R1, calls), asm.Add.Reg(asm.R1, asm.R9),
		asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word))
	in = append(in, lookup(m.Calls, -4, "out")...)
	in = append(in, add(0)...)
	for nr := range dataCalls {
		in = append(in, asm.JEq.Imm(asm.R9, nr, "data"))
	}
	in = append(in,
		asm.Ja.Label("out"),
		asm.StoreMem(asm.RFP, -8, asm.R7, asm.DWord).WithSymbol("data"),
		asm.LoadMem(asm.R1, asm.R6, offArg0, asm.DWord), asm.StoreMem(asm.RFP, -32, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.R6, offArg1, asm.DWord), asm.StoreMem(asm.RFP, -24, asm.R1, asm.DWord),
		asm.StoreMem(asm.RFP, -16, asm.R9, asm.DWord),
		asm.LoadMapPtr(asm.R1, m.Pending.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -8),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, -32),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnMapUpdateElem.Call())
	return append(in, out()...)
}

// sysExit counts what a call has moved: what it returns, or, for many messages, the sum of
// their lengths.
func (m *table) sysExit() asm.Instructions {
	in := append(m.watched(), asm.StoreMem(asm.RFP, -8, asm.R7, asm.DWord))
	in = append(in, lookup(m.Pending, -8, "out")...)
	in = append(in,
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord), asm.StoreMem(asm.RFP, -16, asm.R1, asm.DWord), // descriptor
		asm.LoadMem(asm.R1, asm.R0, 8, asm.DWord), asm.StoreMem(asm.RFP, -24, asm.R1, asm.DWord), // argument
		asm.LoadMem(asm.R7, asm.R0, 16, asm.DWord), // number
		asm.LoadMapPtr(asm.R1, m.Pending.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -8),
		asm.FnMapDeleteElem.Call(),
		asm.LoadMem(asm.R1, asm.R6, offID, asm.DWord), asm.JNE.Reg(asm.R1, asm.R7, "out"),
		asm.StoreMem(asm.RFP, -32, asm.R7, asm.DWord),
		asm.LoadMem(asm.R9, asm.R6, offRet, asm.DWord),
		asm.JSLE.Imm(asm.R9, 0, "out"),
		asm.Mov.Imm(asm.R1, 1), asm.StoreMem(asm.RFP, -40, asm.R1, asm.DWord), // times
		asm.StoreMem(asm.RFP, -48, asm.R9, asm.DWord), // bytes
		asm.JEq.Imm(asm.R7, unix.SYS_SENDMMSG, "many"),
		asm.JNE.Imm(asm.R7, unix.SYS_RECVMMSG, "moved"),
		asm.StoreMem(asm.RFP, -40, asm.R9, asm.DWord).WithSymbol("many"),
		asm.Mov.Imm(asm.R1, 0), asm.StoreMem(asm.RFP, -48, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R7, 0),
		asm.JGE.Reg(asm.R7, asm.R9, "moved").WithSymbol("next"),
		asm.JGE.Imm(asm.R7, msgs, "moved"),
		asm.LoadMem(asm.R3, asm.RFP, -24, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R7), asm.Mul.Imm(asm.R1, mmsgSize), asm.Add.Reg(asm.R3, asm.R1), asm.Add.Imm(asm.R3, mmsgLen),
		asm.Mov.Reg(asm.R1, asm.RFP), asm.Add.Imm(asm.R1, -56),
		asm.Mov.Imm(asm.R2, 4),
		asm.FnProbeReadUser.Call(),
		asm.JNE.Imm(asm.R0, 0, "moved"),
		asm.LoadMem(asm.R1, asm.RFP, -56, asm.Word),
		asm.LoadMem(asm.R2, asm.RFP, -48, asm.DWord), asm.Add.Reg(asm.R2, asm.R1), asm.StoreMem(asm.RFP, -48, asm.R2, asm.DWord),
		asm.Add.Imm(asm.R7, 1),
		asm.Ja.Label("next"),
		// The place in Moved: (slot * files + descriptor) * 2 + direction.
		asm.LoadMem(asm.R1, asm.RFP, -16, asm.DWord).WithSymbol("moved"),
		asm.JLT.Imm(asm.R1, files, "few"),
		asm.Mov.Imm(asm.R1, files-1),
		asm.Mul.Imm(asm.R8, files).WithSymbol("few"), asm.Add.Reg(asm.R8, asm.R1), asm.Mul.Imm(asm.R8, 2),
		asm.LoadMem(asm.R7, asm.RFP, -32, asm.DWord))
	for nr, direction := range dataCalls {
		if direction == toUser {
			in = append(in, asm.JEq.Imm(asm.R7, nr, "count"))
		}
	}
	in = append(in, asm.Add.Imm(asm.R8, fromUser), asm.StoreMem(asm.RFP, -4, asm.R8, asm.Word).WithSymbol("count"))
	in = append(in, lookup(m.Moved, -4, "out")...)
	in = append(in,
		asm.LoadMem(asm.R1, asm.RFP, -40, asm.DWord), addRegister(asm.R1, 0),
		asm.LoadMem(asm.R1, asm.RFP, -48, asm.DWord), addRegister(asm.R1, 8),
		asm.StoreMem(asm.R0, 16, asm.R7, asm.DWord))
	return append(in, out()...)
}

// schedSwitch counts how often a process's threads are put off a processor.
func (m *table) schedSwitch() asm.Instructions {
	in := append(m.watched(), asm.StoreMem(asm.RFP, -4, asm.R8, asm.Word))
	in = append(in, lookup(m.Switches, -4, "out")...)
	return append(append(in, add(0)...), out()...)
}

// copyDatagram counts what the kernel itself says that it copies to a process.
func (m *table) copyDatagram(length int16) asm.Instructions {
	in := append(m.watched(), asm.StoreMem(asm.RFP, -4, asm.R8, asm.Word))
	in = append(in, lookup(m.Copied, -4, "out")...)
	in = append(in, add(0)...)
	in = append(in, asm.LoadMem(asm.R1, asm.R6, length, asm.Word), addRegister(asm.R1, 8))
	return append(in, out()...)
}

// startXmit counts packets by the device that they leave by, whoever sends them.
func (m *table) startXmit(name, length, segments int16) asm.Instructions {
	in := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.Mov.Imm(asm.R1, 0), asm.StoreMem(asm.RFP, -16, asm.R1, asm.DWord), asm.StoreMem(asm.RFP, -8, asm.R1, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.RFP), asm.Add.Imm(asm.R1, -16),
		asm.Mov.Imm(asm.R2, devName),
		// __data_loc: where the string is, in the lower half.
		asm.LoadMem(asm.R4, asm.R6, name, asm.Word), asm.And.Imm(asm.R4, 0xffff),
		asm.Mov.Reg(asm.R3, asm.R6), asm.Add.Reg(asm.R3, asm.R4),
		asm.FnProbeReadKernelStr.Call(),
	}
	in = append(in, lookup(m.Devices, -16, "new")...)
	in = append(in, asm.Ja.Label("known"))
	in = append(in, asm.Mov.Imm(asm.R1, 0).WithSymbol("new"))
	for at := int16(-48); at < -16; at += 8 {
		in = append(in, asm.StoreMem(asm.RFP, at, asm.R1, asm.DWord))
	}
	in = append(in,
		asm.LoadMapPtr(asm.R1, m.Devices.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -16),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, -48),
		asm.Mov.Imm(asm.R4, 1), // BPF_NOEXIST: another processor may be faster
		asm.FnMapUpdateElem.Call())
	in = append(in, lookup(m.Devices, -16, "out")...)
	known := add(0)
	known[0] = known[0].WithSymbol("known")
	in = append(in, known...)
	in = append(in, asm.LoadMem(asm.R7, asm.R6, length, asm.Word), asm.JLE.Imm(asm.R7, bigger, "out"))
	in = append(in, add(8)...)
	in = append(in,
		asm.LoadMem(asm.R1, asm.R6, segments, asm.Half),
		asm.JNE.Imm(asm.R1, 0, "whole"),
		asm.Mov.Imm(asm.R1, 1),
		addRegister(asm.R1, 16).WithSymbol("whole"),
		asm.LoadMem(asm.R1, asm.R0, 24, asm.DWord),
		asm.JGE.Reg(asm.R1, asm.R7, "out"),
		asm.StoreMem(asm.R0, 24, asm.R7, asm.DWord))
	return append(in, out()...)
}

// kfreeSKB counts dropped packets by the kernel's reason.
func (m *table) kfreeSKB(reason int16) asm.Instructions {
	in := asm.Instructions{
		asm.LoadMem(asm.R1, asm.R1, reason, asm.Word), asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word),
	}
	in = append(in, lookup(m.Drops, -4, "new")...)
	in = append(in, asm.Ja.Label("known"),
		asm.Mov.Imm(asm.R1, 0).WithSymbol("new"), asm.StoreMem(asm.RFP, -16, asm.R1, asm.DWord),
		asm.LoadMapPtr(asm.R1, m.Drops.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, -16),
		asm.Mov.Imm(asm.R4, 1),
		asm.FnMapUpdateElem.Call())
	in = append(in, lookup(m.Drops, -4, "out")...)
	known := add(0)
	known[0] = known[0].WithSymbol("known")
	return append(append(in, known...), out()...)
}
