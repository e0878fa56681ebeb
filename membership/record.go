package membership

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// ClaimState is where a claim stands in its life. The numbers are on the wire.
type ClaimState uint8

// The states of a claim.
const (
	Tentative ClaimState = 1 // announced, not used yet
	Held      ClaimState = 2 // in use
	Released  ClaimState = 3 // given up: a tombstone
)

// String returns the name that lease list prints.
func (s ClaimState) String() string {
	switch s {
	case Tentative:
		return "tentative"
	case Held:
		return "held"
	case Released:
		return "released"
	}
	return "unknown"
}

// Key names a claim: a prefix and the only node that writes claims on it under
// this key.
type Key struct {
	Prefix netip.Prefix
	Owner  NodeID
}

// Claim is the record by which Owner owns, or wants, or gave up Prefix. Its
// owner is its only writer.
type Claim struct {
	Key
	// Version grows with every change of this record.
	Version uint64
	State   ClaimState
	// Static claims come from a person's configuration and beat dynamic ones.
	Static bool
	// Solo is set on a claim made while no other node had ever been seen.
	Solo bool
	// Gen is one more than the highest Gen seen for Prefix when the claim was
	// made; it does not change afterwards.
	Gen uint64
	// Stamp is when the claim became held, zero before. A released claim keeps
	// it, so that one that was in use is told from one that was only wanted.
	Stamp Stamp
	// Expiry is the Unix second from which on the record is void: nobody keeps,
	// sends or takes it any more. Its owner moves it on, see life.go.
	Expiry uint64
}

// Settings are what all nodes of a cluster must agree on.
type Settings struct {
	// Networks are the overlay networks: one IPv4 and/or one IPv6 prefix, IPv4 first.
	Networks []netip.Prefix
	// SubnetLens are the lengths of leased subnets, one for each of Networks.
	SubnetLens []int
	// LeaseTime is how long an owner must be silent before its subnet may be
	// taken, in whole seconds.
	LeaseTime time.Duration
}

// String prints the settings the way a person gives them.
func (s Settings) String() string {
	out := ""
	for i, n := range s.Networks {
		if i > 0 {
			out += ","
		}
		out += fmt.Sprintf("%v/%d", n, s.SubnetLens[i])
	}
	return fmt.Sprintf("networks (with subnet length) %s, lease time %v", out, s.LeaseTime)
}

// Equal reports whether both are the same settings.
func (s Settings) Equal(o Settings) bool {
	return slices.Equal(s.Networks, o.Networks) && slices.Equal(s.SubnetLens, o.SubnetLens) && s.LeaseTime == o.LeaseTime
}

// The wire format of a record. All numbers are big endian.
//
//	 0  format   1
//	 1  kind     1 settings, 2 claim, 3 farewell, 4 clock
//	 2  length   uint16, of the whole record
//
//	settings (24 bytes and 20 for each network)
//	 4  lease time, seconds, uint32
//	 8  number of networks, 1 or 2
//	 9  zero, 15 bytes
//	24  per network: address (16 bytes, IPv4 as ::ffff:a.b.c.d), prefix length,
//	    subnet length, two zero bytes; lengths count in the address's own family
//
//	claim (72 bytes)
//	 4  state    1 tentative, 2 held, 3 released
//	 5  flags    bit 0 static, bit 1 solo
//	 6  prefix length, in the address's own family
//	 7  zero
//	 8  address (16 bytes, IPv4 as ::ffff:a.b.c.d)
//	24  owner (16 bytes)
//	40  version
//	48  gen
//	56  stamp
//	64  expiry
//
//	farewell (28 bytes): a node said good-bye
//	 4  node (16 bytes)
//	20  boot
//
//	clock (36 bytes): the time that the sender of a full state has
//	 4  node (16 bytes)
//	20  its wall clock, milliseconds since 1970
//	28  what it takes for the cluster's time, likewise
const (
	recordFormat = 1

	kindSettings = 1
	kindClaim    = 2
	kindFarewell = 3
	kindClock    = 4

	recordHeaderLen   = 4
	settingsHeaderLen = 24
	settingsNetLen    = 20
	claimLen          = 72
	farewellLen       = 28
	clockLen          = 36

	flagStatic = 1 << 0
	flagSolo   = 1 << 1
)

// Errors of records that are refused. Each has a counter under its name.
var (
	errRecordShort   = errors.New("record_truncated")
	errRecordFormat  = errors.New("record_format_unknown")
	errRecordKind    = errors.New("record_kind_unknown")
	errRecordBad     = errors.New("record_malformed")
	errRecordNetwork = errors.New("record_outside_network")
	errRecordFull    = errors.New("record_table_full")
)

// farewell says that a node stopped on purpose.
type farewell struct {
	Node NodeID
	Boot uint64
}

// clockReading is what a node's clocks show when it sends its full state.
type clockReading struct {
	Node    NodeID
	Wall    time.Time // its own
	Cluster time.Time // what it takes for the cluster's
}

// record is one decoded record; kind says which member is set.
type record struct {
	kind     byte
	settings Settings
	claim    Claim
	farewell farewell
	clock    clockReading
}

func appendRecordHeader(b []byte, kind byte, length int) []byte {
	b = append(b, recordFormat, kind)
	return binary.BigEndian.AppendUint16(b, uint16(length))
}

func appendClaim(b []byte, c Claim) []byte {
	b = appendRecordHeader(b, kindClaim, claimLen)
	var flags byte
	if c.Static {
		flags |= flagStatic
	}
	if c.Solo {
		flags |= flagSolo
	}
	b = append(b, byte(c.State), flags, byte(c.Prefix.Bits()), 0)
	a := c.Prefix.Addr().As16()
	b = append(b, a[:]...)
	b = append(b, c.Owner[:]...)
	b = binary.BigEndian.AppendUint64(b, c.Version)
	b = binary.BigEndian.AppendUint64(b, c.Gen)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Stamp))
	return binary.BigEndian.AppendUint64(b, c.Expiry)
}

func appendSettings(b []byte, s Settings) []byte {
	b = appendRecordHeader(b, kindSettings, settingsHeaderLen+settingsNetLen*len(s.Networks))
	b = binary.BigEndian.AppendUint32(b, uint32(s.LeaseTime/time.Second))
	b = append(b, byte(len(s.Networks)))
	b = append(b, make([]byte, 15)...)
	for i, n := range s.Networks {
		a := n.Addr().As16()
		b = append(b, a[:]...)
		b = append(b, byte(n.Bits()), byte(s.SubnetLens[i]), 0, 0)
	}
	return b
}

func appendFarewell(b []byte, f farewell) []byte {
	b = appendRecordHeader(b, kindFarewell, farewellLen)
	b = append(b, f.Node[:]...)
	return binary.BigEndian.AppendUint64(b, f.Boot)
}

func appendClock(b []byte, c clockReading) []byte {
	b = appendRecordHeader(b, kindClock, clockLen)
	b = append(b, c.Node[:]...)
	b = binary.BigEndian.AppendUint64(b, unixMilli(c.Wall))
	return binary.BigEndian.AppendUint64(b, unixMilli(c.Cluster))
}

// decodeRecord reads the record at the start of b and returns what follows it.
// On an error of one record whose length is known, rest is what follows it;
// else rest is nil. The record keeps nothing of b.
func decodeRecord(b []byte) (r record, rest []byte, err error) {
	if len(b) < recordHeaderLen {
		return r, nil, errRecordShort
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	if n < recordHeaderLen {
		return r, nil, errRecordBad
	}
	if n > len(b) {
		return r, nil, errRecordShort
	}
	body, rest := b[:n], b[n:]
	if b[0] != recordFormat {
		return r, rest, errRecordFormat
	}
	r.kind = b[1]
	switch r.kind {
	case kindSettings:
		r.settings, err = decodeSettings(body)
	case kindClaim:
		r.claim, err = decodeClaim(body)
	case kindFarewell:
		if n != farewellLen {
			return r, rest, errRecordBad
		}
		copy(r.farewell.Node[:], body[4:])
		r.farewell.Boot = binary.BigEndian.Uint64(body[20:])
		if f := r.farewell; f.Node.IsZero() || f.Boot == 0 || f.Boot > maxCounter {
			err = errRecordBad
		}
	case kindClock:
		if n != clockLen {
			return r, rest, errRecordBad
		}
		copy(r.clock.Node[:], body[4:])
		wall, ok := milliTime(binary.BigEndian.Uint64(body[20:]))
		cluster, okToo := milliTime(binary.BigEndian.Uint64(body[28:]))
		if r.clock.Wall, r.clock.Cluster = wall, cluster; r.clock.Node.IsZero() || !ok || !okToo {
			err = errRecordBad
		}
	default:
		err = errRecordKind
	}
	return r, rest, err
}

// decodePrefix accepts the canonical form only: no host bits, no zone, and one
// spelling for IPv4.
func decodePrefix(a [16]byte, bits byte) (netip.Prefix, error) {
	addr := netip.AddrFrom16(a).Unmap()
	p := netip.PrefixFrom(addr, int(bits))
	if !p.IsValid() || p.Masked() != p || p.Bits() == 0 {
		return netip.Prefix{}, errRecordBad
	}
	return p, nil
}

func decodeClaim(b []byte) (c Claim, err error) {
	if len(b) != claimLen {
		return c, errRecordBad
	}
	if b[5]&^(flagStatic|flagSolo) != 0 || b[7] != 0 {
		return c, errRecordBad
	}
	c.State = ClaimState(b[4])
	c.Static = b[5]&flagStatic != 0
	c.Solo = b[5]&flagSolo != 0
	if c.Prefix, err = decodePrefix([16]byte(b[8:24]), b[6]); err != nil {
		return c, err
	}
	copy(c.Owner[:], b[24:])
	c.Version = binary.BigEndian.Uint64(b[40:])
	c.Gen = binary.BigEndian.Uint64(b[48:])
	c.Stamp = Stamp(binary.BigEndian.Uint64(b[56:]))
	c.Expiry = binary.BigEndian.Uint64(b[64:])
	return c, c.check()
}

// check refuses what no honest node writes.
func (c Claim) check() error {
	switch {
	case c.State < Tentative || c.State > Released,
		c.Owner.IsZero(),
		c.Version == 0 || c.Version > maxCounter,
		c.Gen == 0 || c.Gen > maxCounter,
		c.Expiry == 0 || c.Expiry > maxCounter,
		c.State == Held && c.Stamp == 0,
		c.State == Tentative && c.Stamp != 0:
		return errRecordBad
	}
	return nil
}

// maxCounter bounds versions, gens, boots and expiries, so that nobody can push one to
// where it cannot be raised above.
const maxCounter = 1 << 62

func decodeSettings(b []byte) (s Settings, err error) {
	if len(b) < settingsHeaderLen {
		return s, errRecordBad
	}
	n := int(b[8])
	if n < 1 || n > 2 || len(b) != settingsHeaderLen+n*settingsNetLen {
		return s, errRecordBad
	}
	for _, z := range b[9:settingsHeaderLen] {
		if z != 0 {
			return s, errRecordBad
		}
	}
	s.LeaseTime = time.Duration(binary.BigEndian.Uint32(b[4:])) * time.Second
	for b := b[settingsHeaderLen:]; len(b) > 0; b = b[settingsNetLen:] {
		p, err := decodePrefix([16]byte(b[:16]), b[16])
		if err != nil || b[18] != 0 || b[19] != 0 {
			return Settings{}, errRecordBad
		}
		s.Networks = append(s.Networks, p)
		s.SubnetLens = append(s.SubnetLens, int(b[17]))
	}
	if s.Check() != nil {
		return Settings{}, errRecordBad
	}
	return s, nil
}

// Check tells what is wrong with settings, nil if nothing is.
func (s Settings) Check() error {
	if len(s.Networks) == 0 {
		return errors.New("no overlay network is given: --network 100.96.0.0/16, for example")
	}
	if len(s.Networks) > 2 || len(s.SubnetLens) != len(s.Networks) {
		return errors.New("at most one IPv4 and one IPv6 network, each with one subnet length")
	}
	for i, n := range s.Networks {
		if !n.IsValid() {
			return errors.New("a network is not a valid prefix")
		}
		if n.Masked() != n {
			return fmt.Errorf("network %v has host bits set: did you mean %v?", n, n.Masked())
		}
		if i > 0 && !(s.Networks[0].Addr().Is4() && n.Addr().Is6()) {
			return errors.New("two networks of one family: give one IPv4 and one IPv6 network, IPv4 first")
		}
		if a := n.Addr(); n.Bits() == 0 || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.Is4In6() || a.IsUnspecified() {
			return fmt.Errorf("network %v cannot be used: give a private unicast network such as 100.96.0.0/16 or fd96::/48", n)
		}
		// A subnet needs an address for the node, one for the bridge and some
		// for containers; host routes and RFC 3021 links have none to spare.
		longest := n.Addr().BitLen() - 2
		if l := s.SubnetLens[i]; l > longest || l < 1 {
			return fmt.Errorf("subnet length %d does not fit %v: it must be between %d and %d", l, n, max(n.Bits(), 1), longest)
		}
		if l := s.SubnetLens[i]; l < n.Bits() {
			return fmt.Errorf("network %v is too small for subnets of length %d: use a network of /%d or shorter, or a longer --subnet-len", n, l, l)
		}
	}
	if s.LeaseTime <= 0 || s.LeaseTime%time.Second != 0 || s.LeaseTime > 100*365*24*time.Hour {
		return fmt.Errorf("lease time %v is not a positive number of whole seconds", s.LeaseTime)
	}
	return nil
}

// admits reports whether a claim fits the settings: a subnet inside a network,
// of the leased length unless it is static.
func (s Settings) admits(c Claim) bool {
	for i, n := range s.Networks {
		if n.Addr().Is4() != c.Prefix.Addr().Is4() {
			continue
		}
		inside := n.Contains(c.Prefix.Addr()) && c.Prefix.Bits() >= n.Bits()
		if c.Static {
			return inside && c.Prefix.Bits() <= n.Addr().BitLen()-2
		}
		return inside && c.Prefix.Bits() == s.SubnetLens[i]
	}
	return false
}
