// Package tunneltest holds the contract of [tunnel.Device] as a test suite,
// for devices of any kind.
package tunneltest

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/overlayd/overlayd/tunnel"
)

// timeout is how long the suite waits for what a device must do. A correct
// device never lets it pass, also on a machine where making and deleting
// interfaces takes seconds. It is a small part of what the test run's -timeout
// leaves, so that a device with a fault fails its test instead of the run.
func timeout(t *testing.T) time.Duration {
	const patience = 30 * time.Second
	if end, ok := t.Deadline(); ok {
		return min(patience, time.Until(end)/12)
	}
	return patience
}

// TestDevice runs the contract of [tunnel.Device] against devices that open
// makes, one sentence per subtest.
//
// Each call of open gives a new device, ready to carry packets of both address
// families up to Features.MaxPacket, which is at least 1280. The suite closes
// it; what else there is to clean up, open registers with t.Cleanup.
//
// The two functions are the host's end of the device: inject sends a packet
// such that Read returns it, and returns when it is queued; receive waits for
// the next packet that the device delivers and returns it in memory of its own,
// or nil when none has come for a while or the device is closed. Both are called by
// one goroutine at a time each. Packets that the suite has not made are
// ignored, so a host may have its own conversation. At least 32 packets must
// fit into the queues in both directions.
func TestDevice(t *testing.T, open func(t *testing.T) (dev tunnel.Device, inject func(packet []byte), receive func() []byte)) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, e *ends)
	}{
		{"Name", testName},
		{"Features", testFeatures},
		{"ReadWaits", testReadWaits},
		{"ReadNothing", testReadNothing},
		{"ReadBatch", testReadBatch},
		{"ReadAtMost", testReadAtMost},
		{"ReadSizes", testReadSizes},
		{"ReadBuffers", testReadBuffers},
		{"ReadOverwrites", testReadOverwrites},
		{"ReadTooLong", testReadTooLong},
		{"WriteNothing", testWriteNothing},
		{"WriteOrder", testWriteOrder},
		{"WriteSizes", testWriteSizes},
		{"WriteFrags", testWriteFrags},
		{"WriteKeepsNothing", testWriteKeepsNothing},
		{"WriteRefusesOffload", testWriteRefusesOffload},
		{"WriteRefusesGarbage", testWriteRefusesGarbage},
		{"Duplex", testDuplex},
		{"CloseWakesRead", testCloseWakesRead},
		{"CloseEndsReadAndWrite", testCloseEnds},
		{"CloseTwice", testCloseTwice},
		{"CloseAnytime", testCloseAnytime},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev, inject, receive := open(t)
			t.Cleanup(func() { dev.Close() })
			c.run(t, &ends{dev: dev, inject: inject, receive: receive})
		})
	}
}

// ends are a device and its host.
type ends struct {
	dev     tunnel.Device
	inject  func([]byte)
	receive func() []byte
}

type result struct {
	n   int
	err error
}

// batch makes n packets with a buffer of size bytes each.
func batch(n, size int) []tunnel.Packet {
	pkts := make([]tunnel.Packet, n)
	for i := range pkts {
		pkts[i].Data = make([]byte, size)
	}
	return pkts
}

// start calls Read in a goroutine of its own.
func (e *ends) start(pkts []tunnel.Packet) <-chan result {
	c := make(chan result, 1)
	go func() {
		n, err := e.dev.Read(pkts)
		c <- result{n, err}
	}()
	return c
}

// wait is what a call that start has begun returns.
func wait(t *testing.T, c <-chan result) result {
	t.Helper()
	select {
	case r := <-c:
		return r
	case <-time.After(timeout(t)):
		t.Fatal("Read does not return")
	}
	return result{}
}

// read calls Read once and holds the result to what is always true.
func (e *ends) read(t *testing.T, pkts []tunnel.Packet) int {
	t.Helper()
	r := wait(t, e.start(pkts))
	switch {
	case r.err != nil && r.n > 0:
		t.Fatalf("Read = %d, %v: the error must be nil whenever n > 0", r.n, r.err)
	case r.err != nil:
		t.Fatalf("Read: %v", r.err)
	case r.n < 1:
		t.Fatalf("Read = %d, nil: want at least one packet", r.n)
	case r.n > len(pkts):
		t.Fatalf("Read = %d with %d packets", r.n, len(pkts))
	}
	return r.n
}

// readOwn reads until it has got n packets of the suite's, with new buffers of
// size bytes for every call.
func (e *ends) readOwn(t *testing.T, n, size int) [][]byte {
	t.Helper()
	var got [][]byte
	for len(got) < n {
		pkts := batch(e.dev.Features().ReadBatch, size)
		k := e.read(t, pkts)
		for i := range pkts[:k] {
			if isOwn(pkts[i].Data) {
				got = append(got, pkts[i].Data)
			}
		}
	}
	if len(got) > n {
		t.Fatalf("read %d packets, want %d: one came twice or was made up", len(got), n)
	}
	return got
}

// receiveOwn receives one packet of the suite's.
func (e *ends) receiveOwn(t *testing.T) []byte {
	t.Helper()
	for {
		p := e.receive()
		if p == nil {
			t.Fatal("the host has not received the packet")
		}
		if isOwn(p) {
			return p
		}
	}
}

// write writes all packets.
func (e *ends) write(t *testing.T, pkts []tunnel.Packet) {
	t.Helper()
	if n, err := e.dev.Write(pkts); n != len(pkts) || err != nil {
		t.Fatalf("Write of %d packets = %d, %v", len(pkts), n, err)
	}
}

func wantPacket(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got %d bytes\n%x\nwant %d bytes\n%x", what, len(got), head(got), len(want), head(want))
	}
}

func wantClosed(t *testing.T, what string, r result) {
	t.Helper()
	if r.n != 0 || !errors.Is(r.err, os.ErrClosed) {
		t.Errorf("%s after Close = %d, %v; want 0 and os.ErrClosed", what, r.n, r.err)
	}
}

// head is the part of a packet that tells which one it is.
func head(p []byte) []byte { return p[:min(len(p), 64)] }
