//go:build !amd64 && !arm64

package forward

import "net"

// newConn makes a batchConn without offloads.
func newConn(c *net.UDPConn, is6 bool, n int, _ bool) (batchConn, offloads, error) {
	return newXNetConn(c, is6, n), offloads{}, nil
}
