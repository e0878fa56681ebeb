// Package tunnel gives access to TUN devices: batches of IP packets together
// with the offload metadata that the kernel attaches to them.
//
// A [Device] is the seam between overlayd and whatever hands over inner IP
// packets: the TUN device of [OpenVNet], which takes and hands over superpackets,
// the portable one of [OpenWater], the in-memory device of [NewMemory], or a
// caller's own. [Segmenter] and [Coalescer] cut and join superpackets.
//
// # Packets and superpackets
//
// A [Packet] is one IP packet, or, when its [Offload] says so, one superpacket:
// a single TCP or UDP packet of up to 64 KiB that stands for a train of
// segments, as the kernel passes it through a device that was opened with a
// virtio-net header (linux/include/uapi/linux/virtio_net.h). A device that
// offers no offloads only ever reads packets with a zero Offload and refuses
// to write superpackets and unfinished checksums.
//
// # Devices of one's own
//
// Package tunneltest holds the contract of [Device] as a test suite. A device
// that drops packets itself should say how many: see [StatsReader].
package tunnel

import "errors"

// What Read and Write tell of packets and devices. All come wrapped: use
// [errors.Is].
var (
	// ErrOffload is returned by Write for a packet whose Offload the device
	// does not support.
	ErrOffload = errors.New("offload not supported by this device")
	// ErrPacket is returned by Write for bytes that are no IP packet: the
	// version is neither 4 nor 6, or there are none, or more than 65,535.
	ErrPacket = errors.New("not an IP packet")
	// ErrDown is returned by Write while the interface is down. Read waits
	// until it is up.
	ErrDown = errors.New("interface is down")
	// ErrGone is returned by Read and Write once somebody else has deleted the
	// interface. It lasts: only Close is left to do.
	ErrGone = errors.New("interface is gone")
)

// GSOType says what kind of segments a superpacket stands for. The values are
// those of VIRTIO_NET_HDR_GSO_* (linux/include/uapi/linux/virtio_net.h).
type GSOType uint8

// The kinds of superpackets.
const (
	GSONone GSOType = 0 // an ordinary packet
	GSOTCP4 GSOType = 1 // TCP over IPv4
	GSOTCP6 GSOType = 4 // TCP over IPv6
	GSOUDP  GSOType = 5 // UDP over IPv4 or IPv6, one datagram per segment (USO)
)

// Offload is what a device knows about a packet besides its bytes: the
// fields of struct virtio_net_hdr in host byte order. The zero value
// describes an ordinary packet with finished checksums.
type Offload struct {
	// GSO is the kind of superpacket, GSONone for an ordinary packet.
	GSO GSOType
	// ECN is set on a TCP superpacket whose first segment carries CWR
	// (VIRTIO_NET_HDR_GSO_ECN).
	ECN bool
	// NeedsChecksum means that the transport checksum holds only the
	// pseudo-header's sum: whoever sends the packet on must sum from byte
	// ChecksumStart to the end of the packet and store the result
	// ChecksumOffset bytes after ChecksumStart (VIRTIO_NET_HDR_F_NEEDS_CSUM).
	NeedsChecksum bool
	// SegmentSize is the number of payload bytes per segment; the last
	// segment may be shorter. Zero when GSO is GSONone.
	SegmentSize uint16
	// HeaderLen is the length of the headers in front of the payload. It is
	// only a hint when read from a kernel: recompute it from the packet.
	HeaderLen uint16
	// ChecksumStart and ChecksumOffset are valid when NeedsChecksum is set.
	ChecksumStart, ChecksumOffset uint16
}

// Packet is one IP packet or superpacket. Its bytes are Data followed by each
// of Frags, the way an skb has linear data and fragments: a writer can put a
// header of its own in front of payload that stays where it was received.
type Packet struct {
	// Data starts with the IP header, which lies in it completely, together
	// with the transport header of a superpacket.
	Data []byte
	// Frags are further pieces, in order. Read never uses them.
	Frags [][]byte
	// Offload describes the packet.
	Offload Offload
}

// Features says what a device can do.
type Features struct {
	// TCP4, TCP6 and UDP: Read may return, and Write accepts, superpackets of
	// this kind.
	TCP4, TCP6, UDP bool
	// Checksum: Read may return, and Write accepts, packets with NeedsChecksum.
	Checksum bool
	// ReadBatch is the largest number of packets that one Read returns, at
	// least 1.
	ReadBatch int
	// MaxPacket is the largest packet, in bytes, that Read returns, however
	// large the buffer: every buffer given to Read should have that length. At
	// most 65,535.
	MaxPacket int
}

// Supports tells whether Write of a device with these features accepts a
// packet that o describes. A description that contradicts itself, such as
// segments of no size or ECN without TCP, is supported by none.
func (f Features) Supports(o Offload) bool {
	if o.NeedsChecksum && !f.Checksum {
		return false
	}
	switch o.GSO {
	case GSONone:
		return o.SegmentSize == 0 && !o.ECN
	case GSOTCP4:
		return f.TCP4 && o.SegmentSize > 0
	case GSOTCP6:
		return f.TCP6 && o.SegmentSize > 0
	case GSOUDP:
		return f.UDP && o.SegmentSize > 0 && !o.ECN
	}
	return false
}

// Device reads and writes inner IP packets.
//
// One goroutine may call Read while another calls Write; neither may be called
// by two goroutines at once. Close may be called at any time, by anyone, more
// than once.
type Device interface {
	// Name is the kernel's name of the interface, or a label if there is none.
	Name() string

	// Features does not change over the life of a device.
	Features() Features

	// Read waits for at least one packet and returns how many it has read,
	// as many as are there without waiting again, at most len(pkts). With no
	// pkts it returns at once.
	//
	// The caller owns the packets and their buffers: pkts[i].Data is a buffer
	// with len(Data) bytes of room on entry, and is resliced to the packet's
	// length when Read has filled it; Offload is overwritten, never merged;
	// Frags must be nil and stays so. A packet that is longer than its buffer
	// is dropped, never cut, and Read goes on; bytes behind a buffer's length
	// are not touched, whatever its capacity. The Data of packets from pkts[n]
	// on keeps its length, not its content.
	//
	// The error is nil whenever n > 0. After Close it is one for which
	// errors.Is(err, os.ErrClosed) holds; any other error is of that call only
	// unless it is returned again.
	Read(pkts []Packet) (n int, err error)

	// Write hands packets over in order. It does not keep or change them after
	// it has returned. It returns how many it has consumed: when n < len(pkts),
	// pkts[n] was refused with err and the caller may go on behind it; when
	// n == len(pkts), err is nil. Write never waits for room: consumed is not
	// delivered, and what stands behind the device drops what it cannot queue.
	// After Close the error is one for which errors.Is(err, os.ErrClosed) holds.
	Write(pkts []Packet) (n int, err error)

	// Close ends the device and wakes a Read that waits. A kernel interface
	// that was made by opening the device is gone when Close has returned, also
	// when it was another call that closed it. All calls return the same.
	Close() error
}

// MultiQueue is a Device with several queues. The packets of one flow come out of
// one queue, in order, as long as nothing else is asked of the kernel.
type MultiQueue interface {
	Device
	// Queues returns the queues, at least two, each of which one goroutine may read
	// and another one write at the same time. Read and Write of the MultiQueue itself
	// are those of the first. Closing one closes all.
	Queues() []Device
}
