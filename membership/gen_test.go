package membership

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// What several tests draw and write: identities, claims, times.

// simEpoch is the wall-clock time at which virtual time begins.
var simEpoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// testID returns the i-th identity; ids sort by i.
func testID(i int) (id NodeID) {
	binary.BigEndian.PutUint64(id[:], uint64(i)+1)
	copy(id[8:], "overlayd")
	return id
}

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// unhex reads hexadecimal digits with white space anywhere.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// genPrefix draws a prefix inside 100.96.0.0/16 or fd96::/48, of few values so
// that draws overlap often.
func genPrefix() *rapid.Generator[netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) netip.Prefix {
		n := byte(rapid.IntRange(0, 15).Draw(t, "subnet") << 4)
		if rapid.Bool().Draw(t, "v6") {
			a := netip.AddrFrom16([16]byte{0xfd, 0x96, 6: n})
			return netip.PrefixFrom(a, rapid.SampledFrom([]int{48, 50, 52, 60, 64, 80}).Draw(t, "length")).Masked()
		}
		a := netip.AddrFrom4([4]byte{100, 96, n, 0})
		return netip.PrefixFrom(a, rapid.SampledFrom([]int{16, 18, 20, 24, 28}).Draw(t, "length")).Masked()
	})
}

// genClaim draws a claim that is valid on the wire, of few values so that
// draws share keys and tie often.
func genClaim() *rapid.Generator[Claim] {
	return rapid.Custom(func(t *rapid.T) Claim {
		c := Claim{
			Key:     Key{genPrefix().Draw(t, "prefix"), testID(rapid.IntRange(0, 7).Draw(t, "owner"))},
			Version: rapid.Uint64Range(1, 3).Draw(t, "version"),
			State:   ClaimState(rapid.IntRange(1, 3).Draw(t, "state")),
			Static:  rapid.Bool().Draw(t, "static"),
			Solo:    rapid.Bool().Draw(t, "solo"),
			Gen:     rapid.Uint64Range(1, 3).Draw(t, "gen"),
		}
		switch c.State {
		case Held:
			c.Stamp = Stamp(rapid.Uint64Range(1, 3).Draw(t, "stamp"))
		case Released:
			c.Stamp = Stamp(rapid.Uint64Range(0, 1).Draw(t, "stamp"))
		}
		c.Expiry = uint64(simEpoch.Unix()) + rapid.Uint64Range(1, 3).Draw(t, "expiry")
		return c
	})
}

// genAnyClaim draws a claim with any value that the wire allows.
func genAnyClaim() *rapid.Generator[Claim] {
	return rapid.Custom(func(t *rapid.T) Claim {
		a := netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "address")))
		if rapid.Bool().Draw(t, "v4") {
			four := a.As16()
			a = netip.AddrFrom4([4]byte(four[:4]))
		}
		a = a.Unmap()
		owner := NodeID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "owner"))
		owner[0] |= 1
		c := Claim{
			Key:     Key{netip.PrefixFrom(a, rapid.IntRange(1, a.BitLen()).Draw(t, "length")).Masked(), owner},
			Version: rapid.Uint64Range(1, maxCounter).Draw(t, "version"),
			State:   ClaimState(rapid.IntRange(1, 3).Draw(t, "state")),
			Static:  rapid.Bool().Draw(t, "static"),
			Solo:    rapid.Bool().Draw(t, "solo"),
			Gen:     rapid.Uint64Range(1, maxCounter).Draw(t, "gen"),
			Stamp:   Stamp(rapid.Uint64Min(1).Draw(t, "stamp")),
			Expiry:  rapid.Uint64Range(1, maxCounter).Draw(t, "expiry"),
		}
		if c.State == Tentative {
			c.Stamp = 0
		}
		return c
	})
}

// genSettings draws settings that Check accepts.
func genSettings() *rapid.Generator[Settings] {
	return rapid.Custom(func(t *rapid.T) Settings {
		s := Settings{LeaseTime: time.Duration(rapid.Int64Range(1, 100*365*24*3600).Draw(t, "seconds")) * time.Second}
		add := func(p netip.Prefix) {
			s.Networks = append(s.Networks, p.Masked())
			s.SubnetLens = append(s.SubnetLens, rapid.IntRange(p.Bits(), p.Addr().BitLen()-2).Draw(t, "subnet length"))
		}
		which := rapid.IntRange(1, 3).Draw(t, "families")
		if which&1 != 0 {
			add(netip.PrefixFrom(netip.MustParseAddr("10.171.205.239"), rapid.IntRange(5, 30).Draw(t, "v4")))
		}
		if which&2 != 0 {
			add(netip.PrefixFrom(netip.MustParseAddr("fd96:1234:5678:9abc:def0:1234:5678:9abc"), rapid.IntRange(8, 126).Draw(t, "v6")))
		}
		return s
	})
}
