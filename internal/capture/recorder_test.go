package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"github.com/overlayd/overlayd/internal/forward"
)

var (
	local4, remote4 = netip.MustParseAddrPort("192.0.2.1:8472"), netip.MustParseAddrPort("192.0.2.2:50000")
	local6, remote6 = netip.MustParseAddrPort("[2001:db8::1]:8472"), netip.MustParseAddrPort("[2001:db8::2]:50000")
)

func config() Config { return Config{Application: "overlayd test", Inner: "overlay0", Outer: "eth0"} }

// captured is the file of what r has seen.
func captured(t *testing.T, r *Recorder) ([]byte, Stats) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var b bytes.Buffer
	s, err := r.Run(ctx, &b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), s
}

// TestRecorder: gopacket reads what was seen, in its interface, with the comment of
// what was dropped.
func TestRecorder(t *testing.T) {
	inner := []byte{0x45, 1, 2, 3}
	keep := func(s *forward.Seen) bool { return s.Encap != "skip" }
	cfg := config()
	cfg.Keep = keep
	r := New(cfg)
	all := []forward.Seen{
		{Outbound: true, Pieces: [][]byte{inner[:1], inner[1:], nil}},
		{Encap: "skip", Pieces: [][]byte{inner}},
		{Outer: true, Outbound: true, Local: local4, Remote: remote4, Class: 0x28, Pieces: [][]byte{[]byte("header"), []byte("packet")}},
		{Outer: true, Local: local6, Remote: remote6, Class: 3, Pieces: [][]byte{[]byte("odd")}, Reason: forward.RxVXLANReserved},
		{Pieces: [][]byte{inner}, Reason: forward.TxTooBig},
		{Outer: true, Local: netip.MustParseAddrPort("[::]:8472"), Remote: remote4, Pieces: [][]byte{[]byte("any")}},
	}
	for i := range all {
		r.Saw(&all[i])
	}
	b, stats := captured(t, r)
	if stats != (Stats{Written: 5}) {
		t.Errorf("%+v", stats)
	}
	ng, err := pcapgo.NewNgReader(bytes.NewReader(b), pcapgo.NgReaderOptions{WantMixedLinkType: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := ng.SectionInfo().Application; got != "overlayd test" {
		t.Errorf("application %q", got)
	}
	for i, want := range []struct {
		iface    int
		src, dst string
		class    uint8
		payload  string
	}{
		{ifaceInner, "", "", 0, string(inner)},
		{ifaceOuter, "192.0.2.1:8472", "192.0.2.2:50000", 0x28, "headerpacket"},
		{ifaceOuter, "[2001:db8::2]:50000", "[2001:db8::1]:8472", 3, "odd"},
		{ifaceInner, "", "", 0, string(inner)},
		{ifaceOuter, "192.0.2.2:50000", "0.0.0.0:8472", 0, "any"},
	} {
		data, ci, err := ng.ReadPacketData()
		if err != nil {
			t.Fatalf("packet %d: %v", i, err)
		}
		if ci.InterfaceIndex != want.iface || ci.Timestamp.IsZero() || ci.Length != len(data) {
			t.Errorf("packet %d: %+v", i, ci)
		}
		if want.iface == ifaceInner {
			if string(data) != want.payload {
				t.Errorf("packet %d: %x", i, data)
			}
			continue
		}
		first := gopacket.Decoder(layers.LayerTypeIPv4)
		if data[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
		p := gopacket.NewPacket(data, first, gopacket.Default)
		if p.ErrorLayer() != nil {
			t.Errorf("packet %d: %v", i, p.ErrorLayer().Error())
		}
		var class uint8
		switch ip := p.NetworkLayer().(type) {
		case *layers.IPv4:
			class = ip.TOS
			if int(ip.Length) != len(data) || ip.TTL != 64 || ip.Flags != layers.IPv4DontFragment {
				t.Errorf("packet %d: %+v", i, ip)
			}
		case *layers.IPv6:
			class = ip.TrafficClass
			if int(ip.Length) != len(data)-40 || ip.HopLimit != 64 || ip.FlowLabel != 0 {
				t.Errorf("packet %d: %+v", i, ip)
			}
		}
		udp, _ := p.TransportLayer().(*layers.UDP)
		src, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Src().Raw())
		dst, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Dst().Raw())
		if udp == nil || netip.AddrPortFrom(src, uint16(udp.SrcPort)).String() != want.src || netip.AddrPortFrom(dst, uint16(udp.DstPort)).String() != want.dst ||
			class != want.class || string(udp.Payload) != want.payload || udp.Checksum == 0 {
			t.Errorf("packet %d: %v", i, p)
		}
	}
	for iface, want := range []struct{ name, description string }{{"overlay0", "inner"}, {"eth0", "underlay"}} {
		got, err := ng.Interface(iface)
		if err != nil || got.Name != want.name || !strings.Contains(got.Description, want.description) || got.LinkType != layers.LinkTypeRaw {
			t.Errorf("interface %d: %+v, %v", iface, got, err)
		}
	}
	if comments := optionsOf(t, b, blockPacket, optComment); len(comments) != 2 || comments[0] != "dropped: rx_vxlan_reserved" || comments[1] != "dropped: tx_too_big" {
		t.Errorf("comments %q", comments)
	}
	if flags := optionsOf(t, b, blockPacket, optPacketFlags); strings.Join(flags, "") != "\x02\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00" {
		t.Errorf("flags %q", flags)
	}
}

// optionsOf walks over the blocks of a file by their lengths and returns the options
// of one code in blocks of one type.
func optionsOf(t *testing.T, b []byte, block uint32, code uint16) (out []string) {
	t.Helper()
	fixed := map[uint32]int{blockSection: 16, blockInterface: 8, blockPacket: 20, blockStatistics: 12}
	for len(b) > 0 {
		typ, n := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
		if n%4 != 0 || int(n) > len(b) || binary.LittleEndian.Uint32(b[n-4:]) != n || fixed[typ] == 0 {
			t.Fatalf("block of type %#x with a length of %d", typ, n)
		}
		body := b[8 : n-4]
		at := fixed[typ]
		if typ == blockPacket {
			at += (int(binary.LittleEndian.Uint32(body[12:])) + 3) / 4 * 4
		}
		for opts := body[at:]; ; {
			c, l := binary.LittleEndian.Uint16(opts), int(binary.LittleEndian.Uint16(opts[2:]))
			if c == optEnd {
				if len(opts) != 4 {
					t.Fatalf("%d bytes behind the options", len(opts)-4)
				}
				break
			}
			if typ == block && c == code {
				out = append(out, string(opts[4:4+l]))
			}
			opts = opts[4+(l+3)/4*4:]
		}
		b = b[n:]
	}
	return out
}

// TestMissed: what is seen while nobody writes is bounded, and what there was no room
// for is counted in the file.
func TestMissed(t *testing.T) {
	r := New(config())
	big := make([]byte, 2*maxPacket)
	for range queueLen + 100 {
		r.Saw(&forward.Seen{Pieces: [][]byte{big}})
	}
	r.Saw(&forward.Seen{Outer: true, Local: local4, Remote: remote4})
	b, stats := captured(t, r)
	if stats != (Stats{queueLen, 101}) {
		t.Errorf("%+v", stats)
	}
	if len(b) > queueLen*(maxPacket+200) {
		t.Errorf("%d bytes", len(b))
	}
	dropped := optionsOf(t, b, blockStatistics, optStatsIfDropped)
	received := optionsOf(t, b, blockStatistics, optStatsIfReceived)
	for i, want := range []uint64{100, 1} {
		if got := binary.LittleEndian.Uint64([]byte(dropped[i])); got != want {
			t.Errorf("interface %d: %d missed", i, got)
		}
	}
	if got := binary.LittleEndian.Uint64([]byte(received[0])); got != queueLen+100 {
		t.Errorf("%d seen", got)
	}
	// There is room again.
	r.Saw(&forward.Seen{Pieces: [][]byte{{0x45}}})
	if _, stats := captured(t, r); stats.Written != 1 {
		t.Errorf("afterwards: %+v", stats)
	}
}

// TestMaxBytes: the file ends in time, and whole.
func TestMaxBytes(t *testing.T) {
	cfg := config()
	cfg.MaxBytes = 5000
	r := New(cfg)
	for range 100 {
		r.Saw(&forward.Seen{Pieces: [][]byte{make([]byte, 100)}})
	}
	b, stats := captured(t, r)
	if len(b) > 5000 || len(b) < 4500 || stats.Written < 20 || stats.Written > 50 || len(optionsOf(t, b, blockStatistics, optStatsIfDropped)) != 2 {
		t.Errorf("%d bytes, %+v", len(b), stats)
	}
	if len(r.free)+len(r.ready) != queueLen {
		t.Errorf("%d and %d records are left", len(r.free), len(r.ready))
	}
}

// TestMinBytes: what is too small for anything still makes a file that can be read.
func TestMinBytes(t *testing.T) {
	for _, most := range []int64{1, 100, 300, MinBytes} {
		cfg := config()
		cfg.MaxBytes = most
		r := New(cfg)
		for range 100 {
			r.Saw(&forward.Seen{Pieces: [][]byte{make([]byte, 100)}})
		}
		b, stats := captured(t, r)
		if len(b) > MinBytes || stats.Written == 0 || len(optionsOf(t, b, blockInterface, optIfName)) != 2 || len(optionsOf(t, b, blockStatistics, optStatsIfDropped)) != 2 {
			t.Errorf("at most %d: %d bytes, %+v", most, len(b), stats)
		}
	}
}

// busyWriter makes another packet for each block that it is given.
type busyWriter struct {
	r      *Recorder
	cancel func()
	blocks int
}

func (w *busyWriter) Write(b []byte) (int, error) {
	w.r.Saw(&forward.Seen{Pieces: [][]byte{{0x45}}})
	if w.blocks++; w.blocks == 1000 {
		w.cancel()
	}
	return len(b), nil
}

// TestEndsWhileBusy: there is always something more to write, and the end is the end.
func TestEndsWhileBusy(t *testing.T) {
	r := New(config())
	ctx, cancel := context.WithCancel(t.Context())
	w := &busyWriter{r: r, cancel: cancel}
	stats, err := r.Run(ctx, w, nil)
	if err != nil || stats.Written < 900 || w.blocks > 1000+queueLen+10 {
		t.Errorf("%+v in %d blocks, %v", stats, w.blocks, err)
	}
}

type brokenWriter struct{ after int }

func (w *brokenWriter) Write(b []byte) (int, error) {
	if w.after--; w.after < 0 {
		return 0, errors.New("disk full")
	}
	return len(b), nil
}

// TestWriteFails: at whichever block, the error is told.
func TestWriteFails(t *testing.T) {
	for after := range 7 {
		r := New(config())
		r.Saw(&forward.Seen{Pieces: [][]byte{{0x45}}})
		r.Saw(&forward.Seen{Outer: true, Local: local4, Remote: remote4})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.Run(ctx, &brokenWriter{after}, nil); err == nil || err.Error() != "disk full" {
			t.Errorf("after %d blocks: %v", after, err)
		}
		if _, err := r.Run(ctx, &brokenWriter{100}, func() error { return errors.New("gone") }); err == nil || err.Error() != "gone" {
			t.Errorf("flush: %v", err)
		}
	}
}
