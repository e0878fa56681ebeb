package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/tunnel/rawfd"
)

const (
	// vnetHdrLen is sizeof(struct virtio_net_hdr), which a TUN starts with
	// (tun_set_iff in linux/drivers/net/tun.c). Its numbers are in the machine's
	// byte order unless told otherwise.
	vnetHdrLen = 10
	// vnetBatch bounds how many packets one Read returns; each has a buffer of 64
	// KiB.
	vnetBatch = 32

	// VIRTIO_NET_HDR_F_NEEDS_CSUM and VIRTIO_NET_HDR_GSO_ECN
	// (linux/include/uapi/linux/virtio_net.h).
	vnetNeedsChecksum = 1
	vnetGSOECN        = 0x80

	// maxIovecs is UIO_MAXIOV (linux/include/uapi/linux/uio.h).
	maxIovecs = 1024
)

// vnetDevice is the Device of OpenVNet.
type vnetDevice struct {
	tunFile
	fd       *rawfd.FD // the tunFile's
	features Features

	// Of Read and of Write.
	rd struct {
		hdr [vnetHdrLen]byte
		iov [2]unix.Iovec
	}
	wr struct {
		hdr [vnetHdrLen]byte
		iov []unix.Iovec
	}
}

var _ StatsReader = (*vnetDevice)(nil)

// OpenVNet creates the TUN interface name and opens it with a virtio-net header,
// so that the kernel hands over and takes superpackets of up to 64 KiB, with
// unfinished checksums. What is said at OpenWater of the interface, its name, its
// namespace and the errors holds here as well. A kernel that cannot do it, or
// only without the offloads that Features says, is one whose error satisfies
// [errors.ErrUnsupported].
func OpenVNet(name string) (Device, error) { return OpenVNetQueues(name, 1) }

// OpenVNetQueues is OpenVNet with several queues, 1 to 256: the Device is a
// [MultiQueue] if there is more than one. The kernel puts all packets of a flow into
// one queue (tun_select_queue in linux/drivers/net/tun.c).
func OpenVNetQueues(name string, queues int) (Device, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if queues < 1 || queues > maxQueues {
		return nil, fmt.Errorf("tunnel: open %s: %d queues, not 1 to %d", name, queues, maxQueues)
	}
	m := &vnetQueues{}
	for i := range queues {
		d, err := openVNetQueue(name, i, queues)
		if err != nil {
			return nil, errors.Join(err, m.Close())
		}
		if m.all = append(m.all, d); i == 0 {
			m.vnetDevice = d
		}
	}
	if queues == 1 {
		return m.vnetDevice, nil
	}
	return m, nil
}

// openVNetQueue opens the i-th queue; the first one makes the interface.
func openVNetQueue(name string, i, queues int) (*vnetDevice, error) {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, explain(name, err)
	}
	features, err := attachVNet(fd, name, i > 0, queues > 1)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	// Each queue has a reader, and one socket of each family.
	raw, err := rawfd.New(fd, 3*queues)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("tunnel: open %s: %w", name, err)
	}
	d := &vnetDevice{fd: raw, features: features}
	d.init(name, raw)
	d.wr.iov = make([]unix.Iovec, 0, 128)
	return d, nil
}

// attachVNet makes the interface, or joins it, and asks for all offloads that there
// are.
func attachVNet(fd int, name string, join, several bool) (f Features, err error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return f, fmt.Errorf("tunnel: %w %q: %w", ErrName, name, err)
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if several {
		flags |= unix.IFF_MULTI_QUEUE
	}
	req.SetUint16(flags)
	if !join { // an interface that is there already is not taken over
		req.SetUint16(flags | unix.IFF_TUN_EXCL)
	}
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return f, fmt.Errorf("tunnel: open %s with a virtio-net header: %w (%w)", name, errors.ErrUnsupported, err)
		}
		return f, explain(name, err)
	}
	// A queue that joins gets the flags of the interface, whatever it asks for.
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err != nil {
		return f, fmt.Errorf("tunnel: open %s: TUNGETIFF: %w", name, err)
	}
	if got := req.Uint16(); req.Name() != name || got&flags != flags {
		return f, fmt.Errorf("tunnel: open %s: got %s with flags %#x, want %#x: %w", name, req.Name(), got, flags, ErrNameInUse)
	}
	f = Features{TCP4: true, TCP6: true, UDP: true, Checksum: true, ReadBatch: vnetBatch, MaxPacket: maxIP}
	const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso|unix.TUN_F_USO4|unix.TUN_F_USO6) == nil {
		return f, nil
	}
	f.UDP = false // before 6.2
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tso); err != nil {
		return f, fmt.Errorf("tunnel: open %s with offloads: %w (%w)", name, errors.ErrUnsupported, err)
	}
	return f, nil
}

func (d *vnetDevice) Features() Features { return d.features }

func (d *vnetDevice) Read(pkts []Packet) (n int, err error) {
	if len(pkts) == 0 {
		return 0, nil
	}
	fd, ok := d.fd.Enter()
	if !ok {
		return 0, d.result(os.ErrClosed, nil)
	}
	defer d.fd.Leave()
	pkts = pkts[:min(len(pkts), vnetBatch)]
	n, err = d.readSome(fd, pkts)
	if n == 0 && err == nil {
		n, err = d.awaitSome(fd, pkts)
	}
	d.rd.iov = [2]unix.Iovec{}
	if n > 0 {
		return n, nil // what ended the batch comes back with the next call if it lasts
	}
	return 0, err
}

// awaitSome waits for packets. A small one that wakes it is handed over at once:
// there was none before it, so that to look for a second one would mostly be for
// nothing, while somebody waits for the first.
func (d *vnetDevice) awaitSome(fd uintptr, pkts []Packet) (n int, err error) {
	for n == 0 && err == nil {
		if !d.fd.AwaitRead() {
			return 0, d.result(os.ErrClosed, nil)
		}
		if n, err = d.readSome(fd, pkts[:1]); n == 1 && len(pkts[0].Data) >= bulk {
			more := 0
			more, err = d.readSome(fd, pkts[1:])
			n += more
		}
	}
	return n, err
}

// bulk is how many bytes a packet has of which more are likely to follow.
const bulk = 1 << 12

// readSome reads without waiting until the queue is empty or the batch full.
func (d *vnetDevice) readSome(fd uintptr, pkts []Packet) (n int, err error) {
	for n < len(pkts) {
		p := &pkts[n]
		if len(p.Data) == 0 {
			return n, d.errPacket
		}
		room := min(len(p.Data), maxIP)
		d.rd.iov[0] = iovec(d.rd.hdr[:])
		d.rd.iov[1] = iovec(p.Data[:room])
		got, errno := vectored(unix.SYS_READV, fd, d.rd.iov[:])
		switch errno {
		case 0:
			// A TUN cuts what does not fit (tun_put_user) and does not tell; the
			// packet's own length does.
			got -= vnetHdrLen
			if got < 1 || !d.take(p, got, room) {
				d.tooLong.Add(1)
				continue
			}
			n++
		case unix.EINTR:
		case unix.EAGAIN:
			return n, nil
		case unix.EBADFD:
			return n, d.errGone
		default:
			return n, fmt.Errorf("tunnel: read %s: %w", d.name, errno)
		}
	}
	return n, nil
}

// take describes the packet that was read into p.Data; false if it was cut.
func (d *vnetDevice) take(p *Packet, n, room int) bool {
	if n == room && ipLen(p.Data[:n]) > n {
		return false
	}
	p.Data = p.Data[:n]
	p.Offload = decodeVNet(&d.rd.hdr)
	return true
}

// ipLen is how long an IP packet says that it is, 0 if that cannot be told.
func ipLen(b []byte) int {
	switch {
	case len(b) >= ipv4HeaderLen && b[0]>>4 == 4:
		return int(binary.BigEndian.Uint16(b[2:]))
	case len(b) >= ipv6HeaderLen && b[0]>>4 == 6:
		return ipv6HeaderLen + int(binary.BigEndian.Uint16(b[4:]))
	}
	return 0
}

// decodeVNet reads a struct virtio_net_hdr.
func decodeVNet(h *[vnetHdrLen]byte) (o Offload) {
	o.GSO = GSOType(h[1] &^ vnetGSOECN)
	o.ECN = h[1]&vnetGSOECN != 0
	if o.GSO != GSONone {
		o.HeaderLen = binary.NativeEndian.Uint16(h[2:])
		o.SegmentSize = binary.NativeEndian.Uint16(h[4:])
	}
	if h[0]&vnetNeedsChecksum != 0 {
		o.NeedsChecksum = true
		o.ChecksumStart = binary.NativeEndian.Uint16(h[6:])
		o.ChecksumOffset = binary.NativeEndian.Uint16(h[8:])
	}
	return o
}

// encodeVNet writes a struct virtio_net_hdr.
func encodeVNet(h *[vnetHdrLen]byte, o *Offload) {
	*h = [vnetHdrLen]byte{}
	h[1] = byte(o.GSO)
	if o.ECN {
		h[1] |= vnetGSOECN
	}
	binary.NativeEndian.PutUint16(h[2:], o.HeaderLen)
	binary.NativeEndian.PutUint16(h[4:], o.SegmentSize)
	if o.NeedsChecksum {
		h[0] = vnetNeedsChecksum
		binary.NativeEndian.PutUint16(h[6:], o.ChecksumStart)
		binary.NativeEndian.PutUint16(h[8:], o.ChecksumOffset)
	}
}

func (d *vnetDevice) Write(pkts []Packet) (n int, err error) {
	if len(pkts) == 0 {
		return 0, nil
	}
	fd, ok := d.fd.Enter()
	if !ok {
		return 0, d.result(os.ErrClosed, nil)
	}
	defer d.fd.Leave()
	for n < len(pkts) && err == nil {
		switch errno := d.writeOne(fd, &pkts[n]); errno {
		case nil:
			n++
		case unix.EINTR:
		default:
			err = errno
		}
	}
	return n, err
}

// writeOne never waits: a TUN takes or drops, and EAGAIN would only be a lack of
// memory.
func (d *vnetDevice) writeOne(fd uintptr, p *Packet) error {
	switch {
	case !d.features.Supports(p.Offload):
		return d.errOffload
	case !isIP(p, size(p)), len(p.Frags)+2 > maxIovecs:
		return d.errPacket
	}
	encodeVNet(&d.wr.hdr, &p.Offload)
	d.wr.iov = append(d.wr.iov[:0], iovec(d.wr.hdr[:]), iovec(p.Data))
	for _, f := range p.Frags {
		d.wr.iov = append(d.wr.iov, iovec(f))
	}
	_, errno := vectored(unix.SYS_WRITEV, fd, d.wr.iov)
	clear(d.wr.iov)
	switch errno {
	case 0:
		return nil
	case unix.EINTR:
		return unix.EINTR
	case unix.EIO:
		return d.errDown
	case unix.EBADFD:
		return d.errGone
	}
	return fmt.Errorf("tunnel: write %s: %w", d.name, errno)
}

func iovec(b []byte) (v unix.Iovec) {
	if len(b) > 0 {
		v.Base = &b[0]
		v.SetLen(len(b))
	}
	return v
}

// vectored is readv(2) or writev(2) on a non-blocking descriptor. Go's scheduler
// does not hear of the call, which never waits: telling it costs as much as a small
// packet does, and has it look after the thread.
func vectored(call, fd uintptr, list []unix.Iovec) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(call, fd, uintptr(unsafe.Pointer(&list[0])), uintptr(len(list)))
	runtime.KeepAlive(list)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
