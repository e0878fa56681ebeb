package tunnel_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/tunnel"
	"github.com/overlayd/overlayd/tunnel/tunneltest"
)

// openTUN opens a TUN in the calling thread's namespace.
func openTUN(t *testing.T, suffix string, maxPacket int) tunnel.Device {
	t.Helper()
	dev, err := tunnel.OpenWater(tunName(suffix), maxPacket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return dev
}

func TestWaterDevice(t *testing.T) {
	for _, maxPacket := range []int{1500, 65535} {
		t.Run(strconv.Itoa(maxPacket), func(t *testing.T) {
			tunneltest.TestDevice(t, func(t *testing.T) (tunnel.Device, func([]byte), func() []byte) {
				enterNetNS(t)
				dev := openTUN(t, "c", maxPacket)
				linkMTU(t, dev.Name(), maxPacket)
				linkUp(t, dev.Name())
				k := openTap(t, dev.Name())
				return dev, k.inject, k.receive
			})
		})
	}
}

// A socket talks through the kernel's routes to somebody behind the device.
func TestWaterKernel(t *testing.T) {
	enterNetNS(t)
	dev := openTUN(t, "k", 1500)
	addAddr(t, dev.Name(), netip.MustParsePrefix("100.96.1.1/16"))
	addAddr(t, dev.Name(), netip.MustParsePrefix("fd96::1:1/48"))
	linkUp(t, dev.Name())

	for _, c := range []struct{ name, local, remote string }{
		{"IPv4", "100.96.1.1:4001", "100.96.2.3:4002"},
		{"IPv6", "[fd96::1:1]:4001", "[fd96::2:3]:4002"},
	} {
		local, remote := netip.MustParseAddrPort(c.local), netip.MustParseAddrPort(c.remote)
		conn := listenUDP(t, local)
		defer conn.Close()
		for _, size := range []int{1, 18, 1000, 1400} {
			want := bytes.Repeat([]byte{byte(size)}, size)
			_, err := conn.WriteToUDPAddrPort(want, remote)
			check(t, err)
			pkt := readUDP(t, dev, remote.Port())
			checkUDP(t, pkt, local, remote, want)

			// With both addresses and ports exchanged all checksums still hold.
			ip, udp := addrsOf(pkt)
			swap(ip)
			swap(udp)
			cut := len(pkt) - size
			answer := tunnel.Packet{Data: pkt[:cut], Frags: [][]byte{pkt[cut:]}}
			if n, err := dev.Write([]tunnel.Packet{answer}); n != 1 || err != nil {
				t.Fatalf("%s: Write = %d, %v", c.name, n, err)
			}
			check(t, conn.SetReadDeadline(time.Now().Add(patience)))
			buf := make([]byte, 2000)
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				t.Fatalf("%s: answer of %d bytes: %v", c.name, size, err)
			}
			if from.Port() != remote.Port() || from.Addr().Unmap() != remote.Addr() || !bytes.Equal(buf[:n], want) {
				t.Errorf("%s: answer of %d bytes from %v, want %d from %v", c.name, n, from, size, remote)
			}
		}
	}
}

// listenUDP opens a socket on a new address. An IPv6 address is tentative for a
// moment, also on a link where nobody else could have it.
func listenUDP(t *testing.T, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	deadline := time.After(patience)
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err == nil {
			return conn
		}
		if !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Fatal(err)
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Fatal(err)
		}
	}
}

// readUDP reads until there is a UDP packet to port: the kernel says things of
// its own on a new link.
func readUDP(t *testing.T, dev tunnel.Device, port uint16) []byte {
	t.Helper()
	watchdog := time.AfterFunc(patience, func() { dev.Close() })
	defer watchdog.Stop()
	for {
		pkts := []tunnel.Packet{{Data: make([]byte, 1500)}}
		if n, err := dev.Read(pkts); n != 1 || err != nil {
			t.Fatalf("Read = %d, %v", n, err)
		}
		if pkt := pkts[0].Data; protocol(pkt) == unix.IPPROTO_UDP {
			if _, udp := addrsOf(pkt); binary.BigEndian.Uint16(udp[2:]) == port {
				return pkt
			}
		}
	}
}

func protocol(pkt []byte) byte {
	if pkt[0]>>4 == 4 {
		return pkt[9]
	}
	return pkt[6]
}

// addrsOf returns source and destination of a UDP packet without options: the
// addresses, and the ports.
func addrsOf(pkt []byte) (ip, ports []byte) {
	if pkt[0]>>4 == 4 {
		return pkt[12:20], pkt[20:24]
	}
	return pkt[8:40], pkt[40:44]
}

// swap exchanges the halves of b.
func swap(b []byte) {
	h := len(b) / 2
	first := bytes.Clone(b[:h])
	copy(b, b[h:])
	copy(b[h:], first)
}

// checkUDP verifies what the kernel handed over, its checksum too: without
// offloads the kernel must have finished it.
func checkUDP(t *testing.T, pkt []byte, from, to netip.AddrPort, want []byte) {
	t.Helper()
	ip, ports := addrsOf(pkt)
	src, _ := netip.AddrFromSlice(ip[:len(ip)/2])
	dst, _ := netip.AddrFromSlice(ip[len(ip)/2:])
	udp := pkt[len(pkt)-len(want)-8:]
	gotFrom := netip.AddrPortFrom(src, binary.BigEndian.Uint16(ports))
	gotTo := netip.AddrPortFrom(dst, binary.BigEndian.Uint16(ports[2:]))
	if gotFrom != from || gotTo != to || !bytes.Equal(udp[8:], want) {
		t.Fatalf("packet from %v to %v with %d bytes, want %v to %v with %d", gotFrom, gotTo, len(udp)-8, from, to, len(want))
	}
	sum := uint32(unix.IPPROTO_UDP + len(udp))
	for _, part := range [][]byte{ip, udp} {
		for i, b := range part {
			sum += uint32(b) << (8 * (1 - i%2))
		}
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	if sum != 0xffff {
		t.Errorf("UDP checksum of %v to %v is not finished: sum %#x", from, to, sum)
	}
}

// The interface is there after OpenWater and gone after Close, as often as one
// likes; nothing stays open.
func TestWaterCycles(t *testing.T) {
	enterNetNS(t)
	name := tunName("y")
	for i := range 20 {
		dev, err := tunnel.OpenWater(name, 1500)
		if err != nil {
			t.Fatalf("cycle %d: %v", i, err)
		}
		if dev.Name() != name || !linkExists(name) {
			t.Fatalf("cycle %d: opened %q, exists: %v", i, dev.Name(), linkExists(name))
		}
		reading := make(chan error, 1)
		go func() {
			_, err := dev.Read([]tunnel.Packet{{Data: make([]byte, 1500)}})
			reading <- err
		}()
		closed := make(chan error, 2)
		for range 2 {
			go func() { closed <- dev.Close() }()
		}
		check(t, <-closed) // whichever of the two did it
		if linkExists(name) {
			t.Fatalf("cycle %d: %s is still there after Close", i, name)
		}
		check(t, <-closed)
		if err := <-reading; !errors.Is(err, os.ErrClosed) {
			t.Errorf("cycle %d: Read: %v; want os.ErrClosed", i, err)
		}
	}
	if fds := tunFDs(t); len(fds) != 0 {
		t.Errorf("descriptors of /dev/net/tun left: %v", fds)
	}
}

// While the link is down Read waits and Write is refused; both go on when it
// is up, and over again.
func TestWaterDown(t *testing.T) {
	enterNetNS(t)
	dev := openTUN(t, "d", 1500)
	pkt := func(fill byte) []byte { return ipPacket(100, fill) }
	read := make(chan []byte)
	ended := make(chan error, 1)
	go func() {
		for {
			pkts := []tunnel.Packet{{Data: make([]byte, 1500)}}
			if _, err := dev.Read(pkts); err != nil {
				ended <- err
				close(read)
				return
			}
			if len(pkts[0].Data) == 100 {
				read <- pkts[0].Data
			}
		}
	}()
	for i := range byte(3) {
		n, err := dev.Write([]tunnel.Packet{{Data: pkt(i)}})
		if n != 0 || !errors.Is(err, tunnel.ErrDown) || !errors.Is(err, unix.EIO) {
			t.Fatalf("Write while down = %d, %v; want 0 and ErrDown", n, err)
		}
		linkUp(t, dev.Name())
		if n, err := dev.Write([]tunnel.Packet{{Data: pkt(i)}}); n != 1 || err != nil {
			t.Fatalf("Write while up = %d, %v", n, err)
		}
		k := openTap(t, dev.Name())
		k.inject(pkt(i))
		select {
		case got := <-read:
			if !bytes.Equal(got, pkt(i)) {
				t.Errorf("read %x, want %x", got, pkt(i))
			}
		case err := <-ended:
			t.Fatalf("Read: %v", err)
		case <-time.After(patience):
			t.Fatal("Read does not wake")
		}
		linkDown(t, dev.Name())
	}
	check(t, dev.Close())
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read: %v; want os.ErrClosed", err)
	}
}

// Somebody deletes the interface: a Read that waits and all later calls say so,
// and Close still works.
func TestWaterGone(t *testing.T) {
	for _, up := range []bool{true, false} {
		t.Run(fmt.Sprintf("up %v", up), func(t *testing.T) {
			enterNetNS(t)
			dev := openTUN(t, "g", 1500)
			if up {
				linkUp(t, dev.Name())
			}
			ended := make(chan error, 1)
			go func() {
				for {
					if _, err := dev.Read([]tunnel.Packet{{Data: make([]byte, 1500)}}); err != nil {
						ended <- err
						return
					}
				}
			}()
			select {
			case err := <-ended:
				t.Fatalf("Read: %v", err)
			case <-time.After(20 * time.Millisecond): // let it come to wait
			}
			deleteLink(t, dev.Name())
			select {
			case err := <-ended:
				if !errors.Is(err, tunnel.ErrGone) {
					t.Errorf("waiting Read: %v; want ErrGone", err)
				}
				wantOneLine(t, err)
			case <-time.After(patience):
				t.Fatal("Read does not wake")
			}
			for range 2 {
				if n, err := dev.Read([]tunnel.Packet{{Data: make([]byte, 1500)}}); n != 0 || !errors.Is(err, tunnel.ErrGone) {
					t.Errorf("Read = %d, %v; want ErrGone", n, err)
				}
				if n, err := dev.Write([]tunnel.Packet{{Data: ipPacket(100, 0)}}); n != 0 || !errors.Is(err, tunnel.ErrGone) {
					t.Errorf("Write = %d, %v; want ErrGone", n, err)
				}
			}
			if err := dev.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if _, err := dev.Read([]tunnel.Packet{{Data: make([]byte, 1500)}}); !errors.Is(err, os.ErrClosed) {
				t.Errorf("Read after Close: %v; want os.ErrClosed", err)
			}
		})
	}
}

// MaxPacket holds also where the interface's MTU and the buffer are larger.
func TestWaterMaxPacket(t *testing.T) {
	enterNetNS(t)
	dev := openTUN(t, "l", 1300)
	linkMTU(t, dev.Name(), 2000)
	linkUp(t, dev.Name())
	k := openTap(t, dev.Name())
	before := dev.(tunnel.StatsReader).Stats().TooLong
	k.inject(ipPacket(1301, 1))
	k.inject(ipPacket(2000, 2))
	k.inject(ipPacket(1300, 3))
	watchdog := time.AfterFunc(patience, func() { dev.Close() })
	defer watchdog.Stop()
	for {
		pkts := []tunnel.Packet{{Data: make([]byte, 2000)}}
		if n, err := dev.Read(pkts); n != 1 || err != nil {
			t.Fatalf("Read = %d, %v", n, err)
		}
		got := pkts[0].Data
		if got[0]>>4 == 6 {
			continue // the kernel's own
		}
		if !bytes.Equal(got, ipPacket(1300, 3)) {
			t.Fatalf("read a packet of %d bytes", len(got))
		}
		break
	}
	if got := dev.(tunnel.StatsReader).Stats().TooLong - before; got != 2 {
		t.Errorf("%d packets were too long, want 2", got)
	}
}

func TestWaterAllocs(t *testing.T) {
	enterNetNS(t)
	dev := openTUN(t, "a", 1500)
	linkUp(t, dev.Name())
	k := openTap(t, dev.Name())

	data := ipPacket(1000, 1)
	frags := [][]byte{make([]byte, 100), make([]byte, 200)}
	out := []tunnel.Packet{{Data: data}, {Data: data, Frags: frags}, {Data: data}}
	if n := testing.AllocsPerRun(100, func() {
		if n, err := dev.Write(out); n != len(out) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}); n != 0 {
		t.Errorf("Write: %v allocations, want 0", n)
	}

	// All packets are there before, since injecting them allocates.
	const runs = 100
	for range 3 * (runs + 1) {
		k.inject(data)
	}
	var bufs [3][]byte
	for i := range bufs {
		bufs[i] = make([]byte, 1500)
	}
	in := make([]tunnel.Packet, len(bufs))
	watchdog := time.AfterFunc(patience, func() { dev.Close() })
	defer watchdog.Stop()
	if n := testing.AllocsPerRun(runs, func() {
		for i := range in {
			in[i] = tunnel.Packet{Data: bufs[i]}
		}
		if n, err := dev.Read(in); n != len(in) || err != nil {
			t.Fatalf("Read = %d, %v", n, err)
		}
	}); n != 0 {
		t.Errorf("Read: %v allocations, want 0", n)
	}
}
