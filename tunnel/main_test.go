package tunnel_test

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is how long tests wait for what must happen.
const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ipPacket is the shortest thing that passes for an IPv4 packet, of size bytes.
func ipPacket(size int, fill byte) []byte {
	p := make([]byte, size)
	for i := range p {
		p[i] = fill
	}
	p[0] = 0x45
	return p
}
