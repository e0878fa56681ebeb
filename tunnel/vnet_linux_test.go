package tunnel_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/tunnel"
	"github.com/overlayd/overlayd/tunnel/tunneltest"
)

// openVNet opens a TUN with a virtio-net header in the calling thread's
// namespace.
func openVNet(t *testing.T, suffix string) tunnel.Device {
	t.Helper()
	dev, err := tunnel.OpenVNet(tunName(suffix))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return dev
}

func TestVNetDevice(t *testing.T) {
	tunneltest.TestDevice(t, func(t *testing.T) (tunnel.Device, func([]byte), func() []byte) {
		enterNetNS(t)
		dev := openVNet(t, "v")
		linkMTU(t, dev.Name(), 65535)
		linkUp(t, dev.Name())
		k := openTap(t, dev.Name())
		return dev, k.inject, k.receive
	})
}

// TestVNetQueues: several queues carry what is written to any of them, each flow's
// packets come out of one of them and in order, and closing one ends all.
func TestVNetQueues(t *testing.T) {
	enterNetNS(t)
	const queues = 3
	name := tunName("q")
	dev, err := tunnel.OpenVNetQueues(name, queues)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	all := dev.(tunnel.MultiQueue).Queues()
	if len(all) != queues {
		t.Fatalf("%d queues", len(all))
	}
	if _, err := tunnel.OpenVNet(name); !errors.Is(err, tunnel.ErrNameInUse) {
		t.Errorf("opened once more: %v", err)
	}
	linkMTU(t, name, 1500)
	linkUp(t, name)
	tap := openTap(t, name)
	pkts := []tunnel.Packet{{Data: udpPacket(1, 0)}}
	for i, q := range all {
		pkts[0].Data = udpPacket(uint16(i), 0)
		if n, err := q.Write(pkts); n != 1 || err != nil {
			t.Fatalf("queue %d: %v", i, err)
		}
		if got := tap.receive(); !bytes.Equal(got, pkts[0].Data) {
			t.Errorf("queue %d: %x came out", i, got)
		}
	}
	// The kernel chooses a queue for each flow.
	const flows, each = 40, 5
	for seq := range each {
		for flow := range flows {
			tap.inject(udpPacket(uint16(1000+flow), byte(seq)))
		}
	}
	type arrived struct {
		queue int
		pkt   []byte
	}
	got := make(chan arrived, flows*each)
	var readers sync.WaitGroup
	for i, q := range all {
		readers.Go(func() {
			for {
				in := []tunnel.Packet{{Data: make([]byte, 65535)}}
				n, err := q.Read(in)
				if err != nil {
					if !errors.Is(err, os.ErrClosed) {
						t.Errorf("queue %d: %v", i, err)
					}
					return
				}
				if n == 1 && len(in[0].Data) == 29 {
					got <- arrived{i, in[0].Data}
				}
			}
		})
	}
	queueOf, next := map[uint16]int{}, map[uint16]byte{}
	used := map[int]bool{}
	for range flows * each {
		a := <-got
		flow, seq := binary.BigEndian.Uint16(a.pkt[20:]), a.pkt[28]
		if q, ok := queueOf[flow]; ok && q != a.queue || seq != next[flow] {
			t.Fatalf("flow %d: packet %d from queue %d, want %d from %d", flow, seq, a.queue, next[flow], q)
		}
		queueOf[flow], next[flow], used[a.queue] = a.queue, seq+1, true
	}
	if len(used) < 2 {
		t.Errorf("%d flows came out of %d queues", flows, len(used))
	}
	if err := all[1].Close(); err != nil {
		t.Error(err)
	}
	readers.Wait()
	if linkExists(name) {
		t.Error("the interface is still there")
	}
}

// udpPacket is a packet of 29 bytes from a port, with one byte of payload.
func udpPacket(port uint16, b byte) []byte {
	p := make([]byte, 29)
	p[0], p[3], p[8], p[9] = 0x45, 29, 64, 17
	copy(p[12:], []byte{100, 96, 1, 2, 100, 96, 2, 3})
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(p[20:], port)
	p[23], p[25], p[28] = 9, 9, b
	return p
}

func TestVNetNameInUse(t *testing.T) {
	enterNetNS(t)
	persistent := makePersistent(t, tunName("p"))
	defer persistent()
	mine := openVNet(t, "m")
	before := len(tunFDs(t))
	for _, name := range []string{"lo", tunName("p"), mine.Name()} {
		dev, err := tunnel.OpenVNet(name)
		if dev != nil || !errors.Is(err, tunnel.ErrNameInUse) {
			t.Errorf("OpenVNet(%s) = %v, %v; want ErrNameInUse", name, dev, err)
			continue
		}
		wantOneLine(t, err)
		if !linkExists(name) {
			t.Errorf("%s is gone", name)
		}
	}
	if after := len(tunFDs(t)); after != before {
		t.Errorf("%d descriptors before, %d after refusals", before, after)
	}
}

func TestVNetGone(t *testing.T) {
	enterNetNS(t)
	dev := openVNet(t, "g")
	linkUp(t, dev.Name())
	deleteLink(t, dev.Name())
	if _, err := dev.Read([]tunnel.Packet{{Data: make([]byte, 2000)}}); !errors.Is(err, tunnel.ErrGone) {
		t.Errorf("Read: %v", err)
	}
	if _, err := dev.Write([]tunnel.Packet{{Data: make([]byte, 20)}}); errors.Is(err, tunnel.ErrGone) {
		t.Errorf("Write of no IP: %v", err)
	}
	p := make([]byte, 20)
	p[0] = 0x45
	if _, err := dev.Write([]tunnel.Packet{{Data: p}}); !errors.Is(err, tunnel.ErrGone) {
		t.Errorf("Write: %v", err)
	}
}

// TestVNetSuperpackets: two TUNs of two namespaces, with a forwarder between them
// that cuts what one hands over and joins it for the other, carry TCP. The bytes
// arrive as they were sent, and most of them in superpackets.
func TestVNetSuperpackets(t *testing.T) {
	for _, c := range []struct{ name, a, b string }{
		{"IPv4", "100.96.1.1/16", "100.96.2.1/16"},
		{"IPv6", "fd96::1:1/48", "fd96::2:1/48"},
	} {
		t.Run(c.name, func(t *testing.T) {
			pa, pb := netip.MustParsePrefix(c.a), netip.MustParsePrefix(c.b)
			// Each end has a namespace, and so a thread, of its own.
			type end struct {
				dev tunnel.Device
				run func(func())
			}
			open := func(p netip.Prefix) end {
				calls, opened := make(chan func()), make(chan tunnel.Device)
				go func() {
					defer close(opened)
					enterNetNS(t)
					dev := openVNet(t, "s")
					linkMTU(t, dev.Name(), 1450)
					addAddr(t, dev.Name(), p)
					linkUp(t, dev.Name())
					opened <- dev
					for f := range calls {
						f()
					}
				}()
				dev, ok := <-opened
				if !ok {
					t.FailNow()
				}
				t.Cleanup(func() { close(calls) })
				return end{dev, func(f func()) {
					done := make(chan struct{})
					calls <- func() { defer close(done); f() }
					<-done
				}}
			}
			a, b := open(pa), open(pb)
			supers := make(chan int, 2)
			carry := func(from, to tunnel.Device) {
				var cut tunnel.Segmenter
				join := tunnel.NewCoalescer(to.Features())
				pkts := make([]tunnel.Packet, from.Features().ReadBatch)
				n := 0
				defer func() { supers <- n }()
				for {
					for i := range pkts {
						pkts[i] = tunnel.Packet{Data: make([]byte, from.Features().MaxPacket)}
					}
					got, err := from.Read(pkts)
					if err != nil {
						return
					}
					cut.Reset()
					join.Reset()
					for i := range pkts[:got] {
						p := &pkts[i]
						if p.Offload.GSO == tunnel.GSONone {
							if p.Offload.NeedsChecksum && !tunnel.FinishChecksum(p) {
								t.Error("a checksum that cannot be finished")
							}
							join.Add(p.Data)
							continue
						}
						n++
						segs, err := cut.Cut(p)
						if err != nil {
							t.Errorf("%+v: %v", p.Offload, err)
						}
						for _, s := range segs {
							if s.Len() > 1450 {
								t.Errorf("a segment of %d bytes", s.Len())
							}
							join.Add(append(bytes.Clone(s.Header), s.Payload...))
						}
					}
					if _, err := to.Write(join.Packets()); err != nil {
						return
					}
				}
			}
			go carry(a.dev, b.dev)
			go carry(b.dev, a.dev)

			// An IPv6 address can be used once the kernel has looked for another
			// host that has it.
			patiently := func(try func() error) {
				for end := time.Now().Add(10 * time.Second); ; {
					err := try()
					if err == nil {
						return
					}
					if time.Now().After(end) {
						t.Error(err)
						return
					}
					<-time.After(10 * time.Millisecond)
				}
			}
			at := netip.AddrPortFrom(pb.Addr(), 4000).String()
			var ln net.Listener
			b.run(func() {
				patiently(func() (err error) { ln, err = net.Listen("tcp", at); return err })
			})
			var conn net.Conn
			a.run(func() {
				patiently(func() (err error) { conn, err = net.DialTimeout("tcp", at, 10*time.Second); return err })
			})
			if t.Failed() {
				t.FailNow()
			}
			sent := make([]byte, 8<<20)
			for i := 0; i < len(sent); i += 8 {
				binary.LittleEndian.PutUint64(sent[i:], uint64(i)*2654435761)
			}
			go func() { conn.Write(sent); conn.Close() }()
			in, err := ln.Accept()
			check(t, err)
			check(t, in.SetDeadline(time.Now().Add(30*time.Second)))
			got, err := io.ReadAll(in)
			check(t, err)
			in.Close()
			ln.Close()
			if !bytes.Equal(got, sent) {
				t.Errorf("%d bytes arrived of %d, or other ones", len(got), len(sent))
			}
			a.dev.Close()
			b.dev.Close()
			if n := <-supers + <-supers; n < 50 {
				t.Errorf("only %d superpackets", n)
			}
		})
	}
}

func TestVNetAllocs(t *testing.T) {
	enterNetNS(t)
	dev := openVNet(t, "a")
	linkUp(t, dev.Name())
	p := make([]byte, 60)
	p[0], p[3], p[8], p[9] = 0x45, 60, 64, 200
	copy(p[12:], []byte{100, 96, 1, 1, 100, 96, 1, 2})
	pkts := []tunnel.Packet{{Data: p[:20], Frags: [][]byte{p[20:40], p[40:]}}}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := dev.Write(pkts); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per Write", n)
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
	if _, err := dev.Write(pkts); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
