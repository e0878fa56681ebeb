package encap

import (
	"bytes"
	"errors"
	"testing"
)

func TestUDPDecode(t *testing.T) {
	ip4 := append([]byte{0x45}, make([]byte, 19)...)
	ip6 := append([]byte{0x60}, make([]byte, 39)...)
	for _, tt := range []struct {
		name string
		in   []byte
		kind Kind
		err  error
	}{
		{"empty", nil, Invalid, ErrShort},
		{"ipv4", ip4, IPv4, nil},
		{"ipv4 cut", ip4[:19], Invalid, ErrShort},
		{"ipv4, first byte only", ip4[:1], Invalid, ErrShort},
		{"ipv4 with payload", append(bytes.Clone(ip4), 1, 2, 3), IPv4, nil},
		{"ipv6", ip6, IPv6, nil},
		{"ipv6 cut", ip6[:39], Invalid, ErrShort},
		{"control", []byte{0xc1, 1}, Control, nil},
		{"control of another version", []byte{0xcf}, Control, nil},
		{"nibble 0", make([]byte, 60), Invalid, ErrMagic},
		{"nibble 5", []byte{0x50}, Invalid, ErrMagic},
		{"nibble 15", []byte{0xff}, Invalid, ErrMagic},
	} {
		t.Run(tt.name, func(t *testing.T) {
			kind, payload, err := UDP{}.Decode(tt.in)
			if kind != tt.kind || !errors.Is(err, tt.err) {
				t.Fatalf("Decode: %v, %v; want %v, %v", kind, err, tt.kind, tt.err)
			}
			if err != nil {
				if payload != nil {
					t.Errorf("payload of %d bytes beside an error", len(payload))
				}
				return
			}
			if !bytes.Equal(payload, tt.in) || &payload[0] != &tt.in[0] {
				t.Error("the payload is not the datagram itself")
			}
		})
	}
}

// A caller that appends to the payload must not write into what follows it in
// the receive buffer.
func TestUDPDecodeCapacity(t *testing.T) {
	buf := append([]byte{0x45}, make([]byte, 63)...)
	_, payload, err := UDP{}.Decode(buf[:20])
	if err != nil || cap(payload) != 20 {
		t.Fatalf("payload has capacity %d (%v), want 20", cap(payload), err)
	}
}

func TestUDPHasNoHeader(t *testing.T) {
	var c Codec = UDP{}
	if c.Name() != "udp" || c.HeaderLen() != 0 {
		t.Fatalf("codec %q with a header of %d bytes, want udp with 0", c.Name(), c.HeaderLen())
	}
	b := []byte{1, 2, 3}
	c.PutHeader(b, IPv4, Dest{MAC: [6]byte{9, 9, 9, 9, 9, 9}})
	c.PutHeader(nil, Control, Dest{})
	if !bytes.Equal(b, []byte{1, 2, 3}) {
		t.Errorf("PutHeader wrote: %x", b)
	}
}

func TestUDPAllocations(t *testing.T) {
	var c Codec = UDP{}
	in := append([]byte{0x60}, make([]byte, 1400)...)
	bad := []byte{0x10}
	if n := testing.AllocsPerRun(100, func() {
		c.PutHeader(in, IPv6, Dest{})
		c.Decode(in)
		c.Decode(bad)
	}); n != 0 {
		t.Errorf("%v allocations per packet, want 0", n)
	}
}

func FuzzDecodeUDP(f *testing.F) {
	for _, seed := range [][]byte{
		nil,
		append([]byte{0x45}, make([]byte, 19)...),
		append([]byte{0x45}, make([]byte, 18)...),
		append([]byte{0x60}, make([]byte, 39)...),
		{0xc1},
		{0x00},
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		kind, payload, err := UDP{}.Decode(in)
		if err != nil {
			if kind != Invalid || payload != nil {
				t.Fatalf("%v with %d bytes beside error %v", kind, len(payload), err)
			}
			return
		}
		if !bytes.Equal(payload, in) {
			t.Fatalf("payload %x of %x", payload, in)
		}
		// The kind is what the first nibble says, read the slow way.
		want := map[byte]Kind{0x4: IPv4, 0x6: IPv6, 0xc: Control}[in[0]>>4]
		if kind != want || kind == Invalid {
			t.Fatalf("kind %v of a datagram that starts with %#x", kind, in[0])
		}
	})
}
