package tunnel

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const tunPath = "/dev/net/tun"

// tunFile is what the devices on a file of /dev/net/tun have in common.
type tunFile struct {
	name string
	file *os.File
	conn syscall.RawConn

	// Made once, so that no call allocates.
	errDown    error
	errGone    error
	errPacket  error
	errOffload error

	tooLong atomic.Uint64

	closing   atomic.Bool
	closeOnce sync.Once
	closeErr  error
}

// init takes over a file that has become the interface name, and closes it if it
// is of no use.
func (d *tunFile) init(name string, file *os.File) (err error) {
	d.name, d.file = name, file
	d.errDown = fmt.Errorf("tunnel: write %s: %w (%w)", name, ErrDown, unix.EIO)
	d.errGone = fmt.Errorf("tunnel: %s: %w, deleted by somebody else (%w)", name, ErrGone, unix.EBADFD)
	d.errPacket = fmt.Errorf("tunnel: write %s: %w", name, ErrPacket)
	d.errOffload = fmt.Errorf("tunnel: write %s: %w", name, ErrOffload)
	d.conn, err = file.SyscallConn()
	if err == nil {
		// Only a file in the runtime's poller has deadlines, and only such a one
		// can be closed under a waiting Read.
		err = file.SetReadDeadline(time.Time{})
	}
	if err != nil {
		return errors.Join(fmt.Errorf("tunnel: open %s: %w", name, err), file.Close())
	}
	return nil
}

func (d *tunFile) Name() string { return d.name }

func (d *tunFile) Stats() Stats { return Stats{TooLong: d.tooLong.Load()} }

// result is the error of a call: that of the file if there is one, which after
// Close is always that it was closed, else that of the packets.
func (d *tunFile) result(file, packets error) error {
	switch {
	case d.closing.Load():
		return fmt.Errorf("tunnel: %s: %w", d.name, os.ErrClosed)
	case file != nil && d.gone():
		return d.errGone
	case file != nil:
		return fmt.Errorf("tunnel: %s: %w", d.name, file)
	}
	return packets
}

// gone asks the kernel whether the descriptor has lost its interface. The
// runtime's poller, which learns of it first, only says that there is nothing
// left to poll.
func (d *tunFile) gone() bool {
	var gone bool
	err := d.conn.Control(func(fd uintptr) {
		req, err := unix.NewIfreq(d.name)
		if err == nil {
			err = unix.IoctlIfreq(int(fd), unix.TUNGETIFF, req)
		}
		gone = errors.Is(err, unix.EBADFD)
	})
	return err == nil && gone
}

func (d *tunFile) Close() error {
	d.closeOnce.Do(func() {
		d.closing.Store(true)
		// os.File waits for a call that is under way to let go of the
		// descriptor, and the kernel takes the interface down within close(2).
		if err := d.file.Close(); err != nil {
			d.closeErr = fmt.Errorf("tunnel: close %s: %w", d.name, err)
		}
	})
	return d.closeErr
}
