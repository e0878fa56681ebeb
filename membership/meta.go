package membership

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// maxMeta is our own limit for a node's meta. memberlist panics over 512
	// bytes, and every alive message carries it.
	maxMeta = 200
	// maxName is the longest human name, that of a DNS label (RFC 1035 2.3.4)
	// twice over, so that short FQDNs fit.
	maxName = 126

	metaFormat = 1
)

// meta is what a node tells of itself in its gossip entry:
//
//	 0  format 1
//	 1  flags: bit 0 holds the settings, bit 1 finds itself in its seed list or
//	    has none, bit 2 has an IPv4 endpoint, bit 3 has an IPv6 endpoint
//	 2  capabilities, uint16
//	 4  udp port, vxlan port, kernel vxlan port, uint16 each
//	10  inner MTU, uint16
//	12  VTEP MAC, 6 bytes
//	18  IPv4 endpoint (4 bytes, if flagged), IPv6 endpoint (16 bytes, if flagged)
//	    name: length (1 byte), UTF-8
//	    VNI, 3 bytes; may be left out
//
// Bytes behind that belong to newer versions and are ignored.
type meta struct {
	holder, listed bool
	caps           Capability
	ports          Ports
	mtu            uint16
	mac            [6]byte
	addrs          []netip.Addr
	name           string
	vni            uint32 // 0: not told
}

const (
	metaHolder = 1 << iota
	metaListed
	metaV4
	metaV6
)

var errMeta = errors.New("meta_malformed")

func (m meta) append(b []byte) []byte {
	var flags byte
	if m.holder {
		flags |= metaHolder
	}
	if m.listed {
		flags |= metaListed
	}
	for _, a := range m.addrs {
		if a.Is4() {
			flags |= metaV4
		} else {
			flags |= metaV6
		}
	}
	b = append(b, metaFormat, flags)
	b = binary.BigEndian.AppendUint16(b, uint16(m.caps))
	b = binary.BigEndian.AppendUint16(b, m.ports.UDP)
	b = binary.BigEndian.AppendUint16(b, m.ports.VXLAN)
	b = binary.BigEndian.AppendUint16(b, m.ports.KernelVXLAN)
	b = binary.BigEndian.AppendUint16(b, m.mtu)
	b = append(b, m.mac[:]...)
	for _, a := range m.addrs { // IPv4 first, as Config.check has seen to
		b = append(b, a.AsSlice()...)
	}
	b = append(b, byte(len(m.name)))
	b = append(b, m.name...)
	if m.vni == 0 {
		return b
	}
	return append(b, byte(m.vni>>16), byte(m.vni>>8), byte(m.vni))
}

// decodeMeta reads another node's meta. What it returns has been checked,
// except that addresses may still lie inside the overlay.
func decodeMeta(b []byte) (m meta, err error) {
	if len(b) < 19 || len(b) > maxMeta || b[0] != metaFormat {
		return m, errMeta
	}
	flags := b[1]
	m.holder = flags&metaHolder != 0
	m.listed = flags&metaListed != 0
	m.caps = Capability(binary.BigEndian.Uint16(b[2:]))
	m.ports = Ports{binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint16(b[8:])}
	m.mtu = binary.BigEndian.Uint16(b[10:])
	copy(m.mac[:], b[12:18])
	rest := b[18:]
	for _, f := range []struct {
		flag byte
		n    int
	}{{metaV4, 4}, {metaV6, 16}} {
		if flags&f.flag == 0 {
			continue
		}
		if len(rest) < f.n {
			return meta{}, errMeta
		}
		a, _ := netip.AddrFromSlice(rest[:f.n])
		if !usableEndpoint(a) {
			return meta{}, errMeta
		}
		m.addrs = append(m.addrs, a)
		rest = rest[f.n:]
	}
	if len(rest) < 1 || len(rest) < 1+int(rest[0]) {
		return meta{}, errMeta
	}
	m.name, rest = string(rest[1:1+int(rest[0])]), rest[1+int(rest[0]):]
	if len(rest) >= 3 {
		m.vni = uint32(rest[0])<<16 | uint32(rest[1])<<8 | uint32(rest[2])
	}
	if CheckName(m.name) != nil || m.ports.UDP == 0 || m.mac[0]&1 != 0 {
		return meta{}, errMeta
	}
	return m, nil
}

// usableEndpoint refuses what no datagram may be sent to.
func usableEndpoint(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.Is4In6() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// CheckName tells what is wrong with a node's human name, nil if nothing is.
// Names are printed, logged and typed at shells: letters, digits, dots,
// hyphens and underscores, as in host names.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("the node name is empty: give one with --name")
	case len(name) > maxName:
		return fmt.Errorf("the node name is %d bytes long: at most %d are possible", len(name), maxName)
	case !utf8.ValidString(name):
		return errors.New("the node name is not UTF-8")
	}
	for _, r := range name {
		ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_'
		if !ok {
			return fmt.Errorf("the node name %q has the character %q: use letters, digits, '-', '.' and '_'", name, r)
		}
	}
	return nil
}

// VTEPMAC derives a node's VTEP MAC from its identity: stable, unicast and
// locally administered (IEEE 802: the two low bits of the first octet).
func VTEPMAC(id NodeID) [6]byte {
	sum := sha256.Sum256(append([]byte("overlayd vtep mac v1\x00"), id[:]...))
	mac := [6]byte(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// gossipName is the memberlist name of a node: identity and boot, so that a
// restart or a changed address never meets its own past.
func gossipName(id NodeID, boot uint64) string {
	return id.String() + "-" + strconv.FormatUint(boot, 16)
}

func parseGossipName(s string) (id NodeID, boot uint64, err error) {
	hexID, hexBoot, ok := strings.Cut(s, "-")
	if !ok {
		return id, 0, errMeta
	}
	if id, err = ParseNodeID(hexID); err != nil {
		return id, 0, errMeta
	}
	if boot, err = strconv.ParseUint(hexBoot, 16, 64); err != nil || boot == 0 || boot > maxCounter || gossipName(id, boot) != s {
		return id, 0, errMeta
	}
	return id, boot, nil
}
