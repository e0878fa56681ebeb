package tunnel

import (
	"errors"
	"fmt"
)

// Why a TUN device could not be opened. All come wrapped: use [errors.Is].
var (
	// ErrNoTUN says that /dev/net/tun is missing, or is not the TUN device.
	ErrNoTUN = errors.New("no TUN device")
	// ErrPermission says that CAP_NET_ADMIN or access to /dev/net/tun is missing.
	ErrPermission = errors.New("no permission")
	// ErrNameInUse says that there is an interface of that name, of whatever
	// kind: a persistent TUN of the same name is not taken over either.
	ErrNameInUse = errors.New("name in use")
	// ErrName says that no interface can have that name.
	ErrName = errors.New("bad interface name")
)

const (
	// maxName is the longest name of an interface: IFNAMSIZ-1
	// (linux/include/uapi/linux/if.h).
	maxName = 15
	// minMaxPacket is the smallest MTU of an IPv4 link (RFC 791, section 3.2)
	// and of a TUN (MIN_MTU in linux/drivers/net/tun.c).
	minMaxPacket = 68
)

// OpenWater creates the TUN interface name and opens it by way of
// github.com/songgao/water: one packet per system call, no offloads, on every
// Linux. The interface is down and has no address; its MTU is 1500 until
// somebody sets it, and packets longer than maxPacket (68 to 65,535 bytes) are
// dropped when read. It lives until Close, or until the process ends.
//
// The interface belongs to the network namespace of the calling thread. The
// name is 1 to 15 printable ASCII characters without space, '/', ':' and '%',
// and must be free. An error is one of [ErrName], [ErrNoTUN], [ErrPermission]
// and [ErrNameInUse], or one of the system's that nothing above explains; on
// systems other than Linux it is [errors.ErrUnsupported].
//
// That the name is free is checked before it is taken, since water cannot ask
// for a new interface only. Somebody who in the microseconds between makes a
// persistent TUN with the same name and the same flags finds it taken over.
//
// Read returns [ErrGone] when the interface is deleted under the device. Write
// returns [ErrDown] while it is down; a packet that the kernel has no memory
// for is refused with unix.ENOBUFS, unix.ENOMEM or unix.EAGAIN, and waiting
// would not help more than dropping it. Frags are written by writev without
// being joined; more than seven of them cost an allocation. The device is also
// a [StatsReader].
func OpenWater(name string, maxPacket int) (Device, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if maxPacket < minMaxPacket || maxPacket > maxIP {
		return nil, fmt.Errorf("tunnel: open %s: largest packet of %d bytes: want %d to %d",
			name, maxPacket, minMaxPacket, maxIP)
	}
	return openWater(name, maxPacket)
}

// checkName follows dev_valid_name (linux/net/core/dev.c) and adds what
// surprises: '%' makes the kernel choose a number, "all" and "default" are
// taken in /proc/sys/net/*/conf, and beyond ASCII logs and tools disagree.
func checkName(name string) error {
	bad := func(why string) error {
		return fmt.Errorf("tunnel: %w %q: %s", ErrName, name, why)
	}
	switch {
	case name == "":
		return bad("want 1 to 15 characters")
	case len(name) > maxName:
		return bad(fmt.Sprintf("%d bytes long, want at most %d", len(name), maxName))
	case name == "." || name == ".." || name == "all" || name == "default":
		return bad("reserved, choose another one")
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; c <= ' ' || c > '~' || c == '/' || c == ':' || c == '%' {
			return bad("want printable ASCII without space, '/', ':' and '%'")
		}
	}
	return nil
}
