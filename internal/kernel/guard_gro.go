package kernel

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A VXLAN device joins the packets of one flow once more when they have come out
// of VXLAN (gro_cells_receive in linux/net/core/gro_cells.c), before anybody has
// looked at them, by their inner headers alone and whatever their marks are
// (gro_list_prepare in linux/net/core/gro.c). So what one peer sends as another
// would be taken into a packet of that other, and pass in it. UDP has no numbers
// that would have to be guessed for that. Therefore receive offload is off on
// these devices. What the interface below joins are whole VXLAN packets of one
// sender, and that stays.

// ethtoolValue is a command of ethtool and its argument (struct ethtool_value in
// linux/include/uapi/linux/ethtool.h).
type ethtoolValue struct{ cmd, data uint32 }

// ethtoolRequest is a struct ifreq (linux/include/uapi/linux/if.h) whose union
// is a pointer, padded to the union's 24 bytes.
type ethtoolRequest struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [24 - unsafe.Sizeof(uintptr(0))]byte
}

// ethtool runs a command of ethtool on a device of the calling thread's
// namespace.
func ethtool(dev string, v *ethtoolValue) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req := ethtoolRequest{data: unsafe.Pointer(v)}
	copy(req.name[:unix.IFNAMSIZ-1], dev)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	return nil
}

// joins tells whether one of the devices that exist joins packets.
func joins(devs []string) (bool, error) {
	for _, dev := range devs {
		v := ethtoolValue{cmd: unix.ETHTOOL_GGRO}
		err := ethtool(dev, &v)
		if errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil || v.data != 0 {
			return true, deviceFailed(dev, err)
		}
	}
	return false, nil
}

// joinNothing switches receive offload off on those of the devices that exist.
func joinNothing(devs []string) error {
	for _, dev := range devs {
		on, err := joins([]string{dev})
		if err == nil && on {
			err = deviceFailed(dev, ethtool(dev, &ethtoolValue{cmd: unix.ETHTOOL_SGRO}))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func deviceFailed(dev string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("device %s: its receive offload (ethtool -K %s gro off): %w", dev, dev, err)
}
