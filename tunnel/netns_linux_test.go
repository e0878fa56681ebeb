package tunnel_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// enterNetNS moves the calling test into a network namespace of its own. The
// thread stays locked to the goroutine, which is the test's, so that the runtime
// throws it away when the test ends, and the namespace with it.
func enterNetNS(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("needs /dev/net/tun: %v", err)
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs to make a network namespace: %v", err)
	}
}

// tunName is a name that no other test run has.
func tunName(suffix string) string { return fmt.Sprintf("ovl%d%s", os.Getpid(), suffix) }

// ioctl runs an interface request in the calling thread's namespace.
func ioctl(t *testing.T, name string, req uint, set func(*unix.Ifreq)) *unix.Ifreq {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	set(r)
	if err := unix.IoctlIfreq(fd, req, r); err != nil {
		t.Fatalf("ioctl %#x on %s: %v", req, name, err)
	}
	return r
}

func linkUp(t *testing.T, name string) {
	t.Helper()
	ioctl(t, name, unix.SIOCSIFFLAGS, func(r *unix.Ifreq) { r.SetUint16(unix.IFF_UP) })
}

func linkDown(t *testing.T, name string) {
	t.Helper()
	ioctl(t, name, unix.SIOCSIFFLAGS, func(r *unix.Ifreq) { r.SetUint16(0) })
}

func linkMTU(t *testing.T, name string, mtu int) {
	t.Helper()
	ioctl(t, name, unix.SIOCSIFMTU, func(r *unix.Ifreq) { r.SetUint32(uint32(mtu)) })
}

func linkIndex(t *testing.T, name string) int {
	t.Helper()
	return int(ioctl(t, name, unix.SIOCGIFINDEX, func(*unix.Ifreq) {}).Uint32())
}

// linkExists asks the calling thread's namespace.
func linkExists(name string) bool {
	_, err := net.InterfaceByName(name)
	return err == nil
}

// addAddr gives name an address; the kernel adds the route to its prefix once
// the link is up.
func addAddr(t *testing.T, name string, p netip.Prefix) {
	t.Helper()
	if p.Addr().Is4() {
		a4 := p.Addr().As4()
		mask := net.CIDRMask(p.Bits(), 32)
		ioctl(t, name, unix.SIOCSIFADDR, func(r *unix.Ifreq) { check(t, r.SetInet4Addr(a4[:])) })
		ioctl(t, name, unix.SIOCSIFNETMASK, func(r *unix.Ifreq) { check(t, r.SetInet4Addr(mask)) })
		return
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(fd)
	// struct in6_ifreq (linux/include/uapi/linux/ipv6.h).
	req := struct {
		addr      [16]byte
		prefixLen uint32
		index     int32
	}{p.Addr().As16(), uint32(p.Bits()), int32(linkIndex(t, name))}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&req))); errno != 0 {
		t.Fatalf("address %v on %s: %v", p, name, errno)
	}
}

// deleteLink does what "ip link delete" does, with one RTM_DELLINK message.
func deleteLink(t *testing.T, name string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	check(t, err)
	defer unix.Close(fd)
	const size = unix.SizeofNlMsghdr + unix.SizeofIfInfomsg
	var b [size]byte
	binary.NativeEndian.PutUint32(b[0:], size)
	binary.NativeEndian.PutUint16(b[4:], unix.RTM_DELLINK)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	binary.NativeEndian.PutUint32(b[unix.SizeofNlMsghdr+4:], uint32(linkIndex(t, name)))
	check(t, unix.Sendto(fd, b[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	check(t, err)
	if n < unix.SizeofNlMsghdr+4 {
		t.Fatalf("RTM_DELLINK: answer of %d bytes", n)
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
		t.Fatalf("RTM_DELLINK: %v", unix.Errno(-code))
	}
}

// tap is the kernel's side of an interface, packet by packet.
type tap struct {
	t     *testing.T
	fd    int
	index int
}

// openTap opens it in the calling thread's namespace.
func openTap(t *testing.T, name string) *tap {
	t.Helper()
	all := htons(unix.ETH_P_ALL)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	check(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	index := linkIndex(t, name)
	check(t, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1))
	tv := unix.NsecToTimeval(patience.Nanoseconds())
	check(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	check(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}))
	return &tap{t: t, fd: fd, index: index}
}

// inject hands p to the interface, as if a route had led there.
func (k *tap) inject(p []byte) {
	proto := uint16(unix.ETH_P_IP)
	if p[0]>>4 == 6 {
		proto = unix.ETH_P_IPV6
	}
	to := &unix.SockaddrLinklayer{Protocol: htons(proto), Ifindex: k.index}
	if err := unix.Sendto(k.fd, p, 0, to); err != nil {
		k.t.Errorf("inject %d bytes: %v", len(p), err)
	}
}

// receive waits for a packet that came out of the interface.
func (k *tap) receive() []byte {
	buf := make([]byte, 65536)
	for {
		n, _, err := unix.Recvfrom(k.fd, buf, 0)
		switch {
		case err == nil:
			return buf[:n]
		case !errors.Is(err, unix.EINTR):
			return nil
		}
	}
}

func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
