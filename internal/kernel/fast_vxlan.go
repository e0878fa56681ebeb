package kernel

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The values of VXLAN attributes that the netlink library does not have
// (linux/include/uapi/linux/if_link.h).
const (
	iflaVXLANDF         = 29
	iflaVXLANLabel      = 26
	iflaVXLANGPE        = 27
	iflaVXLANTTLInherit = 28
	iflaVXLANVNIFilter  = 30
	vxlanDFSet          = 1 // VXLAN_DF_SET
	// tosInherit: vxlan_xmit_one in linux/drivers/net/vxlan/vxlan_core.c takes 1
	// for "the inner packet's".
	tosInherit = 1
)

// vxlanLink is a device as the kernel describes it. The netlink library does not
// know all of its attributes.
type vxlanLink struct {
	index       int
	name, alias string
	kind        string
	up          bool
	mtu         int
	mac         [6]byte
	master      int // the bridge that it is a port of, 0 if none
	genMode     int // IN6_ADDR_GEN_MODE, -1 if the device has no IPv6
	vxlan       vxlanAttrs
}

// vxlanAttrs are those attributes of a VXLAN device that cannot be changed
// while it exists.
type vxlanAttrs struct {
	vni              uint32
	port             uint16
	local            netip.Addr
	tos, df          uint8
	learning         bool
	checksum         bool // sends outer UDP checksums over IPv4
	noSum6Tx, noSum6 bool // sends and takes outer IPv6 packets without one
	extra            bool // has something else that ours have not: a remote, an underlay device, a hop limit, an extension
}

// ours tells whether the device is a VXLAN device that carries our alias.
func (l *vxlanLink) ours() bool { return l.kind == "vxlan" && l.alias == DeviceAlias }

// readVXLAN reads a device by name or, if that is empty, by index; nil if there is
// none. The caller holds k.mu.
func (k *Kernel) readVXLAN(name string, index int) (*vxlanLink, error) {
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req := []nl.NetlinkRequestData{msg}
	if name != "" {
		req = append(req, nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	}
	msgs, err := k.request(unix.RTM_GETLINK, 0, unix.RTM_NEWLINK, req...)
	if errors.Is(err, unix.ENODEV) || err == nil && len(msgs) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, deviceError(name, "reading it", err)
	}
	l, err := parseVXLAN(msgs[0])
	if err != nil {
		return nil, deviceError(name, "reading it", err)
	}
	return l, nil
}

// attrType is an attribute's type without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
func attrType(a uint16) int { return int(a & nl.NLA_TYPE_MASK) }

// parseVXLAN reads an RTM_NEWLINK message.
func parseVXLAN(m []byte) (*vxlanLink, error) {
	if len(m) < unix.SizeofIfInfomsg {
		return nil, errors.New("short message")
	}
	head := nl.DeserializeIfInfomsg(m)
	l := &vxlanLink{index: int(head.Index), up: head.Flags&unix.IFF_UP != 0, genMode: -1}
	attrs, err := nl.ParseRouteAttr(m[unix.SizeofIfInfomsg:])
	if err != nil {
		return nil, err
	}
	for _, a := range attrs {
		switch attrType(a.Attr.Type) {
		case unix.IFLA_IFNAME:
			l.name = unix.ByteSliceToString(a.Value)
		case unix.IFLA_IFALIAS:
			l.alias = unix.ByteSliceToString(a.Value)
		case unix.IFLA_MTU:
			l.mtu = int(number(a.Value))
		case unix.IFLA_MASTER:
			l.master = int(number(a.Value))
		case unix.IFLA_ADDRESS:
			copy(l.mac[:], a.Value)
		case unix.IFLA_AF_SPEC:
			l.genMode = addrGenMode(a.Value)
		case unix.IFLA_LINKINFO:
			info, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return nil, err
			}
			for _, i := range info {
				switch attrType(i.Attr.Type) {
				case nl.IFLA_INFO_KIND:
					l.kind = unix.ByteSliceToString(i.Value)
				case nl.IFLA_INFO_DATA:
					data, err := nl.ParseRouteAttr(i.Value)
					if err != nil {
						return nil, err
					}
					for _, d := range data {
						l.vxlan.read(attrType(d.Attr.Type), d.Value)
					}
				}
			}
		}
	}
	if l.kind != "vxlan" {
		l.vxlan = vxlanAttrs{} // the attributes of another kind
	}
	return l, nil
}

// read takes one attribute of IFLA_INFO_DATA.
func (v *vxlanAttrs) read(kind int, value []byte) {
	on := number(value) != 0
	switch kind {
	case nl.IFLA_VXLAN_ID:
		v.vni = uint32(number(value))
	case nl.IFLA_VXLAN_PORT:
		if len(value) == 2 {
			v.port = binary.BigEndian.Uint16(value)
		}
	case nl.IFLA_VXLAN_LOCAL, nl.IFLA_VXLAN_LOCAL6:
		v.local, _ = netip.AddrFromSlice(value)
	case nl.IFLA_VXLAN_TOS:
		v.tos = uint8(number(value))
	case iflaVXLANDF:
		v.df = uint8(number(value))
	case nl.IFLA_VXLAN_LEARNING:
		v.learning = on
	case nl.IFLA_VXLAN_UDP_CSUM:
		v.checksum = on
	case nl.IFLA_VXLAN_UDP_ZERO_CSUM6_TX:
		v.noSum6Tx = on
	case nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX:
		v.noSum6 = on
	case nl.IFLA_VXLAN_GROUP, nl.IFLA_VXLAN_GROUP6, nl.IFLA_VXLAN_LINK, nl.IFLA_VXLAN_PROXY, nl.IFLA_VXLAN_RSC,
		nl.IFLA_VXLAN_L2MISS, nl.IFLA_VXLAN_L3MISS, nl.IFLA_VXLAN_FLOWBASED, nl.IFLA_VXLAN_REMCSUM_TX,
		nl.IFLA_VXLAN_REMCSUM_RX, nl.IFLA_VXLAN_LIMIT, nl.IFLA_VXLAN_TTL, iflaVXLANTTLInherit, iflaVXLANLabel, iflaVXLANVNIFilter:
		v.extra = v.extra || on
	case nl.IFLA_VXLAN_GBP, iflaVXLANGPE, nl.IFLA_VXLAN_REMCSUM_NOPARTIAL:
		v.extra = true // flags, which are there or not
	}
}

// addrGenMode finds IFLA_INET6_ADDR_GEN_MODE in an IFLA_AF_SPEC, -1 if there is
// none: then the device has no IPv6.
func addrGenMode(spec []byte) int {
	families, err := nl.ParseRouteAttr(spec)
	if err != nil {
		return -1
	}
	for _, family := range families {
		if attrType(family.Attr.Type) != unix.AF_INET6 {
			continue
		}
		attrs, err := nl.ParseRouteAttr(family.Value)
		if err != nil {
			return -1
		}
		for _, a := range attrs {
			if attrType(a.Attr.Type) == unix.IFLA_INET6_ADDR_GEN_MODE {
				return int(number(a.Value))
			}
		}
	}
	return -1
}

// number reads an integer of 1, 2, 4 or 8 bytes in the machine's order. Of an
// address it says whether it is zero.
func number(b []byte) uint64 {
	switch len(b) {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.NativeEndian.Uint16(b))
	case 4:
		return uint64(binary.NativeEndian.Uint32(b))
	case 8:
		return binary.NativeEndian.Uint64(b)
	}
	for _, x := range b {
		if x != 0 {
			return 1
		}
	}
	return 0
}

// deleteLink removes a device; one that is gone already is no error. The caller
// holds k.mu.
func (k *Kernel) deleteLink(index int) error {
	return gone(k.h.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}))
}

// renameLink gives a device another name. The caller holds k.mu.
func (k *Kernel) renameLink(index int, name string) error {
	return k.h.LinkSetName(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}, name)
}

// request sends one netlink request by a socket of its own, for what the netlink
// library has no function for, and returns the answers of type answer, all if
// that is 0. The caller holds k.mu.
func (k *Kernel) request(kind, flags int, answer uint16, data ...nl.NetlinkRequestData) (msgs [][]byte, err error) {
	err = k.inNamespace(func() error {
		req := nl.NewNetlinkRequest(kind, flags)
		for _, d := range data {
			req.AddData(d)
		}
		var err error
		msgs, err = req.Execute(unix.NETLINK_ROUTE, answer)
		return err
	})
	return msgs, err
}
