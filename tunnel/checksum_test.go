package tunnel

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// checksumSlowly is RFC 1071 section 4.1, word by word.
func checksumSlowly(b []byte) uint16 {
	acc := uint32(0)
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		if acc += w; acc > 0xffff {
			acc = acc&0xffff + 1
		}
	}
	return ^uint16(acc)
}

// bigEndian is a checksum as it is stored, read as a number of the network's.
func bigEndian(c uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], c)
	return binary.BigEndian.Uint16(b[:])
}

// TestChecksumOfEveryLength compares with the slow one, for every length from 0
// to 9001, at every alignment in turn, of random bytes, of ones and of zeros.
func TestChecksumOfEveryLength(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	random, ones, zeros := make([]byte, 9016), make([]byte, 9016), make([]byte, 9016)
	for i := range random {
		random[i], ones[i] = byte(rng.Uint32()), 0xff
	}
	for n := range 9002 {
		for name, b := range map[string][]byte{"random": random, "ones": ones, "zeros": zeros} {
			b = b[n%8 : n%8+n]
			got, want := bigEndian(Checksum(b)), checksumSlowly(b)
			// Zero has two forms; a sum of nothing but zeros has the other one.
			if got != want {
				t.Fatalf("%s, %d bytes: %#04x, want %#04x", name, n, got, want)
			}
		}
	}
}

func TestSumGoesOn(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, 300)
	for range 1000 {
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		cut := rng.IntN(len(b)/2) * 2 // an even offset
		if got, want := bigEndian(^fold(sum(b[cut:], sum(b[:cut], 0)))), checksumSlowly(b); got != want {
			t.Fatalf("cut at %d: %#04x, want %#04x", cut, got, want)
		}
	}
}

func FuzzChecksum(f *testing.F) {
	f.Add([]byte{}, byte(0))
	f.Add([]byte{0xff, 0xff, 0xff}, byte(1))
	f.Fuzz(func(t *testing.T, b []byte, skip byte) {
		b = b[min(int(skip), len(b)):]
		if got, want := bigEndian(Checksum(b)), checksumSlowly(b); got != want {
			t.Errorf("%x: %#04x, want %#04x", b, got, want)
		}
	})
}

func BenchmarkChecksum(b *testing.B) {
	p := make([]byte, 1400)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		Checksum(p)
	}
}
