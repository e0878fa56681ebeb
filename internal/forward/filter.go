//go:build amd64 || arm64

package forward

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Of classic BPF: linux/include/uapi/linux/filter.h, bpf_common.h.
const (
	skfNetOff = -0x100000 // SKF_NET_OFF: offsets from here count from the IP header
	wholeOne  = 0x40000   // more than any datagram has

	ipv4SourceAt = 12 // RFC 791 section 3.1
	ipv6SourceAt = 8  // RFC 8200 section 3
)

var errManyAddrs = errors.New("forward: more addresses than a filter has room for")

// admitProgram is a classic BPF program that lets pass what comes from one of these
// addresses, as far as they are of the family: one after the other, since its jumps
// reach no further than 255 instructions.
func admitProgram(known []netip.Addr, is6 bool) ([]unix.SockFilter, error) {
	var p []unix.SockFilter
	load := func(at int) {
		offset := int32(skfNetOff + at)
		p = append(p, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: uint32(offset)})
	}
	ret := func(bytes uint32) { p = append(p, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: bytes}) }
	if !is6 {
		load(ipv4SourceAt)
	}
	for _, a := range known {
		if a.Is6() != is6 {
			continue
		}
		b := a.AsSlice()
		for i := 0; i < len(b); i += 4 {
			if is6 {
				load(ipv6SourceAt + i)
			}
			// To behind this address's ret, with what is left of its words.
			skip := uint8(1)
			if is6 {
				skip += uint8(2 * (len(b) - 4 - i) / 4)
			}
			p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: binary.BigEndian.Uint32(b[i:]), Jf: skip})
		}
		ret(wholeOne)
	}
	ret(0)
	if len(p) > unix.BPF_MAXINSNS {
		return nil, errManyAddrs
	}
	return p, nil
}

func (m *mmsgConn) admit(known []netip.Addr) error {
	p, err := admitProgram(known, m.is6)
	if err != nil {
		return err
	}
	return m.fd.Control(func(fd int) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]})
	})
}

func (m *mmsgConn) admitAll() {
	// Fails if there is no filter, or no socket any more.
	_ = m.fd.Control(func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	})
}
