package tunnel

import "errors"

// maxQueues is MAX_TAP_QUEUES (linux/drivers/net/tun.c).
const maxQueues = 256

// vnetQueues is a TUN with several queues, each with a descriptor of its own. Its
// Read and Write are those of the first.
type vnetQueues struct {
	*vnetDevice
	all []*vnetDevice
}

var _ MultiQueue = (*vnetQueues)(nil)

func (m *vnetQueues) Queues() []Device {
	var out []Device
	for _, q := range m.all {
		out = append(out, vnetQueue{q, m})
	}
	return out
}

// Stats are those of all queues together.
func (m *vnetQueues) Stats() (s Stats) {
	for _, q := range m.all {
		s.TooLong += q.Stats().TooLong
	}
	return s
}

// Close closes all queues; the interface is gone with the last one.
func (m *vnetQueues) Close() error {
	var errs []error
	for _, q := range m.all {
		errs = append(errs, q.Close())
	}
	return errors.Join(errs...)
}

// vnetQueue is one queue of several.
type vnetQueue struct {
	*vnetDevice
	of *vnetQueues
}

func (q vnetQueue) Close() error { return q.of.Close() }
