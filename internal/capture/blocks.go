package capture

import (
	"encoding/binary"
	"errors"
	"io"
)

// Blocks passes on whole blocks of a stream that may end anywhere, so that the file is
// whole, too.
type Blocks struct {
	W    io.Writer
	rest []byte // the start of a block
}

// maxBlock is more than any block of ours has.
const maxBlock = 1 << 20

var errBlock = errors.New("capture: not a stream of pcapng blocks")

// Write takes any piece of the stream.
func (b *Blocks) Write(p []byte) (int, error) {
	b.rest = append(b.rest, p...)
	whole := 0
	for {
		left := b.rest[whole:]
		if len(left) < 8 {
			break
		}
		n := int(binary.LittleEndian.Uint32(left[4:]))
		if n < 12 || n%4 != 0 || n > maxBlock {
			return 0, errBlock
		}
		if n > len(left) {
			break
		}
		whole += n
	}
	if whole > 0 {
		if _, err := b.W.Write(b.rest[:whole]); err != nil {
			return 0, err
		}
		b.rest = append(b.rest[:0], b.rest[whole:]...)
	}
	return len(p), nil
}
