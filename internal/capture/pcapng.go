package capture

import (
	"encoding/binary"
	"errors"
	"io"
	"time"
)

// pcapng (draft-ietf-opsawg-pcapng): the blocks, section 4, and their options. It is
// written here since google/gopacket's writer knows no options of packets.
const (
	blockSection    = 0x0a0d0d0a
	blockInterface  = 1
	blockStatistics = 5
	blockPacket     = 6 // Enhanced Packet Block
	byteOrder       = 0x1a2b3c4d

	optEnd             = 0
	optComment         = 1 // of any block
	optUserAppl        = 4 // of a section
	optIfName          = 2
	optIfDescription   = 3
	optIfTimestampRes  = 9
	optPacketFlags     = 2
	optStatsIfReceived = 4
	optStatsIfDropped  = 5

	flagInbound, flagOutbound = 1, 2

	linkTypeRaw = 101 // IPv4 or IPv6, by the first nibble (LINKTYPE_RAW)
	nanoseconds = 9   // 10^-9 s
)

// pcapngWriter writes blocks, each with one call of Write, in little endian.
type pcapngWriter struct {
	w    io.Writer
	b    []byte
	left int64 // bytes that may be written; 0: any number
}

// errFull: the file is as large as it may be.
var errFull = errors.New("capture: no more room")

func (p *pcapngWriter) begin(typ uint32) {
	p.b = binary.LittleEndian.AppendUint32(p.b[:0], typ)
	p.b = binary.LittleEndian.AppendUint32(p.b, 0) // the length, set by end
}

func (p *pcapngWriter) u16(v uint16) { p.b = binary.LittleEndian.AppendUint16(p.b, v) }
func (p *pcapngWriter) u32(v uint32) { p.b = binary.LittleEndian.AppendUint32(p.b, v) }
func (p *pcapngWriter) u64(v uint64) { p.b = binary.LittleEndian.AppendUint64(p.b, v) }

// padded appends bytes and fills them up to a multiple of 4.
func (p *pcapngWriter) padded(v []byte) {
	p.b = append(p.b, v...)
	for len(p.b)%4 != 0 {
		p.b = append(p.b, 0)
	}
}

func (p *pcapngWriter) option(code uint16, v []byte) {
	p.u16(code)
	p.u16(uint16(len(v)))
	p.padded(v)
}

// timestamp is in nanoseconds: the high word first (section 4.3).
func (p *pcapngWriter) timestamp(t time.Time) {
	ns := uint64(t.UnixNano())
	p.u32(uint32(ns >> 32))
	p.u32(uint32(ns))
}

func (p *pcapngWriter) end() error {
	p.option(optEnd, nil)
	n := uint32(len(p.b) + 4)
	p.u32(n)
	binary.LittleEndian.PutUint32(p.b[4:], n)
	if p.left > 0 {
		if int64(n) >= p.left {
			return errFull
		}
		p.left -= int64(n)
	}
	_, err := p.w.Write(p.b)
	return err
}

func (p *pcapngWriter) section(application string) error {
	p.begin(blockSection)
	p.u32(byteOrder)
	p.u16(1) // version 1.0
	p.u16(0)
	p.u64(1<<64 - 1) // of a length that is not known
	p.option(optUserAppl, []byte(application))
	return p.end()
}

func (p *pcapngWriter) iface(name, description string) error {
	p.begin(blockInterface)
	p.u16(linkTypeRaw)
	p.u16(0)
	p.u32(0) // no limit to the length of a packet
	p.option(optIfName, []byte(name))
	p.option(optIfDescription, []byte(description))
	p.option(optIfTimestampRes, []byte{nanoseconds})
	return p.end()
}

func (p *pcapngWriter) packet(iface uint32, t time.Time, outbound bool, b []byte, comment string) error {
	p.begin(blockPacket)
	p.u32(iface)
	p.timestamp(t)
	p.u32(uint32(len(b)))
	p.u32(uint32(len(b)))
	p.padded(b)
	if comment != "" {
		p.option(optComment, []byte(comment))
	}
	flags := uint32(flagInbound)
	if outbound {
		flags = flagOutbound
	}
	p.option(optPacketFlags, binary.LittleEndian.AppendUint32(nil, flags))
	return p.end()
}

// statisticsLen is the length of such a block.
const statisticsLen = 12 + 12 + 2*(4+8) + 4

func (p *pcapngWriter) statistics(iface uint32, t time.Time, received, missed uint64) error {
	p.begin(blockStatistics)
	p.u32(iface)
	p.timestamp(t)
	p.option(optStatsIfReceived, binary.LittleEndian.AppendUint64(nil, received))
	p.option(optStatsIfDropped, binary.LittleEndian.AppendUint64(nil, missed))
	return p.end()
}
