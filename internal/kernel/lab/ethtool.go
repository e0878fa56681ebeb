package lab

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolValue is a command of ethtool and its argument (struct ethtool_value in
// linux/include/uapi/linux/ethtool.h).
type ethtoolValue struct {
	cmd, data uint32
}

// ethtoolRequest is a struct ifreq (linux/include/uapi/linux/if.h) whose union
// is a pointer, padded to the union's 24 bytes, the length of a struct ifmap
// where pointers have 8.
type ethtoolRequest struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [24 - unsafe.Sizeof(uintptr(0))]byte
}

// FinishChecksums takes the checksum offload from an interface. The kernel
// otherwise hands packets to a veth with their checksums unfinished, and uncut
// where they stand for a train of segments, since both ends are the same
// machine's. With it off, whatever the namespace sends by the interface is
// cut and summed before, so that a [Capture] on either end sees what a wire
// would carry. Kernels before 6.11 then refuse UDP sends that were to be cut,
// with EIO.
func (n *Namespace) FinishChecksums(iface string) error {
	if len(iface) >= unix.IFNAMSIZ {
		return fmt.Errorf("lab: %s: %q is no interface name", n.short, iface)
	}
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		req := ethtoolRequest{data: unsafe.Pointer(&ethtoolValue{cmd: unix.ETHTOOL_STXCSUM})}
		copy(req.name[:], iface)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("lab: %s: checksum offload of %s: %w", n.short, iface, err)
	}
	return nil
}
