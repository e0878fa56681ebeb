package capture

import (
	"bytes"
	"errors"
	"testing"

	"github.com/overlayd/overlayd/internal/forward"
)

// TestBlocks: whatever the pieces, what is written is whole.
func TestBlocks(t *testing.T) {
	r := New(config())
	for n := range 20 {
		r.Saw(&forward.Seen{Pieces: [][]byte{make([]byte, n)}})
	}
	all, _ := captured(t, r)
	for _, size := range []int{1, 3, 7, 100, len(all)} {
		for _, end := range []int{len(all), len(all) - 1, len(all) / 2} {
			var out bytes.Buffer
			b := Blocks{W: &out}
			for at := 0; at < end; at += size {
				if n, err := b.Write(all[at:min(at+size, end)]); err != nil || n != min(size, end-at) {
					t.Fatal(n, err)
				}
			}
			optionsOf(t, out.Bytes(), blockPacket, optComment) // walks over whole blocks
			if got := out.Len(); got > end || end-got > 100 || !bytes.HasPrefix(all, out.Bytes()) {
				t.Errorf("in pieces of %d, %d of %d bytes: %d written", size, end, len(all), got)
			}
		}
	}
	for _, bad := range [][]byte{make([]byte, 8), {1, 0, 0, 0, 13, 0, 0, 0}, {1, 0, 0, 0, 0, 0, 0, 1}} {
		b := Blocks{W: new(bytes.Buffer)}
		if _, err := b.Write(bad); !errors.Is(err, errBlock) {
			t.Errorf("%x: %v", bad, err)
		}
	}
	full := Blocks{W: &brokenWriter{0}}
	if _, err := full.Write(all); err == nil {
		t.Error("no error")
	}
}
