package tunnel

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// waterBatch bounds how many packets one Read returns. Each costs a system
// call of its own, so a large batch saves nothing in front of the device; it
// only lets what is behind it send them together.
const waterBatch = 64

// waterDevice is the Device of OpenWater.
type waterDevice struct {
	tunFile
	conn syscall.RawConn
	room int // Features.MaxPacket

	// Made once, so that no call allocates.
	onReadable func(fd uintptr) bool
	onWrite    func(fd uintptr) bool

	// The call of Read that is under way, for onReadable.
	rd struct {
		pkts     []Packet
		n        int
		err      error
		iov      [2][]byte
		overflow [1]byte
	}
	// The call of Write that is under way, for onWrite.
	wr struct {
		pkts []Packet
		n    int
		err  error
		iov  [][]byte
	}
}

var _ StatsReader = (*waterDevice)(nil)

func openWater(name string, maxPacket int) (Device, error) {
	// water leaves its file descriptor open when it fails, so it is called only
	// when the kernel has said that it will not.
	if err := probe(name); err != nil {
		return nil, err
	}
	// water opens without O_CLOEXEC: no fork may come between that and the
	// flag, or a child keeps the interface alive.
	syscall.ForkLock.RLock()
	ifce, err := water.New(water.Config{
		DeviceType:             water.TUN,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name},
	})
	if err != nil {
		syscall.ForkLock.RUnlock()
		return nil, explain(name, err)
	}
	file, ok := ifce.ReadWriteCloser.(*os.File)
	if !ok {
		syscall.ForkLock.RUnlock()
		return nil, errors.Join(
			fmt.Errorf("tunnel: open %s: water returned a %T, not a file", name, ifce.ReadWriteCloser),
			ifce.Close())
	}
	conn, err := file.SyscallConn()
	if err == nil {
		var fdErr error
		err = conn.Control(func(fd uintptr) {
			syscall.CloseOnExec(int(fd))
			fdErr = checkAttached(int(fd), name)
		})
		if err == nil {
			err = fdErr
		}
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tunnel: open %s: %w", name, err), file.Close())
	}
	// Only a file in the runtime's poller has deadlines, and only such a one can be
	// closed under a waiting Read.
	if err := file.SetReadDeadline(time.Time{}); err != nil {
		return nil, errors.Join(fmt.Errorf("tunnel: open %s: %w", name, err), file.Close())
	}
	d := &waterDevice{room: maxPacket, conn: conn}
	d.init(name, polledFile{file, conn})
	d.onReadable = d.readSome
	d.onWrite = d.writeAll
	d.wr.iov = make([][]byte, 0, 8)
	return d, nil
}

// polledFile is a file in the runtime's poller.
type polledFile struct {
	*os.File
	conn syscall.RawConn
}

func (f polledFile) Control(fn func(fd int) error) (err error) {
	if closed := f.conn.Control(func(fd uintptr) { err = fn(int(fd)) }); closed != nil {
		return closed
	}
	return err
}

// probe asks the kernel whether name could be created here, without doing it:
// TUNSETIFF with IFF_TUN_EXCL and neither IFF_TUN nor IFF_TAP looks for the
// name, then for the privilege, and then finds that there is nothing to make
// (tun_set_iff, linux/drivers/net/tun.c).
func probe(name string) error {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return explain(name, err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("tunnel: %w %q: %w", ErrName, name, err)
	}
	req.SetUint16(unix.IFF_TUN_EXCL)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	if errors.Is(err, unix.EINVAL) || err == nil {
		return nil
	}
	return explain(name, err)
}

// checkAttached verifies that fd has become what was asked for: an interface
// that appeared after the probe shows by other flags.
func checkAttached(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err != nil {
		return os.NewSyscallError("ioctl TUNGETIFF", err)
	}
	const want = unix.IFF_TUN | unix.IFF_NO_PI
	if got := req.Uint16(); got != want || req.Name() != name {
		return fmt.Errorf("%w: got %s with flags %#x, want %#x", ErrNameInUse, req.Name(), got, want)
	}
	return nil
}

// explain turns an error of opening the device into one line that says what
// would help.
func explain(name string, err error) error {
	say := func(kind error, cure string) error {
		return fmt.Errorf("tunnel: open %s: %w: %s (%w)", name, kind, cure, err)
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO),
		errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENOTDIR):
		return say(ErrNoTUN, tunPath+" is missing or is no TUN device: load it with 'modprobe tun', or pass it to the container (docker run --device "+tunPath+")")
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return say(ErrPermission, "needs CAP_NET_ADMIN and access to "+tunPath+": run as root, 'setcap cap_net_admin+ep' the program, AmbientCapabilities=CAP_NET_ADMIN in its unit, or docker run --cap-add NET_ADMIN --device "+tunPath)
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		return say(ErrNameInUse, "an interface of that name exists: choose another name or delete it with 'ip link delete "+name+"'")
	}
	return fmt.Errorf("tunnel: open %s: %w", name, err)
}

func (d *waterDevice) Features() Features {
	return Features{ReadBatch: waterBatch, MaxPacket: d.room}
}

func (d *waterDevice) Read(pkts []Packet) (int, error) {
	if len(pkts) == 0 {
		return 0, nil
	}
	d.rd.pkts, d.rd.n, d.rd.err = pkts[:min(len(pkts), waterBatch)], 0, nil
	err := d.conn.Read(d.onReadable)
	n := d.rd.n
	if n == 0 {
		err = d.result(err, d.rd.err)
	} else {
		err = nil // what ended the batch comes back with the next call if it lasts
	}
	// The caller's buffers are not ours any longer: nothing keeps them alive.
	d.rd.pkts, d.rd.iov = nil, [2][]byte{}
	return n, err
}

// readSome reads without waiting until the queue is empty or the batch full.
// It returns false to be called again when there is something to read.
func (d *waterDevice) readSome(fd uintptr) bool {
	r := &d.rd
	// A TUN cuts a packet to the room that there is and does not tell
	// (tun_put_user): one byte more shows that it would not have fitted.
	r.iov[1] = r.overflow[:]
	for r.n < len(r.pkts) {
		p := &r.pkts[r.n]
		room := min(len(p.Data), d.room)
		r.iov[0] = p.Data[:room]
		n, err := unix.Readv(int(fd), r.iov[:])
		switch err {
		case nil:
			if n > room {
				d.tooLong.Add(1)
				continue
			}
			p.Data = p.Data[:n]
			p.Offload = Offload{}
			r.n++
		case unix.EINTR:
		case unix.EAGAIN:
			return r.n > 0
		case unix.EBADFD:
			r.err = d.errGone
			return true
		default:
			r.err = fmt.Errorf("tunnel: read %s: %w", d.name, err)
			return true
		}
	}
	return true
}

func (d *waterDevice) Write(pkts []Packet) (int, error) {
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

// writeAll writes until a packet is refused. It never asks to wait: a TUN
// takes or drops, and EAGAIN would only be a lack of memory.
func (d *waterDevice) writeAll(fd uintptr) bool {
	w := &d.wr
	for w.n < len(w.pkts) {
		p := &w.pkts[w.n]
		if !(Features{}).Supports(p.Offload) {
			w.err = d.errOffload
			return true
		}
		if !isIP(p, size(p)) {
			w.err = d.errPacket
			return true
		}
		var err error
		if len(p.Frags) == 0 {
			_, err = unix.Write(int(fd), p.Data)
		} else {
			w.iov = append(append(w.iov[:0], p.Data), p.Frags...)
			_, err = unix.Writev(int(fd), w.iov)
			clear(w.iov)
		}
		switch err {
		case nil:
			w.n++
		case unix.EINTR:
		case unix.EIO:
			w.err = d.errDown
			return true
		case unix.EBADFD:
			w.err = d.errGone
			return true
		default:
			w.err = fmt.Errorf("tunnel: write %s: %w", d.name, err)
			return true
		}
	}
	return true
}

// ignoringEINTR repeats f while a signal interrupts it.
func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}
