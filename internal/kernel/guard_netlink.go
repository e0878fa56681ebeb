package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// nfConn speaks to nftables in the namespace of the thread that opened it.
//
// The nftables package has a connection of its own, which does not do for the
// guard: it cannot bind a transaction to a generation of the rules, it puts all
// elements of a set into one attribute of at most 64 KiB, and it waits for ever
// where the kernel answers a batch with one error instead of many.
type nfConn struct {
	fd  int
	seq uint32
	buf []byte
}

// nfTimeout is how long the kernel may take for an answer. It answers while it
// handles the request, so that a longer wait means that there is none.
const nfTimeout = 10 * time.Second

// nfBufferSize is for one read: netlink_dump (linux/net/netlink/af_netlink.c) puts
// at most 32 KiB into a message, and never more than the reader has room for.
const nfBufferSize = 1 << 16

// Attributes of linux/include/uapi/linux/netfilter/nf_tables.h that package
// unix lacks.
const (
	nftaSetDescConcat = 2    // NFTA_SET_DESC_CONCAT
	nftaSetFieldLen   = 1    // NFTA_SET_FIELD_LEN
	nftaSetExpr       = 17   // NFTA_SET_EXPR
	nftaSetCount      = 20   // NFTA_SET_COUNT
	nftaSetElemKeyEnd = 10   // NFTA_SET_ELEM_KEY_END
	nftSetConcat      = 0x80 // NFT_SET_CONCAT
)

// errNFChanged: somebody has changed nftables since the generation that a
// transaction was made for; nothing has been done.
var errNFChanged = errors.New("nftables was changed meanwhile")

// errNoNF: there is no nftables to speak to.
var errNoNF = errors.New("this kernel has no nftables (CONFIG_NF_TABLES)")

func openNF() (*nfConn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err == unix.EPROTONOSUPPORT {
		return nil, errNoNF
	}
	if err != nil {
		return nil, fmt.Errorf("opening a netfilter netlink socket: %w", err)
	}
	c := &nfConn{fd: fd, buf: make([]byte, nfBufferSize)}
	limit := unix.NsecToTimeval(nfTimeout.Nanoseconds())
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	if err == nil {
		// An error without it carries the request that it is about.
		err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("preparing a netfilter netlink socket: %w", err)
	}
	return c, nil
}

func (c *nfConn) close() { unix.Close(c.fd) }

// nfMessage is one request.
type nfMessage struct {
	kind   uint16 // NFT_MSG_*
	flags  uint16 // NLM_F_*, besides NLM_F_REQUEST
	family byte   // NFPROTO_*; 0: inet
	attrs  []byte
	what   string // for the error, such as "adding the set vxlan4"
}

// appendNF appends a message: struct nlmsghdr, struct nfgenmsg
// (linux/include/uapi/linux/netfilter/nfnetlink.h), attributes.
func appendNF(b []byte, kind, flags uint16, seq uint32, family byte, resource uint16, attrs []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.SizeofNlMsghdr+4+len(attrs)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0) // port: the kernel knows it
	b = append(b, family, unix.NFNETLINK_V0)
	b = binary.BigEndian.AppendUint16(b, resource)
	b = append(b, attrs...)
	return append(b, make([]byte, -len(attrs)&3)...)
}

// nfAttr appends an attribute.
func nfAttr(b []byte, kind uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, data...)
	return append(b, make([]byte, -len(data)&3)...)
}

func nfNested(b []byte, kind uint16, data []byte) []byte {
	return nfAttr(b, kind|unix.NLA_F_NESTED, data)
}

func nfString(b []byte, kind uint16, s string) []byte { return nfAttr(b, kind, append([]byte(s), 0)) }

func nfUint32(b []byte, kind uint16, n uint32) []byte {
	return nfAttr(b, kind, binary.BigEndian.AppendUint32(nil, n))
}

// nfAttrs calls f for each attribute in b; what cannot be one ends it.
func nfAttrs(b []byte, f func(kind uint16, data []byte)) {
	for len(b) >= unix.SizeofNlAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofNlAttr || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofNlAttr:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// nfFind returns the data of the first attribute of that kind; nil if there is
// none.
func nfFind(b []byte, kind uint16) (found []byte) {
	nfAttrs(b, func(k uint16, data []byte) {
		if k == kind && found == nil {
			found = data
		}
	})
	return found
}

func (c *nfConn) send(b []byte) error {
	// A message has to fit into the socket's send buffer as a whole
	// (netlink_sendmsg in linux/net/netlink/af_netlink.c).
	if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, len(b)+4096); err != nil {
		return fmt.Errorf("growing the send buffer: %w", err)
	}
	for {
		err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			return err
		}
	}
}

// receive calls f with each message of one datagram, without its struct
// nlmsghdr.
func (c *nfConn) receive(f func(h unix.NlMsghdr, body []byte) error) error {
	var n int
	for {
		var err error
		n, _, err = unix.Recvfrom(c.fd, c.buf, unix.MSG_TRUNC)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			return fmt.Errorf("nftables does not answer: %w", unix.ETIMEDOUT)
		}
		if err != nil {
			return err
		}
		break
	}
	if n > len(c.buf) {
		return fmt.Errorf("an answer of nftables has %d bytes, more than %d: %w", n, len(c.buf), unix.EMSGSIZE)
	}
	for b := c.buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
		h := unix.NlMsghdr{
			Len: binary.NativeEndian.Uint32(b), Type: binary.NativeEndian.Uint16(b[4:]),
			Flags: binary.NativeEndian.Uint16(b[6:]), Seq: binary.NativeEndian.Uint32(b[8:]),
		}
		if h.Len < unix.SizeofNlMsghdr || uint64(h.Len) > uint64(len(b)) {
			return fmt.Errorf("an answer of nftables is cut off: %w", unix.EBADMSG)
		}
		if err := f(h, b[unix.SizeofNlMsghdr:h.Len]); err != nil {
			return err
		}
		b = b[min((int(h.Len)+3)&^3, len(b)):]
	}
	return nil
}

// errno is the error that an NLMSG_ERROR or NLMSG_DONE carries, nil if none.
func nfErrno(body []byte) error {
	if len(body) < 4 {
		return nil
	}
	if n := int32(binary.NativeEndian.Uint32(body)); n < 0 {
		return unix.Errno(-n)
	}
	return nil
}

// nfDumpTries is how often a dump is begun anew because the rules changed under
// it.
const nfDumpTries = 10

// get asks for one thing, or with NLM_F_DUMP in flags for many, and returns the
// attributes of each.
func (c *nfConn) get(kind, flags uint16, family byte, attrs []byte) ([][]byte, error) {
	if flags&unix.NLM_F_DUMP == 0 {
		flags |= unix.NLM_F_ACK // marks the end
	}
	for try := 0; ; try++ {
		all, interrupted, err := c.getOnce(kind, flags, family, attrs)
		if err == nil && interrupted {
			if try < nfDumpTries {
				continue
			}
			err = errNFChanged
		}
		return all, err
	}
}

func (c *nfConn) getOnce(kind, flags uint16, family byte, attrs []byte) (all [][]byte, interrupted bool, err error) {
	c.seq++
	if err := c.send(appendNF(nil, unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, c.seq, family, 0, attrs)); err != nil {
		return nil, false, err
	}
	for done := false; !done; {
		err = c.receive(func(h unix.NlMsghdr, body []byte) error {
			if h.Seq != c.seq {
				return nil
			}
			interrupted = interrupted || h.Flags&unix.NLM_F_DUMP_INTR != 0
			switch {
			case h.Type == unix.NLMSG_ERROR || h.Type == unix.NLMSG_DONE:
				done = true
				return nfErrno(body)
			case len(body) >= 4: // struct nfgenmsg
				all = append(all, append([]byte(nil), body[4:]...))
			}
			return nil
		})
		if err != nil {
			return nil, interrupted, err
		}
	}
	return all, interrupted, nil
}

// generation is the number of transactions that nftables has made in this
// namespace (base_seq in linux/net/netfilter/nf_tables_api.c): as long as it
// stays the same, nobody has changed a rule or an element.
func (c *nfConn) generation() (uint32, error) {
	all, err := c.get(unix.NFT_MSG_GETGEN, 0, unix.AF_UNSPEC, nil)
	if err == unix.EINVAL { // nfnetlink_rcv_msg in linux/net/netfilter/nfnetlink.c knows no such subsystem
		return 0, errNoNF
	}
	if err != nil {
		return 0, err
	}
	for _, m := range all {
		if id := nfFind(m, unix.NFTA_GEN_ID); len(id) == 4 {
			return binary.BigEndian.Uint32(id), nil
		}
	}
	return 0, fmt.Errorf("nftables tells no generation: %w", unix.EBADMSG)
}

// nextGeneration is the one after a transaction: nf_tables_commit adds one and
// leaves out 0.
func nextGeneration(gen uint32) uint32 { return max(gen+1, 1) }

// retried runs f, which looks at nftables and then commits what that asks for, again as
// long as somebody else changes nftables in between. gen is the generation that f begins
// with, bound the one to commit for; the last time that is 0.
func (c *nfConn) retried(f func(gen, bound uint32) error) error {
	for try := 1; ; try++ {
		gen, err := c.generation()
		if err != nil {
			return err
		}
		err = f(gen, bound(gen, try == guardTries))
		if !errors.Is(err, errNFChanged) || try == guardTries {
			return err
		}
	}
}

// commit makes one transaction of the messages. It happens as a whole or not at all, and only if nftables is still of
// generation gen; otherwise the error is errNFChanged. 0: whatever it is of.
func (c *nfConn) commit(gen uint32, messages []nfMessage) error {
	if len(messages) == 0 {
		return nil
	}
	c.seq++
	begin := c.seq
	var id []byte
	if gen != 0 {
		id = nfUint32(nil, unix.NFNL_BATCH_GENID, gen)
	}
	b := appendNF(nil, unix.NFNL_MSG_BATCH_BEGIN, 0, begin, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, id)
	for i, m := range messages {
		c.seq++
		if i == len(messages)-1 {
			m.flags |= unix.NLM_F_ACK // errors come without being asked for
		}
		if m.family == 0 {
			m.family = unix.NFPROTO_INET
		}
		b = appendNF(b, unix.NFNL_SUBSYS_NFTABLES<<8|m.kind, m.flags, c.seq, m.family, 0, m.attrs)
	}
	last := c.seq
	c.seq++
	b = appendNF(b, unix.NFNL_MSG_BATCH_END, 0, c.seq, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	if err := c.send(b); err != nil {
		return err
	}
	var failed error
	for done := false; !done; {
		err := c.receive(func(h unix.NlMsghdr, body []byte) error {
			if h.Type != unix.NLMSG_ERROR || int32(h.Seq-begin) < 0 {
				return nil
			}
			err := nfErrno(body)
			switch {
			case h.Seq == begin && err == unix.ERESTART:
				err = errNFChanged
			case h.Seq > begin && h.Seq <= last && err != nil:
				err = fmt.Errorf("%s: %w", messages[h.Seq-begin-1].what, err)
			}
			// An error about the whole batch stands alone, whatever comes before it.
			done = done || h.Seq == begin || h.Seq == last
			if failed == nil {
				failed = err
			}
			return nil
		})
		if err != nil {
			return errors.Join(failed, err)
		}
	}
	return failed
}
