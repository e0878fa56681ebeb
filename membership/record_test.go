package membership

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

var cmpRecords = cmp.Options{
	cmp.AllowUnexported(record{}, meta{}),
	cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}),
}

func appendRecord(b []byte, r record) []byte {
	switch r.kind {
	case kindSettings:
		return appendSettings(b, r.settings)
	case kindClaim:
		return appendClaim(b, r.claim)
	case kindFarewell:
		return appendFarewell(b, r.farewell)
	case kindClock:
		return appendClock(b, r.clock)
	}
	panic("no such kind")
}

// goldenOwner is 00 01 .. 0f.
var goldenOwner = NodeID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

// goldenRecords are the wire format, byte for byte: nodes of all versions of a
// cluster must agree on it.
var goldenRecords = []struct {
	name string
	hex  string
	rec  record
}{
	{
		"settings, IPv4",
		`01 01 002c  00015180 01 000000000000000000000000000000
		 00000000000000000000ffff64600000 10 18 0000`,
		record{kind: kindSettings, settings: Settings{[]netip.Prefix{pfx("100.96.0.0/16")}, []int{24}, 24 * time.Hour}},
	}, {
		"settings, IPv6",
		`01 01 002c  0000003c 01 000000000000000000000000000000
		 fd960000000000000000000000000000 30 40 0000`,
		record{kind: kindSettings, settings: Settings{[]netip.Prefix{pfx("fd96::/48")}, []int{64}, time.Minute}},
	}, {
		"settings, both",
		`01 01 0040  00015180 02 000000000000000000000000000000
		 00000000000000000000ffff64600000 10 18 0000
		 fd960000000000000000000000000000 30 40 0000`,
		record{kind: kindSettings, settings: Settings{[]netip.Prefix{pfx("100.96.0.0/16"), pfx("fd96::/48")}, []int{24, 64}, 24 * time.Hour}},
	}, {
		"claim, IPv4, tentative",
		`01 02 0048  01 00 18 00 00000000000000000000ffff64600100
		 000102030405060708090a0b0c0d0e0f
		 0000000000000001 0000000000000001 0000000000000000 0000000070dbd880`,
		record{kind: kindClaim, claim: Claim{Key: Key{pfx("100.96.1.0/24"), goldenOwner}, Version: 1, State: Tentative, Gen: 1, Expiry: 0x70dbd880}},
	}, {
		"claim, IPv4, held, static",
		`01 02 0048  02 01 14 00 00000000000000000000ffff64601000
		 000102030405060708090a0b0c0d0e0f
		 0000000000000002 0000000000000003 019000000000abcd 0000000070dbd880`,
		record{kind: kindClaim, claim: Claim{Key: Key{pfx("100.96.16.0/20"), goldenOwner}, Version: 2, State: Held, Static: true, Gen: 3, Stamp: 0x019000000000abcd, Expiry: 0x70dbd880}},
	}, {
		"claim, IPv4, released, static and solo",
		`01 02 0048  03 03 18 00 00000000000000000000ffff6460ff00
		 000102030405060708090a0b0c0d0e0f
		 4000000000000000 4000000000000000 ffffffffffffffff 0000000070dbd880`,
		record{kind: kindClaim, claim: Claim{Key: Key{pfx("100.96.255.0/24"), goldenOwner}, Version: maxCounter, State: Released, Static: true, Solo: true, Gen: maxCounter, Stamp: 1<<64 - 1, Expiry: 0x70dbd880}},
	}, {
		"claim, IPv6, tentative, solo",
		`01 02 0048  01 02 40 00 fd960000000012340000000000000000
		 000102030405060708090a0b0c0d0e0f
		 0000000000000001 0000000000000001 0000000000000000 0000000070dbd880`,
		record{kind: kindClaim, claim: Claim{Key: Key{pfx("fd96:0:0:1234::/64"), goldenOwner}, Version: 1, State: Tentative, Solo: true, Gen: 1, Expiry: 0x70dbd880}},
	}, {
		"claim, IPv6, held",
		`01 02 0048  02 00 40 00 fd960000000012340000000000000000
		 000102030405060708090a0b0c0d0e0f
		 0000000000000002 0000000000000001 0190000000000001 0000000070dbd880`,
		record{kind: kindClaim, claim: Claim{Key: Key{pfx("fd96:0:0:1234::/64"), goldenOwner}, Version: 2, State: Held, Gen: 1, Stamp: 0x0190000000000001, Expiry: 0x70dbd880}},
	}, {
		"claim, IPv6, released",
		`01 02 0048  03 00 7e 00 fd9600000000123400000000000000fc
		 000102030405060708090a0b0c0d0e0f
		 0000000000000003 0000000000000001 0190000000000001 0000000070dbd880`,
		record{kind: kindClaim, claim: Claim{Key: Key{pfx("fd96:0:0:1234::fc/126"), goldenOwner}, Version: 3, State: Released, Gen: 1, Stamp: 0x0190000000000001, Expiry: 0x70dbd880}},
	}, {
		"farewell",
		`01 03 001c  000102030405060708090a0b0c0d0e0f 0000000070dbd880`,
		record{kind: kindFarewell, farewell: farewell{goldenOwner, 0x70dbd880}},
	}, {
		"clock",
		`01 04 0024  000102030405060708090a0b0c0d0e0f 000001b8d4b3f7d2 0000000000000000`,
		record{kind: kindClock, clock: clockReading{goldenOwner, time.UnixMilli(0x1b8d4b3f7d2), time.UnixMilli(0)}},
	},
}

func TestRecordGolden(t *testing.T) {
	for _, tc := range goldenRecords {
		t.Run(tc.name, func(t *testing.T) {
			want := unhex(t, tc.hex)
			if got := appendRecord(nil, tc.rec); !bytes.Equal(got, want) {
				t.Errorf("encoded\n%s, want\n%s", hex.EncodeToString(got), hex.EncodeToString(want))
			}
			got, rest, err := decodeRecord(want)
			if err != nil || len(rest) != 0 {
				t.Fatalf("decode: rest %x, error %v", rest, err)
			}
			if d := cmp.Diff(tc.rec, got, cmpRecords); d != "" {
				t.Error(d)
			}
		})
	}
}

func genRecord() *rapid.Generator[record] {
	return rapid.Custom(func(t *rapid.T) record {
		switch rapid.IntRange(1, 4).Draw(t, "kind") {
		case kindSettings:
			return record{kind: kindSettings, settings: genSettings().Draw(t, "settings")}
		case kindClaim:
			return record{kind: kindClaim, claim: genAnyClaim().Draw(t, "claim")}
		}
		id := NodeID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "node"))
		id[15] |= 1
		if rapid.Bool().Draw(t, "clock") {
			at := rapid.Int64Range(0, 1<<47-1)
			return record{kind: kindClock, clock: clockReading{id, time.UnixMilli(at.Draw(t, "wall")), time.UnixMilli(at.Draw(t, "cluster"))}}
		}
		return record{kind: kindFarewell, farewell: farewell{id, rapid.Uint64Range(1, maxCounter).Draw(t, "boot")}}
	})
}

func TestRecordRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(genRecord(), 1, 5).Draw(t, "records")
		var b []byte
		for _, r := range want {
			b = appendRecord(b, r)
		}
		var got []record
		for rest := b; len(rest) > 0; {
			r, next, err := decodeRecord(rest)
			if err != nil {
				t.Fatalf("record %d: %v", len(got), err)
			}
			got, rest = append(got, r), next
		}
		if d := cmp.Diff(want, got, cmpRecords); d != "" {
			t.Fatal(d)
		}
	})
}

func TestRecordCutAtEveryByte(t *testing.T) {
	for _, tc := range goldenRecords {
		whole := unhex(t, tc.hex)
		for n := range len(whole) {
			r, rest, err := decodeRecord(whole[:n:n])
			if !errors.Is(err, errRecordShort) || rest != nil {
				t.Errorf("%s cut to %d bytes: %+v, rest %x, error %v", tc.name, n, r, rest, err)
			}
		}
		// The same with a length field that claims to be whole.
		for n := recordHeaderLen; n < len(whole); n++ {
			cut := bytes.Clone(whole[:n])
			cut[2], cut[3] = byte(n>>8), byte(n)
			if _, rest, err := decodeRecord(append(cut, 0xaa)); !errors.Is(err, errRecordBad) || !bytes.Equal(rest, []byte{0xaa}) {
				t.Errorf("%s shortened to %d bytes: rest %x, error %v", tc.name, n, rest, err)
			}
		}
		long := append(bytes.Clone(whole), 0)
		long[2], long[3] = byte(len(long)>>8), byte(len(long))
		if _, rest, err := decodeRecord(long); !errors.Is(err, errRecordBad) || rest == nil || len(rest) != 0 {
			t.Errorf("%s with a byte more: rest %x, error %v", tc.name, rest, err)
		}
	}
}

// TestRecordRefused changes single bytes of good records into what no honest
// node writes. Offsets are those of the format's description.
func TestRecordRefused(t *testing.T) {
	base := map[string][]byte{}
	for _, tc := range goldenRecords {
		base[tc.name] = unhex(t, tc.hex)
	}
	type patch struct {
		at  int
		hex string
	}
	for _, tc := range []struct {
		name, base string
		patches    []patch
	}{
		{"claim: state 0", "claim, IPv4, tentative", []patch{{4, "00"}}},
		{"claim: state 4", "claim, IPv4, tentative", []patch{{4, "04"}}},
		{"claim: unknown flag", "claim, IPv4, tentative", []patch{{5, "04"}}},
		{"claim: highest flag", "claim, IPv4, tentative", []patch{{5, "80"}}},
		{"claim: reserved byte", "claim, IPv4, tentative", []patch{{7, "01"}}},
		{"claim: host bits, IPv4", "claim, IPv4, tentative", []patch{{23, "01"}}},
		{"claim: host bits, IPv6", "claim, IPv6, held", []patch{{23, "01"}}},
		{"claim: IPv4 length counted as IPv6", "claim, IPv4, tentative", []patch{{6, "78"}}},
		{"claim: IPv4 length 33", "claim, IPv4, tentative", []patch{{6, "21"}}},
		{"claim: IPv6 length 129", "claim, IPv6, held", []patch{{6, "81"}}},
		{"claim: length 255", "claim, IPv6, held", []patch{{6, "ff"}}},
		{"claim: 0.0.0.0/0", "claim, IPv4, tentative", []patch{{6, "00"}, {20, "00000000"}}},
		{"claim: ::/0", "claim, IPv6, held", []patch{{6, "00"}, {8, "00000000000000000000000000000000"}}},
		{"claim: length 0 with an address", "claim, IPv6, held", []patch{{6, "00"}}},
		{"claim: no owner", "claim, IPv4, tentative", []patch{{24, "00000000000000000000000000000000"}}},
		{"claim: version 0", "claim, IPv4, tentative", []patch{{40, "0000000000000000"}}},
		{"claim: version over the limit", "claim, IPv4, tentative", []patch{{40, "4000000000000001"}}},
		{"claim: largest version", "claim, IPv4, tentative", []patch{{40, "ffffffffffffffff"}}},
		{"claim: gen 0", "claim, IPv4, tentative", []patch{{48, "0000000000000000"}}},
		{"claim: gen over the limit", "claim, IPv4, tentative", []patch{{48, "4000000000000001"}}},
		{"claim: held without a stamp", "claim, IPv6, held", []patch{{56, "0000000000000000"}}},
		{"claim: tentative with a stamp", "claim, IPv6, tentative, solo", []patch{{56, "0000000000000001"}}},
		{"claim: no expiry", "claim, IPv6, held", []patch{{64, "0000000000000000"}}},
		{"claim: expiry over the limit", "claim, IPv6, held", []patch{{64, "4000000000000001"}}},
		{"clock: nobody's", "clock", []patch{{4, "00000000000000000000000000000000"}}},
		{"clock: a time that no clock shows", "clock", []patch{{20, "0000800000000000"}}},
		{"clock: no such time of a cluster", "clock", []patch{{28, "ffffffffffffffff"}}},
		{"settings: no network", "settings, IPv4", []patch{{8, "00"}}},
		{"settings: a network more than there is", "settings, IPv4", []patch{{8, "02"}}},
		{"settings: a network fewer", "settings, both", []patch{{8, "01"}}},
		{"settings: three networks", "settings, both", []patch{{8, "03"}}},
		{"settings: reserved, first", "settings, IPv4", []patch{{9, "01"}}},
		{"settings: reserved, last", "settings, IPv4", []patch{{23, "01"}}},
		{"settings: reserved of a network", "settings, IPv4", []patch{{42, "01"}}},
		{"settings: reserved of a network, last byte", "settings, IPv4", []patch{{43, "01"}}},
		{"settings: no lease time", "settings, IPv4", []patch{{4, "00000000"}}},
		{"settings: lease time over a century", "settings, IPv4", []patch{{4, "ffffffff"}}},
		{"settings: host bits", "settings, IPv4", []patch{{39, "01"}}},
		{"settings: IPv4 length counted as IPv6", "settings, IPv4", []patch{{40, "70"}}},
		{"settings: subnets wider than the network", "settings, IPv4", []patch{{41, "0f"}}},
		{"settings: subnets of one address", "settings, IPv4", []patch{{41, "20"}}},
		{"settings: IPv6 subnets of two addresses", "settings, IPv6", []patch{{41, "7f"}}},
		{"settings: multicast", "settings, IPv4", []patch{{36, "e0000000"}}},
		{"settings: multicast, IPv6", "settings, IPv6", []patch{{24, "ff05"}}},
		{"settings: loopback", "settings, IPv4", []patch{{36, "7f000000"}}},
		{"settings: link-local", "settings, IPv6", []patch{{24, "fe80"}}},
		{"settings: everything", "settings, IPv4", []patch{{36, "00000000"}, {40, "00"}}},
		{"settings: IPv6 first", "settings, both", []patch{
			{24, "fd960000000000000000000000000000 30 40 0000 00000000000000000000ffff64600000 10 18 0000"}}},
		{"settings: two of one family", "settings, both", []patch{{44, "00000000000000000000ffff64610000 10 18 0000"}}},
		{"farewell: nobody", "farewell", []patch{{4, "00000000000000000000000000000000"}}},
		{"farewell: boot 0", "farewell", []patch{{20, "0000000000000000"}}},
		{"farewell: boot that no name may have", "farewell", []patch{{20, "4000000000000001"}}},
		{"length below the header", "farewell", []patch{{2, "0003"}}},
		{"length 0", "farewell", []patch{{2, "0000"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := bytes.Clone(base[tc.base])
			if b == nil {
				t.Fatal("no such base")
			}
			if _, _, err := decodeRecord(b); err != nil {
				t.Fatalf("the base itself: %v", err)
			}
			for _, p := range tc.patches {
				copy(b[p.at:], unhex(t, p.hex))
			}
			if r, _, err := decodeRecord(b); !errors.Is(err, errRecordBad) {
				t.Errorf("error %v, record %+v", err, r)
			}
		})
	}
}

// TestRecordOfTheFuture: what this version does not know is skipped by its
// length, under its own reason, and what follows is read.
func TestRecordOfTheFuture(t *testing.T) {
	known := unhex(t, goldenRecords[3].hex)
	for _, tc := range []struct {
		name, hex string
		want      error
	}{
		{"format 2", "02 02 0008 deadbeef", errRecordFormat},
		{"format 0", "00 02 0008 deadbeef", errRecordFormat},
		{"format 255, header only", "ff ff 0004", errRecordFormat},
		{"kind 5", "01 05 0007 c0ffee", errRecordKind},
		{"kind 0, header only", "01 00 0004", errRecordKind},
		{"kind 255", "01 ff 0005 00", errRecordKind},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := append(unhex(t, tc.hex), known...)
			_, rest, err := decodeRecord(b)
			if !errors.Is(err, tc.want) {
				t.Fatalf("error %v", err)
			}
			if r, _, err := decodeRecord(rest); err != nil || r.kind != kindClaim {
				t.Errorf("what follows: %+v, %v", r, err)
			}
		})
	}
}

// TestSettingsAdmit: a claim has to be a subnet inside a network, of the
// leased length unless it is static.
func TestSettingsAdmit(t *testing.T) {
	s := testSettings("100.96.0.0/16", "fd96::/48")
	for _, tc := range []struct {
		prefix          string
		dynamic, static bool
	}{
		{"100.96.0.0/24", true, true},
		{"100.96.255.0/24", true, true},
		{"100.96.1.0/25", false, true},
		{"100.96.0.0/20", false, true},
		{"100.96.0.0/16", false, true},
		{"100.96.0.0/30", false, true},
		{"100.96.0.0/31", false, false},
		{"100.96.0.1/32", false, false},
		{"100.97.0.0/24", false, false},
		{"100.95.255.0/24", false, false},
		{"100.96.0.0/15", false, false},
		{"224.0.0.0/24", false, false},
		{"fd96::/64", true, true},
		{"fd96:0:0:ffff::/64", true, true},
		{"fd96:0:1::/64", false, false},
		{"fd96::/48", false, true},
		{"fd96::/47", false, false},
		{"fd96::/126", false, true},
		{"fd96::/127", false, false},
		{"ff05::/64", false, false},
	} {
		for _, static := range []bool{false, true} {
			want := tc.dynamic
			if static {
				want = tc.static
			}
			if got := s.admits(Claim{Key: Key{Prefix: pfx(tc.prefix)}, Static: static}); got != want {
				t.Errorf("%s static %v: %v", tc.prefix, static, got)
			}
		}
	}
	four := testSettings("100.96.0.0/16")
	if four.admits(Claim{Key: Key{Prefix: pfx("fd96::/64")}}) {
		t.Error("an IPv6 claim in a cluster without IPv6")
	}
}

func FuzzDecodeRecord(f *testing.F) {
	for _, tc := range goldenRecords {
		f.Add(unhex(f, tc.hex))
	}
	f.Add(unhex(f, "02 02 0008 deadbeef 01 03 0004"))
	f.Add(unhex(f, "01 02 ffff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		given := bytes.Clone(b)
		r, rest, err := decodeRecord(b)
		if !bytes.Equal(b, given) {
			t.Fatal("the input was changed")
		}
		if len(rest) >= len(b) && len(b) > 0 {
			t.Fatalf("no progress: %d bytes are left of %d", len(rest), len(b))
		}
		if err != nil {
			if known := errors.Is(err, errRecordShort) || errors.Is(err, errRecordFormat) || errors.Is(err, errRecordKind) || errors.Is(err, errRecordBad); !known {
				t.Fatalf("an error without a counter: %v", err)
			}
			return
		}
		again := appendRecord(nil, r)
		if consumed := b[:len(b)-len(rest)]; !bytes.Equal(again, consumed) {
			t.Fatalf("accepted\n%x, encodes to\n%x", consumed, again)
		}
		// A struct that keeps a slice of the input would change with it.
		clear(b)
		if !bytes.Equal(appendRecord(nil, r), again) {
			t.Fatal("the record keeps a part of the input")
		}
		r2, rest, err := decodeRecord(again)
		if err != nil || len(rest) != 0 {
			t.Fatalf("second decode: %v", err)
		}
		if d := cmp.Diff(r, r2, cmpRecords); d != "" {
			t.Fatal(d)
		}
	})
}
