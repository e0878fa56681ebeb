//go:build amd64 || arm64

package forward

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// cmsgSpace is CMSG_SPACE of each control message that there is, all of which have
// 1 to 4 bytes (linux/include/linux/socket.h, on 64 bits).
const cmsgSpace = 24

// maxControl is room for all control messages of a datagram: UDP_SEGMENT and
// IP_TOS or IPV6_TCLASS on the way out, UDP_GRO and the same on the way in.
const maxControl = 2 * cmsgSpace

// putCmsg writes a control message with an int to the start of b.
func putCmsg(b []byte, level, typ, value int) {
	binary.NativeEndian.PutUint64(b[0:], unix.SizeofCmsghdr+4)
	binary.NativeEndian.PutUint32(b[8:], uint32(level))
	binary.NativeEndian.PutUint32(b[12:], uint32(typ))
	binary.NativeEndian.PutUint32(b[16:], uint32(value))
}

// putSegment writes a control message that tells the kernel to cut what is sent
// into datagrams of a size; it has 16 bits (linux/include/uapi/linux/udp.h).
func putSegment(b []byte, size int) {
	putCmsg(b, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0)
	binary.NativeEndian.PutUint64(b[0:], unix.SizeofCmsghdr+2)
	binary.NativeEndian.PutUint16(b[16:], uint16(size))
}

// putTrafficClass writes a control message that gives a datagram its TOS or traffic
// class.
func putTrafficClass(b []byte, is6 bool, class uint8) {
	if is6 {
		putCmsg(b, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, int(class))
		return
	}
	putCmsg(b, unix.IPPROTO_IP, unix.IP_TOS, int(class))
}

// readCmsgs takes from the control messages of a datagram what it was received
// with: the size of the datagrams that the kernel has joined, 0 if it has not, and
// its TOS or traffic class. What it does not know, or what is cut, it passes over.
func readCmsgs(b []byte) (segment int, class uint8) {
	for len(b) >= unix.SizeofCmsghdr { // which the parser takes for granted
		h, data, rest, err := unix.ParseOneSocketControlMessage(b)
		if err != nil {
			break
		}
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			segment = int(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1: // one byte (ip_cmsg_recv_tos)
			class = data[0]
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			class = uint8(binary.NativeEndian.Uint32(data))
		}
		b = rest
	}
	return segment, class
}
