package tunnel_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/tunnel"
	"github.com/overlayd/overlayd/tunnel/tunneltest"
)

func TestMemoryDevice(t *testing.T) {
	all := tunnel.Features{TCP4: true, TCP6: true, UDP: true, Checksum: true, ReadBatch: 128, MaxPacket: 65535}
	for name, cfg := range map[string]tunnel.MemoryConfig{
		"defaults":      {},
		"all offloads":  {Features: all},
		"one at a time": {Features: tunnel.Features{ReadBatch: 1, MaxPacket: 1280}, Queue: 64},
	} {
		t.Run(name, func(t *testing.T) {
			tunneltest.TestDevice(t, func(t *testing.T) (tunnel.Device, func([]byte), func() []byte) {
				m := tunnel.NewMemory(cfg)
				inject := func(p []byte) {
					if err := m.Inject(p); err != nil {
						t.Error(err)
					}
				}
				receive := func() []byte {
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					buf := make([]byte, 65535)
					n, err := m.Receive(ctx, buf)
					if err != nil {
						return nil
					}
					return buf[:n]
				}
				return m, inject, receive
			})
		})
	}
}

func TestMemoryDefaults(t *testing.T) {
	m := tunnel.NewMemory(tunnel.MemoryConfig{})
	if got, want := m.Features(), (tunnel.Features{ReadBatch: 64, MaxPacket: 1500}); got != want {
		t.Errorf("Features are %+v, want %+v", got, want)
	}
	m = tunnel.NewMemory(tunnel.MemoryConfig{Name: "x", Queue: -1, Features: tunnel.Features{ReadBatch: -1, MaxPacket: 1 << 20}})
	if got, want := m.Features(), (tunnel.Features{ReadBatch: 64, MaxPacket: 65535}); got != want {
		t.Errorf("Features are %+v, want %+v", got, want)
	}
	if m.Name() != "x" {
		t.Errorf("Name is %q", m.Name())
	}
}

// A full queue loses what comes last, counts it, and keeps what it has.
func TestMemoryFull(t *testing.T) {
	const queue, extra = 4, 3
	m := tunnel.NewMemory(tunnel.MemoryConfig{Queue: queue})
	defer m.Close()
	for round := 1; round <= 3; round++ { // the ring turns
		for i := range queue + extra {
			if err := m.Inject(ipPacket(40, byte(i))); err != nil {
				t.Fatal(err)
			}
			if n, err := m.Write([]tunnel.Packet{{Data: ipPacket(60, byte(i))}}); n != 1 || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
		}
		want := tunnel.Stats{ReadFull: uint64(extra * round), WriteFull: uint64(extra * round)}
		if got := m.Stats(); got != want {
			t.Errorf("Stats are %+v, want %+v", got, want)
		}
		pkts := make([]tunnel.Packet, 2*queue)
		for i := range pkts {
			pkts[i].Data = make([]byte, 1500)
		}
		n, err := m.Read(pkts)
		if n != queue || err != nil {
			t.Fatalf("Read = %d, %v; want %d", n, err, queue)
		}
		for i := range queue {
			if !bytes.Equal(pkts[i].Data, ipPacket(40, byte(i))) {
				t.Errorf("packet %d read is %x", i, pkts[i].Data)
			}
			buf := make([]byte, 1500)
			k, err := m.Receive(t.Context(), buf)
			if err != nil || !bytes.Equal(buf[:k], ipPacket(60, byte(i))) {
				t.Errorf("packet %d received is %x, %v", i, buf[:k], err)
			}
		}
	}
}

func TestMemoryInjectRefuses(t *testing.T) {
	m := tunnel.NewMemory(tunnel.MemoryConfig{Features: tunnel.Features{UDP: true}})
	defer m.Close()
	for _, c := range []struct {
		name string
		p    tunnel.Packet
		want error
	}{
		{"nothing", tunnel.Packet{}, tunnel.ErrPacket},
		{"no IP", tunnel.Packet{Data: []byte{0x55, 0}}, tunnel.ErrPacket},
		{"too long", tunnel.Packet{Data: ipPacket(1501, 0)}, tunnel.ErrPacket},
		{"too long in pieces", tunnel.Packet{Data: ipPacket(1500, 0), Frags: [][]byte{{1}}}, tunnel.ErrPacket},
		{"offload", tunnel.Packet{Data: ipPacket(100, 0), Offload: tunnel.Offload{GSO: tunnel.GSOTCP4, SegmentSize: 9}}, tunnel.ErrOffload},
	} {
		if err := m.InjectPacket(t.Context(), c.p); !errors.Is(err, c.want) {
			t.Errorf("%s: InjectPacket: %v; want %v", c.name, err, c.want)
		}
	}
	if err := m.Inject(nil); !errors.Is(err, tunnel.ErrPacket) {
		t.Errorf("Inject(nil): %v", err)
	}
	if err := m.Inject(ipPacket(1500, 0)); err != nil {
		t.Errorf("Inject of the longest packet: %v", err)
	}
}

// Offloads and pieces arrive at the other end.
func TestMemoryOffload(t *testing.T) {
	m := tunnel.NewMemory(tunnel.MemoryConfig{Features: tunnel.Features{
		TCP4: true, TCP6: true, UDP: true, Checksum: true, MaxPacket: 65535,
	}})
	defer m.Close()
	whole := ipPacket(65535, 7)
	for _, gso := range []tunnel.GSOType{tunnel.GSOTCP4, tunnel.GSOTCP6, tunnel.GSOUDP} {
		o := tunnel.Offload{GSO: gso, NeedsChecksum: true, SegmentSize: 1448, HeaderLen: 52, ChecksumStart: 20, ChecksumOffset: 16}
		p := tunnel.Packet{Data: whole[:52], Frags: [][]byte{whole[52:3000], whole[3000:]}, Offload: o}
		if err := m.InjectPacket(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		in := []tunnel.Packet{{Data: make([]byte, 65535)}}
		if n, err := m.Read(in); n != 1 || err != nil {
			t.Fatalf("Read = %d, %v", n, err)
		}
		if in[0].Offload != o || !bytes.Equal(in[0].Data, whole) {
			t.Errorf("read %d bytes, %+v; want %d, %+v", len(in[0].Data), in[0].Offload, len(whole), o)
		}
		if n, err := m.Write([]tunnel.Packet{p, p}); n != 2 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
		out := tunnel.Packet{Data: make([]byte, 65535)}
		if err := m.ReceivePacket(t.Context(), &out); err != nil {
			t.Fatal(err)
		}
		if out.Offload != o || !bytes.Equal(out.Data, whole) {
			t.Errorf("received %d bytes, %+v; want %d, %+v", len(out.Data), out.Offload, len(whole), o)
		}
		if _, err := m.Receive(t.Context(), make([]byte, 65535)); !errors.Is(err, tunnel.ErrOffload) {
			t.Errorf("Receive of a superpacket: %v; want ErrOffload", err)
		}
	}
}

func TestMemoryShortBuffer(t *testing.T) {
	m := tunnel.NewMemory(tunnel.MemoryConfig{})
	defer m.Close()
	m.Write([]tunnel.Packet{{Data: ipPacket(101, 1)}, {Data: ipPacket(100, 2)}})
	buf := make([]byte, 100)
	if n, err := m.Receive(t.Context(), buf); n != 0 || !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("Receive = %d, %v; want 0 and io.ErrShortBuffer", n, err)
	}
	if n, err := m.Receive(t.Context(), buf); n != 100 || err != nil || buf[99] != 2 {
		t.Errorf("Receive = %d, %v; want the next packet", n, err)
	}
}

// What was written before Close is received, then the end; Inject is over.
func TestMemoryCloseHostEnd(t *testing.T) {
	m := tunnel.NewMemory(tunnel.MemoryConfig{})
	m.Write([]tunnel.Packet{{Data: ipPacket(100, 1)}})
	m.Close()
	buf := make([]byte, 100)
	if n, err := m.Receive(t.Context(), buf); n != 100 || err != nil {
		t.Errorf("Receive = %d, %v; want what was written before Close", n, err)
	}
	for range 2 {
		if _, err := m.Receive(t.Context(), buf); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Receive: %v; want os.ErrClosed", err)
		}
		if err := m.Inject(ipPacket(100, 1)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Inject: %v; want os.ErrClosed", err)
		}
		if err := m.InjectPacket(t.Context(), tunnel.Packet{Data: ipPacket(100, 1)}); !errors.Is(err, os.ErrClosed) {
			t.Errorf("InjectPacket: %v; want os.ErrClosed", err)
		}
	}
}

// Those who wait at the host end are woken by what they wait for, by their
// context and by Close, however many they are.
func TestMemoryWaits(t *testing.T) {
	const n = 4
	p := ipPacket(100, 1)
	cause := errors.New("enough")
	for _, side := range []string{"receive", "inject"} {
		for _, wake := range []string{"packet", "context", "close"} {
			t.Run(side+" "+wake, func(t *testing.T) {
				m := tunnel.NewMemory(tunnel.MemoryConfig{Queue: n})
				defer m.Close()
				call := func(ctx context.Context) error {
					_, err := m.Receive(ctx, make([]byte, 100))
					return err
				}
				if side == "inject" {
					for range n {
						m.Inject(p)
					}
					call = func(ctx context.Context) error { return m.InjectPacket(ctx, tunnel.Packet{Data: p}) }
				}
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				errs := make(chan error, n)
				for range n {
					go func() { errs <- call(ctx) }()
				}
				select {
				case err := <-errs:
					t.Fatalf("did not wait: %v", err)
				case <-time.After(10 * time.Millisecond):
				}
				var want error
				switch {
				case wake == "context":
					want = cause
					cancel(cause)
				case wake == "close":
					want = os.ErrClosed
					m.Close()
				case side == "receive":
					m.Write([]tunnel.Packet{{Data: p}, {Data: p}, {Data: p}, {Data: p}})
				default:
					pkts := make([]tunnel.Packet, n)
					for i := range pkts {
						pkts[i].Data = make([]byte, 100)
					}
					if k, err := m.Read(pkts); k != n || err != nil {
						t.Fatalf("Read = %d, %v", k, err)
					}
				}
				for range n {
					select {
					case err := <-errs:
						if !errors.Is(err, want) {
							t.Errorf("got %v, want %v", err, want)
						}
					case <-time.After(patience):
						t.Fatal("somebody still waits")
					}
				}
			})
		}
	}
}

// Many at the host end, and a small queue: nothing is lost, nothing gets stuck.
func TestMemoryManyHosts(t *testing.T) {
	const hosts, each = 4, 500
	m := tunnel.NewMemory(tunnel.MemoryConfig{Queue: 8})
	var injecting, all sync.WaitGroup
	for h := range hosts {
		injecting.Go(func() {
			for range each {
				if err := m.InjectPacket(t.Context(), tunnel.Packet{Data: ipPacket(100, byte(h))}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Go(func() {
		counts := map[byte]int{}
		for read := 0; read < hosts*each; {
			pkts := []tunnel.Packet{{Data: make([]byte, 100)}, {Data: make([]byte, 100)}, {Data: make([]byte, 100)}}
			n, err := m.Read(pkts)
			if err != nil {
				t.Error(err)
				return
			}
			for _, p := range pkts[:n] {
				counts[p.Data[99]]++
			}
			read += n
		}
		for h := range hosts {
			if counts[byte(h)] != each {
				t.Errorf("%d packets of host %d were read, want %d", counts[byte(h)], h, each)
			}
		}
	})
	done := make(chan struct{})
	go func() { injecting.Wait(); all.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		m.Close()
		t.Fatal("stuck")
	}
	m.Close()
}

func TestMemoryAllocs(t *testing.T) {
	m := tunnel.NewMemory(tunnel.MemoryConfig{Queue: 4})
	defer m.Close()
	ctx := t.Context()
	data, buf := ipPacket(1000, 1), make([]byte, 1500)
	bufs := [2][]byte{make([]byte, 1500), make([]byte, 1500)}
	frags := [][]byte{make([]byte, 100), make([]byte, 200)}
	in := make([]tunnel.Packet, 2)
	out := []tunnel.Packet{{Data: data}, {Data: data, Frags: frags}}
	run := func() {
		for i := range in {
			in[i] = tunnel.Packet{Data: bufs[i]}
		}
		if err := m.Inject(data); err != nil {
			t.Fatal(err)
		}
		if err := m.InjectPacket(ctx, out[1]); err != nil {
			t.Fatal(err)
		}
		if n, err := m.Read(in); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		if n, err := m.Write(out); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		for range out {
			if _, err := m.Receive(ctx, buf); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 4 {
		run() // the ring's buffers grow
	}
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations per round, want 0", n)
	}
}

func ExampleNewMemory() {
	dev := tunnel.NewMemory(tunnel.MemoryConfig{Name: "example"})
	defer dev.Close()

	// The host end sends a packet; the overlay reads it from the device.
	if err := dev.Inject([]byte{0x45, 1, 2, 3}); err != nil {
		fmt.Println(err)
	}
	pkts := []tunnel.Packet{{Data: make([]byte, dev.Features().MaxPacket)}}
	n, err := dev.Read(pkts)
	fmt.Println(n, err, pkts[0].Data)

	// The overlay delivers a packet; the host end receives it.
	if _, err := dev.Write([]tunnel.Packet{{Data: []byte{0x60, 4, 5}}}); err != nil {
		fmt.Println(err)
	}
	buf := make([]byte, 1500)
	size, err := dev.Receive(context.Background(), buf)
	fmt.Println(size, err, buf[:size])
	// Output:
	// 1 <nil> [69 1 2 3]
	// 3 <nil> [96 4 5]
}
