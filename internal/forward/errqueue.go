//go:build amd64 || arm64

package forward

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setOptions makes a socket tell the outer traffic class of what it receives, send
// everything with DF whatever path MTU the kernel has heard of, and keep the ICMP
// errors about what it has sent for tooBigs. A kernel may lack any of them.
//
// IP_PMTUDISC_PROBE: the kernel believes an ICMP message that quotes two well-known
// ports, and would refuse whatever is longer than that for ten minutes. What is
// believed here is decided here.
func setOptions(fd int, is6 bool) {
	set := func(level, option, value int) { unix.SetsockoptInt(fd, level, option, value) }
	if is6 {
		set(unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
		set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		set(unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1) // or this host would cut what is too long itself
		set(unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
		set(unix.IPPROTO_UDP, unix.UDP_NO_CHECK6_RX, 1) // a tunnel may leave them out: RFC 6935, RFC 6936
		return
	}
	set(unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
	set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	set(unix.IPPROTO_IP, unix.IP_RECVERR, 1)
}

// takeNothing makes a socket that only sends drop what comes to it: by a classic BPF
// program that takes 0 bytes of each packet (socket(7), SO_ATTACH_FILTER).
func takeNothing(fd int) error {
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop})
}

// maxErrors bounds how many errors are worked off in a row, quoteLen how much of
// what they quote is looked at.
const (
	maxErrors = 64
	quoteLen  = 64
)

// errQueue reads a socket's error queue: recvmsg(2), MSG_ERRQUEUE.
type errQueue struct {
	quote   [quoteLen]byte
	control [512]byte
	name    unix.RawSockaddrInet6
}

// drain empties the queue and passes on what is about sizes. The rest only says
// that somebody does not listen, which probes find out.
func (q *errQueue) drain(fd uintptr, pass func(tooBig)) {
	for range maxErrors {
		iov := iovec(q.quote[:])
		h := unix.Msghdr{Name: (*byte)(unsafe.Pointer(&q.name)), Namelen: unix.SizeofSockaddrInet6, Iov: &iov, Control: &q.control[0]}
		h.SetIovlen(1)
		h.SetControllen(len(q.control))
		n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&h)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return
		}
		if mtu := readTooBig(q.control[:min(h.Controllen, uint64(len(q.control)))]); mtu > 0 {
			pass(tooBig{to: addrOf(&q.name), mtu: mtu, quote: q.quote[:n]})
		}
	}
}

// readTooBig takes the MTU from the control messages of an error, 0 if it is none
// about a size: struct sock_extended_err (linux/include/uapi/linux/errqueue.h).
func readTooBig(b []byte) (mtu int) {
	for len(b) >= unix.SizeofCmsghdr { // which the parser takes for granted
		h, e, rest, err := unix.ParseOneSocketControlMessage(b)
		if err != nil {
			break
		}
		isErr := h.Level == unix.IPPROTO_IP && h.Type == unix.IP_RECVERR || h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_RECVERR
		if isErr && len(e) >= 12 {
			origin := e[4]
			if unix.Errno(binary.NativeEndian.Uint32(e)) == unix.EMSGSIZE && (origin == unix.SO_EE_ORIGIN_ICMP || origin == unix.SO_EE_ORIGIN_ICMP6) {
				return int(min(binary.NativeEndian.Uint32(e[8:]), 65535))
			}
			break
		}
		b = rest
	}
	return 0
}
