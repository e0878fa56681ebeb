package forward

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/overlayd/overlayd/tunnel"
)

// output writes to the device on behalf of several goroutines: a Device has one
// writer at a time, while packets come from two sockets and ICMP errors from a
// third place. The lock is taken once per batch, and with traffic of one
// underlay family nobody waits for it.
type output struct {
	mu    sync.Mutex
	dev   tunnel.Device
	drops *Drops
}

// write hands over what was joined, in order, goes on behind what the device
// refuses, and counts both. peers[i] is whom the i-th packet is from. The only
// error is that of a closed device.
func (o *output) write(join *tunnel.Coalescer, peers []*Peer) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	pkts := join.Packets()
	for i := 0; i < len(pkts); i++ { // past the refused one
		n, err := o.dev.Write(pkts[i:])
		for ; n > 0 && i < len(pkts); n, i = n-1, i+1 {
			c := peers[i].Counters
			packets, bytes := join.Joined(i)
			c.RxPackets.Add(uint64(packets))
			c.RxBytes.Add(uint64(bytes))
		}
		if i == len(pkts) {
			return nil
		}
		if errors.Is(err, os.ErrClosed) {
			return fmt.Errorf("%w: write %s: %w", ErrDevice, o.dev.Name(), err)
		}
		packets, _ := join.Joined(i)
		o.drops.Add(RxDeviceRefused, uint64(packets))
	}
	return nil
}

// writeOwn hands over a packet that this node made.
func (o *output) writeOwn(pkts []tunnel.Packet) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, err := o.dev.Write(pkts)
	return err
}
