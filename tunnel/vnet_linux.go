package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
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
	features Features

	// Made once, so that no call allocates.
	onReadable func(fd uintptr) bool
	onWrite    func(fd uintptr) bool

	// The call of Read that is under way.
	rd struct {
		pkts []Packet
		n    int
		err  error
		hdr  [vnetHdrLen]byte
		iov  [2]unix.Iovec
	}
	// The call of Write that is under way.
	wr struct {
		pkts []Packet
		n    int
		err  error
		hdr  [vnetHdrLen]byte
		iov  []unix.Iovec
	}
}

var _ StatsReader = (*vnetDevice)(nil)

// OpenVNet creates the TUN interface name and opens it with a virtio-net header,
// so that the kernel hands over and takes superpackets of up to 64 KiB, with
// unfinished checksums. What is said at OpenWater of the interface, its name, its
// namespace and the errors holds here as well. A kernel that cannot do it, or
// only without the offloads that Features says, is one whose error satisfies
// [errors.ErrUnsupported].
func OpenVNet(name string) (Device, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, explain(name, err)
	}
	features, err := attachVNet(fd, name)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	// Behind TUNSETIFF and non-blocking, so that the runtime's poller takes it.
	d := &vnetDevice{features: features}
	if err := d.init(name, os.NewFile(uintptr(fd), tunPath)); err != nil {
		return nil, err
	}
	d.onReadable, d.onWrite = d.readSome, d.writeAll
	d.wr.iov = make([]unix.Iovec, 0, 128)
	return d, nil
}

// attachVNet makes the interface and asks for all offloads that there are.
func attachVNet(fd int, name string) (f Features, err error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return f, fmt.Errorf("tunnel: %w %q: %w", ErrName, name, err)
	}
	// EXCL: an interface that is there already is not taken over.
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return f, fmt.Errorf("tunnel: open %s with a virtio-net header: %w (%w)", name, errors.ErrUnsupported, err)
		}
		return f, explain(name, err)
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

func (d *vnetDevice) Read(pkts []Packet) (int, error) {
	if len(pkts) == 0 {
		return 0, nil
	}
	d.rd.pkts, d.rd.n, d.rd.err = pkts[:min(len(pkts), vnetBatch)], 0, nil
	err := d.conn.Read(d.onReadable)
	n := d.rd.n
	if n == 0 {
		err = d.result(err, d.rd.err)
	} else {
		err = nil // what ended the batch comes back with the next call if it lasts
	}
	d.rd.pkts, d.rd.iov = nil, [2]unix.Iovec{}
	return n, err
}

// readSome reads without waiting until the queue is empty or the batch full.
func (d *vnetDevice) readSome(fd uintptr) bool {
	r := &d.rd
	r.iov[0].Base = &r.hdr[0]
	r.iov[0].SetLen(vnetHdrLen)
	for r.n < len(r.pkts) {
		p := &r.pkts[r.n]
		if len(p.Data) == 0 {
			r.err = d.errPacket
			return true
		}
		room := min(len(p.Data), maxIP)
		r.iov[1].Base = &p.Data[0]
		r.iov[1].SetLen(room)
		n, errno := iov(unix.SYS_READV, fd, r.iov[:])
		switch errno {
		case 0:
			// A TUN cuts what does not fit (tun_put_user) and does not tell; the
			// packet's own length does.
			n -= vnetHdrLen
			if n < 1 || !d.take(p, n, room) {
				d.tooLong.Add(1)
				continue
			}
			r.n++
		case unix.EINTR:
		case unix.EAGAIN:
			return r.n > 0
		case unix.EBADFD:
			r.err = d.errGone
			return true
		default:
			r.err = fmt.Errorf("tunnel: read %s: %w", d.name, errno)
			return true
		}
	}
	return true
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

func (d *vnetDevice) Write(pkts []Packet) (int, error) {
	if len(pkts) == 0 {
		return 0, nil
	}
	d.wr.pkts, d.wr.n, d.wr.err = pkts, 0, nil
	err := d.conn.Write(d.onWrite)
	n := d.wr.n
	if n == len(pkts) {
		err = nil
	} else {
		err = d.result(err, d.wr.err)
	}
	d.wr.pkts = nil
	return n, err
}

// writeAll writes until a packet is refused. It never asks to wait: a TUN takes
// or drops, and EAGAIN would only be a lack of memory.
func (d *vnetDevice) writeAll(fd uintptr) bool {
	w := &d.wr
	for w.n < len(w.pkts) {
		p := &w.pkts[w.n]
		if !d.features.Supports(p.Offload) {
			w.err = d.errOffload
			return true
		}
		if !isIP(p, size(p)) || len(p.Frags)+2 > maxIovecs {
			w.err = d.errPacket
			return true
		}
		encodeVNet(&w.hdr, &p.Offload)
		w.iov = appendIovec(appendIovec(w.iov[:0], w.hdr[:]), p.Data)
		for _, f := range p.Frags {
			w.iov = appendIovec(w.iov, f)
		}
		_, errno := iov(unix.SYS_WRITEV, fd, w.iov)
		clear(w.iov)
		switch errno {
		case 0:
			w.n++
		case unix.EINTR:
		case unix.EIO:
			w.err = d.errDown
			return true
		case unix.EBADFD:
			w.err = d.errGone
			return true
		default:
			w.err = fmt.Errorf("tunnel: write %s: %w", d.name, errno)
			return true
		}
	}
	return true
}

func appendIovec(list []unix.Iovec, b []byte) []unix.Iovec {
	if len(b) == 0 {
		return list
	}
	v := unix.Iovec{Base: &b[0]}
	v.SetLen(len(b))
	return append(list, v)
}

// iov is readv(2) or writev(2) without the slices of slices that unix.Readv makes
// iovecs of.
func iov(call, fd uintptr, list []unix.Iovec) (int, unix.Errno) {
	n, _, errno := unix.Syscall(call, fd, uintptr(unsafe.Pointer(&list[0])), uintptr(len(list)))
	runtime.KeepAlive(list)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
