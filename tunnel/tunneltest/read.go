package tunneltest

import (
	"bytes"
	"testing"
	"time"

	"github.com/overlayd/overlayd/tunnel"
)

func testName(t *testing.T, e *ends) {
	name := e.dev.Name()
	if name == "" {
		t.Error("Name is empty")
	}
	e.dev.Close()
	if again := e.dev.Name(); again != name {
		t.Errorf("Name was %q and is %q after Close", name, again)
	}
}

func testFeatures(t *testing.T, e *ends) {
	f := e.dev.Features()
	if f.ReadBatch < 1 {
		t.Errorf("ReadBatch is %d, want at least 1", f.ReadBatch)
	}
	if f.MaxPacket < 1280 || f.MaxPacket > 65535 {
		t.Errorf("MaxPacket is %d, want 1280 to 65535", f.MaxPacket)
	}
	e.inject(packet(0, 100))
	e.readOwn(t, 1, f.MaxPacket)
	e.write(t, []tunnel.Packet{{Data: packet(1, 100)}})
	if again := e.dev.Features(); again != f {
		t.Errorf("Features were %+v and are %+v after traffic", f, again)
	}
	e.dev.Close()
	if again := e.dev.Features(); again != f {
		t.Errorf("Features were %+v and are %+v after Close", f, again)
	}
}

// Read waits for at least one packet.
func testReadWaits(t *testing.T, e *ends) {
	pkts := batch(1, e.dev.Features().MaxPacket)
	c := e.start(pkts)
	early := time.NewTimer(50 * time.Millisecond)
	defer early.Stop()
	for {
		select {
		case r := <-c:
			if r.n != 1 || r.err != nil {
				t.Fatalf("Read = %d, %v before there was a packet", r.n, r.err)
			}
			if isOwn(pkts[0].Data) {
				t.Fatalf("Read made up a packet: %x", pkts[0].Data)
			}
			pkts = batch(1, e.dev.Features().MaxPacket)
			c = e.start(pkts)
			continue
		case <-early.C:
		}
		break
	}
	want := packet(0, 100)
	e.inject(want)
	for {
		if r := wait(t, c); r.n != 1 || r.err != nil {
			t.Fatalf("Read = %d, %v; want 1, nil", r.n, r.err)
		}
		if isOwn(pkts[0].Data) {
			break
		}
		pkts = batch(1, e.dev.Features().MaxPacket)
		c = e.start(pkts)
	}
	wantPacket(t, "packet read", pkts[0].Data, want)
}

func testReadNothing(t *testing.T, e *ends) {
	if r := wait(t, e.start(nil)); r.n != 0 || r.err != nil {
		t.Errorf("Read(nil) = %d, %v; want 0, nil", r.n, r.err)
	}
}

// Read returns as many as are there without waiting again.
func testReadBatch(t *testing.T, e *ends) {
	f := e.dev.Features()
	k := min(f.ReadBatch, 16)
	if k == 1 {
		t.Log("ReadBatch is 1: nothing to see")
	}
	// A host may be slow to queue, once in a while.
	for range 10 {
		for id := range k {
			e.inject(packet(uint32(id), 100+id))
		}
		pkts := batch(f.ReadBatch, f.MaxPacket)
		n := e.read(t, pkts)
		own := 0
		for i := range pkts[:n] {
			if isOwn(pkts[i].Data) {
				wantPacket(t, "packet read", pkts[i].Data, packet(uint32(own), 100+own))
				own++
			}
		}
		if own == k {
			return
		}
		e.readOwn(t, k-own, f.MaxPacket)
	}
	t.Errorf("Read never returned the %d packets that were there", k)
}

// At most len(pkts), and the rest the next time, in order.
func testReadAtMost(t *testing.T, e *ends) {
	const n = 6
	size := e.dev.Features().MaxPacket
	for id := range n {
		e.inject(packet(uint32(id), 100))
	}
	for got := 0; got < n; {
		pkts := batch(1+got%2, size)
		k := e.read(t, pkts)
		for i := range pkts[:k] {
			if isOwn(pkts[i].Data) {
				wantPacket(t, "packet read", pkts[i].Data, packet(uint32(got), 100))
				got++
			}
		}
	}
}

func testReadSizes(t *testing.T, e *ends) {
	size := e.dev.Features().MaxPacket
	for _, c := range []struct {
		id   uint32
		size int
	}{{0, min4}, {1, min6}, {2, 61}, {3, 81}, {4, 576}, {5, 1280}, {6, size - 1}, {7, size - 1}, {8, size}, {9, size}} {
		want := packet(c.id, c.size)
		e.inject(want)
		wantPacket(t, "packet read", e.readOwn(t, 1, size)[0], want)
	}
}

// The caller owns the buffers: they are used from their start, as far as their
// length and no further.
func testReadBuffers(t *testing.T, e *ends) {
	const size, canary = 200, 0xa5
	for _, want := range [][]byte{packet(0, size), packet(1, size), packet(2, 100), packet(3, 100)} {
		e.inject(want)
		for {
			whole := bytes.Repeat([]byte{canary}, 4*size)
			pkts := []tunnel.Packet{{Data: whole[size : 2*size]}}
			e.read(t, pkts)
			got := pkts[0].Data
			if len(got) == 0 || &got[0] != &whole[size] {
				t.Fatal("Read replaced the buffer instead of filling it")
			}
			if !bytes.Equal(whole[:size], bytes.Repeat([]byte{canary}, size)) {
				t.Error("Read wrote before the buffer")
			}
			if !bytes.Equal(whole[2*size:], bytes.Repeat([]byte{canary}, 2*size)) {
				t.Error("Read wrote behind the buffer's length")
			}
			if isOwn(got) {
				wantPacket(t, "packet read", got, want)
				break
			}
		}
	}
}

// Offload is overwritten, never merged; Frags stays nil.
func testReadOverwrites(t *testing.T, e *ends) {
	for id := range uint32(2) {
		e.inject(packet(id, 100))
		for {
			pkts := batch(1, e.dev.Features().MaxPacket)
			pkts[0].Offload = tunnel.Offload{GSO: tunnel.GSOUDP, ECN: true, NeedsChecksum: true,
				SegmentSize: 1, HeaderLen: 2, ChecksumStart: 3, ChecksumOffset: 4}
			e.read(t, pkts)
			if pkts[0].Frags != nil {
				t.Error("Read set Frags")
			}
			if !isOwn(pkts[0].Data) {
				continue
			}
			if pkts[0].Offload != (tunnel.Offload{}) {
				t.Errorf("Offload of an ordinary packet is %+v", pkts[0].Offload)
			}
			break
		}
	}
}

// A packet that is longer than its buffer is dropped, never cut.
func testReadTooLong(t *testing.T, e *ends) {
	const room = 120
	var before tunnel.Stats
	stats, counts := e.dev.(tunnel.StatsReader)
	if counts {
		before = stats.Stats()
	}
	long := [][]byte{packet(0, room+1), packet(1, room+1), packet(2, 1280), packet(3, 1280)}
	for _, p := range long {
		e.inject(p)
	}
	fits := [][]byte{packet(4, room), packet(5, room)}
	for _, p := range fits {
		e.inject(p)
	}
	for i, got := range e.readOwn(t, len(fits), room) {
		wantPacket(t, "packet behind those that are too long", got, fits[i])
	}
	if counts {
		// The host's own packets may be too long as well.
		if got := stats.Stats().TooLong - before.TooLong; got < uint64(len(long)) {
			t.Errorf("Stats count %d packets that were too long, want %d", got, len(long))
		}
	}
}
