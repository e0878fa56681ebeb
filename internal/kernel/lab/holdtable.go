package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// HoldTable makes an nftables table of the inet family that nobody else may change or
// remove until release is called, which removes it: its flag is NFT_TABLE_F_OWNER
// (linux/include/uapi/linux/netfilter/nf_tables.h), and others get EPERM. By hand,
// because the nftables package sends no flags.
func (n *Namespace) HoldTable(name string) (release func() error, err error) {
	const owner = 0x2
	message := func(kind, flags uint16, family byte, resource uint16, attrs []byte) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+4+len(attrs)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
		b = append(b, make([]byte, 8)...) // sequence number, port
		b = append(b, family, unix.NFNETLINK_V0)
		b = binary.BigEndian.AppendUint16(b, resource)
		return append(b, attrs...)
	}
	attr := func(kind uint16, data []byte) []byte {
		b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(data)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = append(b, data...)
		return append(b, make([]byte, -len(data)&3)...)
	}
	attrs := append(attr(unix.NFTA_TABLE_NAME, []byte(name+"\x00")), attr(unix.NFTA_TABLE_FLAGS, []byte{0, 0, 0, owner})...)
	batch := slices.Concat(
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, unix.NFPROTO_INET, 0, attrs),
		message(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil))
	fd := -1
	err = n.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err == nil {
			err = unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		}
		return err
	})
	if err == nil {
		answer := make([]byte, 4096)
		var size int
		size, _, err = unix.Recvfrom(fd, answer, unix.MSG_DONTWAIT) // the kernel answers while it handles a request
		if err == nil && size >= unix.SizeofNlMsghdr+4 {
			if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
				err = unix.Errno(-code)
			}
		}
	}
	if err != nil {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
		return nil, fmt.Errorf("lab: %s: table %s: %w", n.short, name, err)
	}
	return func() error { return unix.Close(fd) }, nil
}
