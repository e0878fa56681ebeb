//go:build !linux

package tunnel

import (
	"errors"
	"fmt"
)

// OpenVNet is for Linux.
func OpenVNet(name string) (Device, error) {
	return nil, fmt.Errorf("tunnel: open %s with a virtio-net header: %w", name, errors.ErrUnsupported)
}

// OpenVNetQueues is for Linux.
func OpenVNetQueues(name string, _ int) (Device, error) { return OpenVNet(name) }
