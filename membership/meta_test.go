package membership

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var goldenMetas = []struct {
	name string
	hex  string
	meta meta
}{
	{
		"IPv4", `01 07 0001 205d 2118 12b5 05aa 02a1b2c3d4e5 c0a80105 05 616c706861 000001`,
		meta{true, true, CapUDP, Ports{8285, 8472, 4789}, 1450, [6]byte{0x02, 0xa1, 0xb2, 0xc3, 0xd4, 0xe5},
			[]netip.Addr{netip.MustParseAddr("192.168.1.5")}, "alpha", 1},
	}, {
		"IPv6", `01 08 8003 205d 2118 12b5 05aa 02a1b2c3d4e5 20010db8000000000000000000000005 03 612e62 123456`,
		meta{false, false, CapUDP | CapVXLAN | 0x8000, Ports{8285, 8472, 4789}, 1450, [6]byte{0x02, 0xa1, 0xb2, 0xc3, 0xd4, 0xe5},
			[]netip.Addr{netip.MustParseAddr("2001:db8::5")}, "a.b", 0x123456},
	}, {
		"both", `01 0d 000f 205d 0000 0000 ffff 02a1b2c3d4e5 c0a80105 20010db8000000000000000000000005 01 5f`,
		meta{true, false, CapUDP | CapVXLAN | CapKernelVXLAN | CapDirect, Ports{UDP: 8285}, 65535, [6]byte{0x02, 0xa1, 0xb2, 0xc3, 0xd4, 0xe5},
			[]netip.Addr{netip.MustParseAddr("192.168.1.5"), netip.MustParseAddr("2001:db8::5")}, "_", 0},
	}, {
		"no endpoint", `01 02 0000 0001 0000 0000 0000 020000000000 01 61`,
		meta{listed: true, ports: Ports{UDP: 1}, mac: [6]byte{2}, name: "a"},
	},
}

func TestMetaGolden(t *testing.T) {
	for _, tc := range goldenMetas {
		t.Run(tc.name, func(t *testing.T) {
			want := unhex(t, tc.hex)
			if got := tc.meta.append(nil); !bytes.Equal(got, want) {
				t.Errorf("encoded\n%s, want\n%s", hex.EncodeToString(got), hex.EncodeToString(want))
			}
			for _, more := range []string{"", "01", "0102030405"} { // of a newer version
				if tc.meta.vni == 0 && len(more) >= 6 {
					continue // that would be a VNI
				}
				got, err := decodeMeta(append(bytes.Clone(want), unhex(t, more)...))
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(tc.meta, got, cmpRecords); d != "" {
					t.Error(d)
				}
			}
			if tc.meta.vni != 0 { // which may be left out
				want = want[:len(want)-3]
			}
			for n := range want {
				if m, err := decodeMeta(want[:n:n]); !errors.Is(err, errMeta) {
					t.Errorf("cut to %d bytes: %+v, %v", n, m, err)
				}
			}
		})
	}
}

func TestMetaStaysSmall(t *testing.T) {
	m := meta{holder: true, listed: true, caps: 0xffff, ports: Ports{65535, 65535, 65535}, mtu: 65535, mac: VTEPMAC(goldenOwner),
		addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, name: strings.Repeat("x", maxName), vni: 1<<24 - 1}
	b := m.append(nil)
	if len(b) > maxMeta {
		t.Errorf("the largest meta is %d bytes long", len(b))
	}
	got, err := decodeMeta(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, got, cmpRecords); d != "" {
		t.Error(d)
	}
	if _, err := decodeMeta(append(b, make([]byte, maxMeta+1-len(b))...)); !errors.Is(err, errMeta) {
		t.Errorf("a longer one: %v", err)
	}
}

func TestMetaRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		base int // index in goldenMetas
		at   int
		hex  string
	}{
		{"format 0", 0, 0, "00"},
		{"format 2", 0, 0, "02"},
		{"no UDP port", 0, 4, "0000"},
		{"multicast MAC", 0, 12, "03"},
		{"endpoint 0.0.0.0", 0, 18, "00000000"},
		{"endpoint 255.255.255.255", 0, 18, "ffffffff"},
		{"endpoint multicast", 0, 18, "e0000001"},
		{"endpoint ::", 1, 18, "00000000000000000000000000000000"},
		{"endpoint multicast, IPv6", 1, 18, "ff02"},
		{"endpoint ::ffff:192.0.2.1", 1, 18, "00000000000000000000ffffc0000201"},
		{"empty name", 0, 22, "00"},
		{"name longer than the rest", 0, 22, "06"},
		{"name with a slash", 0, 23, "2f"},
		{"name with a space", 0, 23, "20"},
		{"name with a newline", 0, 23, "0a"},
		{"name with an escape", 0, 23, "1b"},
		{"name with a percent sign", 0, 23, "25"},
		{"name that is not UTF-8", 0, 23, "ff"},
		{"name with an umlaut", 0, 23, "c3a4"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := unhex(t, goldenMetas[tc.base].hex)
			copy(b[tc.at:], unhex(t, tc.hex))
			if m, err := decodeMeta(b); !errors.Is(err, errMeta) {
				t.Errorf("%+v, %v", m, err)
			}
		})
	}
}

func TestCheckName(t *testing.T) {
	for _, good := range []string{"a", "A-1", "host.example", "_x", "-", "..", strings.Repeat("n", maxName)} {
		if err := CheckName(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", " ", "a b", "a/b", "a\n", "ä", "a\x00", "a%s", "$(x)", "\xff", strings.Repeat("n", maxName+1)} {
		if CheckName(bad) == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestVTEPMAC(t *testing.T) {
	seen := map[[6]byte]bool{}
	for i := range 1000 {
		mac := VTEPMAC(testID(i))
		if mac[0]&3 != 2 {
			t.Fatalf("%x is not unicast and locally administered", mac)
		}
		if mac != VTEPMAC(testID(i)) || seen[mac] {
			t.Fatalf("%x is not stable or not unique", mac)
		}
		seen[mac] = true
	}
	// FDB entries of running peers hold it: it must never change for a NodeID.
	if got, want := hex.EncodeToString(func() []byte { m := VTEPMAC(goldenOwner); return m[:] }()), "764b32ff2986"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestGossipName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := NodeID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		id[3] |= 1
		boot := rapid.Uint64Range(1, maxCounter).Draw(t, "boot")
		gotID, gotBoot, err := parseGossipName(gossipName(id, boot))
		if err != nil || gotID != id || gotBoot != boot {
			t.Fatalf("%v %v %v", gotID, gotBoot, err)
		}
	})
	id := goldenOwner.String()
	for _, bad := range []string{
		"", "-", id, id + "-", id + "-0", id + "-00", id + "-01", id + "-A", id + "--1", id + "-+1", id + "-1-1", id + "-1 ",
		id + "-4000000000000001", id + "-ffffffffffffffff", id + "-10000000000000000",
		strings.ToUpper(id) + "-1", id[1:] + "-1", "0" + id + "-1", strings.Repeat("0", 32) + "-1", "host-1",
	} {
		if _, _, err := parseGossipName(bad); !errors.Is(err, errMeta) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzDecodeMeta(f *testing.F) {
	for _, tc := range goldenMetas {
		f.Add(unhex(f, tc.hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMeta(b)
		if err != nil {
			if !errors.Is(err, errMeta) {
				t.Fatalf("an error without a counter: %v", err)
			}
			return
		}
		again := m.append(nil)
		if len(again) > maxMeta {
			t.Fatalf("%d bytes", len(again))
		}
		clear(b) // nothing of the input is kept
		m2, err := decodeMeta(again)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(m, m2, cmpRecords); d != "" {
			t.Fatal(d)
		}
	})
}

func FuzzParseGossipName(f *testing.F) {
	f.Add(gossipName(goldenOwner, 1))
	f.Add(gossipName(goldenOwner, maxCounter))
	f.Add(goldenOwner.String() + "-00")
	f.Add("host1")
	f.Fuzz(func(t *testing.T, s string) {
		id, boot, err := parseGossipName(s)
		if err != nil {
			return
		}
		if id.IsZero() || boot == 0 || gossipName(id, boot) != s {
			t.Fatalf("%q is taken for %v at boot %d", s, id, boot)
		}
	})
}
