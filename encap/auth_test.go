package encap

import (
	"errors"
	"sync"
	"testing"
)

func TestNewAuthRefusesShortKeys(t *testing.T) {
	for _, keys := range [][][]byte{{nil}, {key2[:15]}, {key1, {}}} {
		if a, err := NewAuth(keys); !errors.Is(err, ErrKey) || a != nil {
			t.Errorf("NewAuth(%x): %v, %v", keys, a, err)
		}
	}
	for _, keys := range [][][]byte{nil, {}} {
		if a, err := NewAuth(keys); a != nil || err != nil {
			t.Errorf("NewAuth without keys: %v, %v, want nil, nil", a, err)
		}
	}
}

// Frames are sent under the first key and taken under any: that is what lets
// keys rotate while nodes know different sets of them.
func TestKeyRotation(t *testing.T) {
	old, mid, next := newAuth(t, key1), newAuth(t, key1, key2), newAuth(t, key2, key1)
	for _, tt := range []struct {
		name     string
		from, to *Auth
		want     error
	}{
		{"old to node that has added the new key", old, mid, nil},
		{"and back", mid, old, nil},
		{"node that uses the new key to one that knows it", next, mid, nil},
		{"to one that does not", next, old, ErrTag},
		{"old to node that uses the new key", old, next, nil},
		{"old to node that has removed the old key", old, newAuth(t, key2), ErrTag},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := golden[0].frame.Append(nil, 0, tt.from)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Parse(b, tt.to); err != tt.want {
				t.Errorf("Parse: %v, want %v", err, tt.want)
			}
		})
	}
}

// The derived key is not the cluster key: a tag made with the latter, or with
// another info string, must not fit.
func TestKeyIsDerived(t *testing.T) {
	b, err := golden[2].frame.Append(nil, 80, newAuth(t, key1))
	if err != nil {
		t.Fatal(err)
	}
	raw := newAuth(t, key1)
	raw.keys[0].New = func() any { return newMAC(key1) }
	if _, err := Parse(b, raw); err != ErrTag {
		t.Errorf("Parse with the cluster key itself: %v, want %v", err, ErrTag)
	}
}

func TestAuthConcurrently(t *testing.T) {
	auth := newAuth(t, key1, key2)
	b := unhex(t, golden[2].hex)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var buf []byte
			for range 500 {
				f, err := Parse(b, auth)
				if err != nil {
					t.Error(err)
					return
				}
				if buf, err = f.Append(buf[:0], int(f.Size), auth); err != nil || string(buf) != string(b) {
					t.Errorf("%x, %v; want %x", buf, err, b)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestFrameAllocations(t *testing.T) {
	tagged := unhex(t, golden[2].hex)
	plain := unhex(t, golden[0].hex)
	buf := make([]byte, 0, 1500)
	for name, auth := range map[string]*Auth{"plain": nil, "tagged": newAuth(t, key2, key1)} {
		if auth != nil && raceEnabled {
			continue // the race detector makes sync.Pool drop entries at random
		}
		in := plain
		if auth != nil {
			in = tagged
		}
		if n := testing.AllocsPerRun(100, func() {
			f, err := Parse(in, auth)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Append(buf, 1400, auth); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations per Parse and Append, want 0", name, n)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	for _, bb := range []struct {
		name string
		auth *Auth
		size int
	}{
		{"plain", nil, 1400},
		{"tagged/72", newAuth(b, key1), 72},
		{"tagged/1400", newAuth(b, key1), 1400},
	} {
		b.Run(bb.name, func(b *testing.B) {
			in, err := golden[0].frame.Append(nil, bb.size, bb.auth)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(in, bb.auth); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
