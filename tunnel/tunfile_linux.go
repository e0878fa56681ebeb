package tunnel

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const tunPath = "/dev/net/tun"

// tunFile is what the devices on a file of /dev/net/tun have in common.
type tunFile struct {
	name string
	file descriptor

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

// descriptor is the open file, however its callers wait for it.
type descriptor interface {
	// Control calls fn with the descriptor, unless it is closed.
	Control(fn func(fd int) error) error
	// Close waits for a call that is under way to let go of the descriptor.
	Close() error
}

// init takes over a file that has become the interface name.
func (d *tunFile) init(name string, file descriptor) {
	d.name, d.file = name, file
	d.errDown = fmt.Errorf("tunnel: write %s: %w (%w)", name, ErrDown, unix.EIO)
	d.errGone = fmt.Errorf("tunnel: %s: %w, deleted by somebody else (%w)", name, ErrGone, unix.EBADFD)
	d.errPacket = fmt.Errorf("tunnel: write %s: %w", name, ErrPacket)
	d.errOffload = fmt.Errorf("tunnel: write %s: %w", name, ErrOffload)
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
	err := d.file.Control(func(fd int) error {
		req, err := unix.NewIfreq(d.name)
		if err == nil {
			err = unix.IoctlIfreq(fd, unix.TUNGETIFF, req)
		}
		return err
	})
	return errors.Is(err, unix.EBADFD)
}

func (d *tunFile) Close() error {
	d.closeOnce.Do(func() {
		d.closing.Store(true)
		// The kernel takes the interface down within close(2).
		if err := d.file.Close(); err != nil {
			d.closeErr = fmt.Errorf("tunnel: close %s: %w", d.name, err)
		}
	})
	return d.closeErr
}
