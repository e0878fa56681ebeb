package encap

import (
	"bytes"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var (
	nodeA = [16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	nodeB = [16]byte{16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31}
	key1  = []byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31}
	key2  = []byte("sixteen bytes ok")
)

// newAuth makes an Auth of keys that must be fine.
func newAuth(t testing.TB, keys ...[]byte) *Auth {
	t.Helper()
	a, err := NewAuth(keys)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// golden are the examples of the package documentation. The tag was computed
// by another implementation of HKDF and HMAC.
var golden = []struct {
	name  string
	frame Frame
	key   []byte
	hex   string
}{
	{
		"probe",
		Frame{Type: Probe, Size: 56, Sender: nodeA, Receiver: nodeB, Boot: 0x68d2c1f0, Nonce: 0xa1a2a3a4a5a6a7a8},
		nil,
		`c1 01 00 00 00 38 00 00
		 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f
		 10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f
		 00 00 00 00 68 d2 c1 f0
		 a1 a2 a3 a4 a5 a6 a7 a8`,
	},
	{
		"answer",
		Frame{Type: Answer, Flags: ReadyKernelVXLAN | ReadyDirect, Size: 56, Received: 56,
			Sender: nodeB, Receiver: nodeA, Boot: 0x68d2c200, Nonce: 0xa1a2a3a4a5a6a7a8},
		nil,
		`c1 02 00 06 00 38 00 38
		 10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f
		 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f
		 00 00 00 00 68 d2 c2 00
		 a1 a2 a3 a4 a5 a6 a7 a8`,
	},
	{
		"tagged and padded probe",
		Frame{Type: Probe, Path: KernelVXLAN, Size: 80, Sender: nodeA, Receiver: nodeB, Boot: 0x68d2c1f0, Nonce: 0xa1a2a3a4a5a6a7a8},
		key1,
		`c1 01 01 01 00 50 00 00
		 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f
		 10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f
		 00 00 00 00 68 d2 c1 f0
		 a1 a2 a3 a4 a5 a6 a7 a8
		 00 00 00 00 00 00 00 00
		 e4 e7 0a e9 d7 f8 89 be f4 d7 05 f1 b5 a8 89 c4`,
	},
}

func TestGolden(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range golden {
		t.Run(tt.name, func(t *testing.T) {
			var auth *Auth
			if tt.key != nil {
				auth = newAuth(t, tt.key)
			}
			want := unhex(t, tt.hex)
			// Spare capacity full of garbage must not show up as padding.
			dst := bytes.Repeat([]byte{0xee}, 200)[:3]
			got, err := tt.frame.Append(dst, int(tt.frame.Size), auth)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got[:3], []byte{0xee, 0xee, 0xee}) || !bytes.Equal(got[3:], want) {
				t.Errorf("Append:\n got %x\nwant eeeeee%x", got, want)
			}
			// Ethernet padding behind the frame is ignored.
			parsed, err := Parse(append(bytes.Clone(want), 1, 2, 3, 4), auth)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.frame, parsed); diff != "" {
				t.Errorf("Parse: (-want +got)\n%s", diff)
			}
			for line := range strings.Lines(tt.hex) {
				if line = strings.TrimSpace(line); !bytes.Contains(doc, []byte("//\t"+line+"\n")) {
					t.Errorf("the package documentation does not show the line %q", line)
				}
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	plain := unhex(t, golden[0].hex)
	answer := unhex(t, golden[1].hex)
	tagged := unhex(t, golden[2].hex)
	auth := newAuth(t, key1)
	with := func(b []byte, at int, v ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], v)
		return b
	}
	for _, tt := range []struct {
		name string
		in   []byte
		auth *Auth
		want error
	}{
		{"empty", nil, nil, ErrShort},
		{"an IPv4 packet", with(plain, 0, 0x45), nil, ErrMagic},
		{"version 0", with(plain, 0, 0xc0), nil, ErrVersion},
		{"version 2", with(plain, 0, 0xc2), nil, ErrVersion},
		{"version 2, nothing else", []byte{0xc2}, nil, ErrVersion},
		{"type 0", with(plain, 1, 0), nil, ErrType},
		{"type 3", with(plain, 1, 3), nil, ErrType},
		{"path 3", with(plain, 2, 3), nil, ErrPath},
		{"length 0", with(plain, 4, 0, 0), nil, ErrLength},
		{"length without the nonce", with(plain, 4, 0, 55), nil, ErrLength},
		{"length beyond the datagram", with(plain, 4, 0, 57), nil, ErrShort},
		{"length without room for the tag", with(tagged, 4, 0, 71), auth, ErrLength},
		{"received in a probe", with(plain, 6, 0, 1), nil, ErrReserved},
		{"untagged, and we have a key", plain, auth, ErrUntagged},
		{"untagged answer, and we have a key", answer, auth, ErrUntagged},
		{"tagged, and we have no key", tagged, nil, ErrTagged},
		{"tagged with another key", tagged, newAuth(t, key2), ErrTag},
		{"cheap checks first", with(tagged, 1, 9), newAuth(t, key2), ErrType},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := Parse(tt.in, tt.auth)
			if err != tt.want {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if f != (Frame{}) {
				t.Errorf("a frame beside an error: %+v", f)
			}
		})
	}
}

// Flags of later versions do not make a frame unreadable.
func TestParseIgnoresUnknownFlags(t *testing.T) {
	b := unhex(t, golden[1].hex)
	b[offFlags] |= 0xf8
	f, err := Parse(b, nil)
	if err != nil || f.Flags != ReadyKernelVXLAN|ReadyDirect {
		t.Errorf("flags %#x, %v", f.Flags, err)
	}
}

// Padding is room for fields of later versions.
func TestParseIgnoresPadding(t *testing.T) {
	b, err := golden[0].frame.Append(nil, 100, nil)
	if err != nil {
		t.Fatal(err)
	}
	b[90] = 1
	if _, err := Parse(b, nil); err != nil {
		t.Error(err)
	}
}

func TestParseCutAnywhere(t *testing.T) {
	for _, tt := range golden {
		var auth *Auth
		if tt.key != nil {
			auth = newAuth(t, tt.key)
		}
		b := unhex(t, tt.hex)
		for n := range b {
			// The copy ends where the frame is cut, so that reading on panics.
			if _, err := Parse(append(make([]byte, 0, n), b[:n]...), auth); err != ErrShort {
				t.Errorf("%s cut to %d of %d bytes: %v, want %v", tt.name, n, len(b), err, ErrShort)
			}
		}
	}
}

func TestTaggedFrameRefusesEveryFlippedBit(t *testing.T) {
	auth := newAuth(t, key2, key1)
	b := unhex(t, golden[2].hex)
	if _, err := Parse(b, auth); err != nil {
		t.Fatalf("untouched: %v", err)
	}
	for bit := range len(b) * 8 {
		b[bit/8] ^= 1 << (bit % 8)
		if f, err := Parse(b, auth); err == nil {
			t.Errorf("byte %d, bit %d flipped: accepted as %+v", bit/8, bit%8, f)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
}

func TestAppendRefuses(t *testing.T) {
	ok := golden[0].frame
	auth := newAuth(t, key1)
	for _, tt := range []struct {
		name string
		edit func(*Frame)
		size int
		auth *Auth
		want error
	}{
		{"too small", nil, MinFrame - 1, nil, ErrLength},
		{"too small for a tag", nil, MinTaggedFrame - 1, auth, ErrLength},
		{"negative", nil, -1, nil, ErrLength},
		{"too large", nil, MaxFrame + 1, nil, ErrLength},
		{"no type", func(f *Frame) { f.Type = 0 }, 0, nil, ErrType},
		{"no such path", func(f *Frame) { f.Path = 3 }, 0, nil, ErrPath},
		{"received in a probe", func(f *Frame) { f.Received = 1 }, 0, nil, ErrReserved},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := ok
			if tt.edit != nil {
				tt.edit(&f)
			}
			b, err := f.Append([]byte("keep"), tt.size, tt.auth)
			if err != tt.want || string(b) != "keep" {
				t.Errorf("%q, %v; want the untouched slice and %v", b, err, tt.want)
			}
		})
	}
}

// drawFrame draws any frame that Append takes; Size is left to the caller.
func drawFrame(t *rapid.T) Frame {
	f := Frame{
		Type:  rapid.SampledFrom([]FrameType{Probe, Answer}).Draw(t, "type"),
		Path:  rapid.SampledFrom([]Path{Userspace, KernelVXLAN, Direct}).Draw(t, "path"),
		Flags: Flags(rapid.Uint8().Draw(t, "flags")) & knownFlags,
		Boot:  rapid.Uint64().Draw(t, "boot"),
		Nonce: rapid.Uint64().Draw(t, "nonce"),
	}
	if f.Type == Answer {
		f.Received = rapid.Uint16().Draw(t, "received")
	}
	copy(f.Sender[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "sender"))
	copy(f.Receiver[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "receiver"))
	return f
}

func TestRoundTrip(t *testing.T) {
	auths := []*Auth{nil, newAuth(t, key1), newAuth(t, key2, key1)}
	rapid.Check(t, func(t *rapid.T) {
		f := drawFrame(t)
		auth := rapid.SampledFrom(auths).Draw(t, "auth")
		size := rapid.OneOf(rapid.Just(0), rapid.IntRange(MinTaggedFrame, 2000), rapid.Just(MaxFrame)).Draw(t, "size")
		b, err := f.Append(nil, size, auth)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(b, auth)
		if err != nil {
			t.Fatal(err)
		}
		f.Size = uint16(len(b))
		if size != 0 && len(b) != size {
			t.Fatalf("%d bytes, wanted %d", len(b), size)
		}
		if got != f {
			t.Fatalf("got %+v, want %+v", got, f)
		}
	})
}

func FuzzParseFrame(f *testing.F) {
	for _, tt := range golden {
		b := unhex(f, tt.hex)
		f.Add(b)
		f.Add(append(bytes.Clone(b), make([]byte, 20)...))
		f.Add(b[:len(b)-1])
	}
	f.Add([]byte{})
	f.Add([]byte{0xc2})
	auth, first := newAuth(f, key2, key1), newAuth(f, key1)
	// Kept from one input to the next: whatever is left over in it must not
	// show up again.
	buf := make([]byte, 0, MaxFrame)
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, auth := range []*Auth{nil, auth} {
			x, err := Parse(in, auth)
			if err != nil {
				if x != (Frame{}) {
					t.Fatalf("%+v beside error %v", x, err)
				}
				continue
			}
			if peeked, err := Peek(in); err != nil || peeked != x {
				t.Fatalf("Peek: %+v, %v; Parse: %+v", peeked, err, x)
			}
			if auth != nil {
				auth = first // signs with the key that the seeds are tagged with
			}
			out, err := x.Append(buf, int(x.Size), auth)
			if err != nil {
				t.Fatalf("Append of %+v: %v", x, err)
			}
			y, err := Parse(out, auth)
			if err != nil || x != y {
				t.Fatalf("parsed %+v, after Append %+v, %v", x, y, err)
			}
			if !bytes.Equal(out[offPath+2:bodyLen], in[offPath+2:bodyLen]) {
				t.Fatalf("body %x became %x", in[:bodyLen], out[:bodyLen])
			}
		}
	})
}

// These names appear in logs and in the status output.
func TestNames(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{IPv4.String(), "ipv4"}, {IPv6.String(), "ipv6"}, {Control.String(), "control"}, {Invalid.String(), "invalid"},
		{Probe.String(), "probe"}, {Answer.String(), "answer"}, {FrameType(9).String(), "type 9"},
		{Userspace.String(), "userspace"}, {KernelVXLAN.String(), "kernel-vxlan"}, {Direct.String(), "direct"}, {Path(9).String(), "path 9"},
	} {
		if tt.got != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
}
