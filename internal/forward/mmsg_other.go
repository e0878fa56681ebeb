//go:build !amd64 && !arm64

package forward

import "net"

// duplicates: a batchConn uses the socket that it was made of.
const duplicates = false

// newConn makes a batchConn without offloads.
func newConn(c *net.UDPConn, is6 bool, n, _ int, _, _ bool, _ func(tooBig)) (batchConn, offloads, error) {
	return newXNetConn(c, is6, n), offloads{}, nil
}
