package forward

import (
	"encoding/binary"
	"testing"
)

func TestParseInner(t *testing.T) {
	const a4, b4, a6, b6 = "100.96.1.1", "100.96.2.1", "fd96::1", "fd96::2"
	edit := func(p []byte, change func([]byte)) []byte { change(p); return p }
	length4 := func(n uint16) func([]byte) { return func(p []byte) { binary.BigEndian.PutUint16(p[2:], n) } }
	length6 := func(n uint16) func([]byte) { return func(p []byte) { binary.BigEndian.PutUint16(p[4:], n) } }
	ihl := func(words byte) func([]byte) { return func(p []byte) { p[0] = 4<<4 | words } }
	for _, tt := range []struct {
		name string
		p    []byte
		want headerVerdict
	}{
		{"empty", nil, headerMalformed},
		{"version 0", make([]byte, 60), headerMalformed},
		{"version 5", edit(make([]byte, 60), func(p []byte) { p[0] = 0x55 }), headerMalformed},

		{"v4", innerFrom(a4, b4, 84), headerOK},
		{"v4 header only", innerFrom(a4, b4, 20), headerOK},
		{"v4 one byte", []byte{0x45}, headerMalformed},
		{"v4 short header", innerFrom(a4, b4, 20)[:19], headerMalformed},
		{"v4 truncated", innerFrom(a4, b4, 84)[:83], headerMalformed},
		{"v4 trailing byte", append(innerFrom(a4, b4, 84), 0), headerMalformed},
		{"v4 length 0", edit(innerFrom(a4, b4, 84), length4(0)), headerMalformed},
		{"v4 length below header", edit(innerFrom(a4, b4, 84), length4(19)), headerMalformed},
		{"v4 header length 4 words", edit(innerFrom(a4, b4, 84), ihl(4)), headerMalformed},
		{"v4 options", edit(innerFrom(a4, b4, 60), ihl(15)), headerOK},
		{"v4 options beyond the end", edit(innerFrom(a4, b4, 59), ihl(15)), headerMalformed},
		{"v4 longest", innerFrom(a4, b4, 65535), headerOK},

		{"v4 to multicast", innerFrom(a4, "224.0.0.251", 40), headerMulticast},
		{"v4 to highest multicast", innerFrom(a4, "239.255.255.255", 40), headerMulticast},
		{"v4 to broadcast", innerFrom(a4, "255.255.255.255", 40), headerMulticast},
		{"v4 DHCP discover", innerFrom("0.0.0.0", "255.255.255.255", 40), headerMulticast},
		{"v4 from multicast", innerFrom("224.0.0.1", b4, 40), headerMartian},
		{"v4 from broadcast", innerFrom("255.255.255.255", b4, 40), headerMartian},
		{"v4 from unspecified", innerFrom("0.0.0.0", b4, 40), headerMartian},
		{"v4 to unspecified", innerFrom(a4, "0.0.0.0", 40), headerMartian},
		{"v4 from this network", innerFrom("0.1.2.3", b4, 40), headerMartian},
		{"v4 from loopback", innerFrom("127.0.0.1", b4, 40), headerMartian},
		{"v4 to loopback", innerFrom(a4, "127.8.8.8", 40), headerMartian},
		{"v4 from link-local", innerFrom("169.254.1.1", b4, 40), headerMartian},
		{"v4 to link-local", innerFrom(a4, "169.254.169.254", 40), headerMartian},
		{"v4 beside link-local", innerFrom("169.253.1.1", "169.255.1.1", 40), headerOK},
		{"v4 former class E", innerFrom("240.0.0.1", "255.255.255.254", 40), headerOK},
		{"v4 below multicast", innerFrom("223.255.255.255", b4, 40), headerOK},

		{"v6", innerFrom(a6, b6, 104), headerOK},
		{"v6 header only", innerFrom(a6, b6, 40), headerOK},
		{"v6 short header", innerFrom(a6, b6, 40)[:39], headerMalformed},
		{"v6 truncated", innerFrom(a6, b6, 104)[:103], headerMalformed},
		{"v6 trailing byte", append(innerFrom(a6, b6, 104), 0), headerMalformed},
		{"v6 jumbogram", edit(innerFrom(a6, b6, 104), length6(0)), headerMalformed},
		{"v6 longest", innerFrom(a6, b6, 65535+40), headerOK},

		{"v6 to multicast", innerFrom(a6, "ff02::1", 40), headerMulticast},
		{"v6 neighbour discovery", innerFrom("::", "ff02::1:ff00:1", 40), headerMulticast},
		{"v6 from multicast", innerFrom("ff0e::1", b6, 40), headerMartian},
		{"v6 from unspecified", innerFrom("::", b6, 40), headerMartian},
		{"v6 to unspecified", innerFrom(a6, "::", 40), headerMartian},
		{"v6 from loopback", innerFrom("::1", b6, 40), headerMartian},
		{"v6 to loopback", innerFrom(a6, "::1", 40), headerMartian},
		{"v6 from link-local", innerFrom("fe80::1", b6, 40), headerMartian},
		{"v6 to link-local", innerFrom(a6, "febf::1", 40), headerMartian},
		{"v6 beside link-local", innerFrom("fec0::1", b6, 40), headerOK},
		{"v6 from mapped", edit(innerFrom("::", b6, 40), func(p []byte) {
			copy(p[18:], []byte{0xff, 0xff, 100, 96, 1, 1})
		}), headerMartian},
	} {
		src, dst, v := parseInner(tt.p)
		if v != tt.want {
			t.Errorf("%s: verdict %v, want %v", tt.name, v, tt.want)
		}
		if v == headerOK && (!src.IsValid() || !dst.IsValid() || src.Is4() != (tt.p[0]>>4 == 4)) {
			t.Errorf("%s: addresses %v, %v", tt.name, src, dst)
		}
	}
	if src, dst, _ := parseInner(innerFrom(a4, b4, 20)); src != addr(a4) || dst != addr(b4) {
		t.Errorf("addresses %v, %v", src, dst)
	}
	if src, dst, _ := parseInner(innerFrom(a6, b6, 40)); src != addr(a6) || dst != addr(b6) {
		t.Errorf("addresses %v, %v", src, dst)
	}
}
