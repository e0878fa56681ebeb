package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// TestUnderlayCapture looks at the underlay with the eyes of another program:
// tshark finds every header, length and checksum right, outer and inner, of TCP
// and UDP between containers, IPv4 and IPv6, over an underlay of either family,
// with the offloads on and off, and no datagram that a router may cut.
func TestUnderlayCapture(t *testing.T) {
	needs(t, "tshark")
	t.Parallel()
	for _, outer := range []string{"ip", "ipv6"} {
		for _, offload := range []string{"on", "off"} {
			for _, encap := range []string{"udp", "vxlan"} {
				t.Run(fmt.Sprintf("%s over %s, offload %s", encap, outer, offload), func(t *testing.T) {
					t.Parallel()
					underlayCapture(t, encap, outer, offload)
				})
			}
		}
	}
}

func underlayCapture(t *testing.T, encap, outer, offload string) {
	a, b := capturePair(t, encap, outer, offload)
	tunnel := outer + ":udp:"
	if encap == "vxlan" {
		tunnel += "vxlan:eth:ethertype:"
	}
	var frames [][]byte
	want := map[string]int{}
	for _, dst := range b.container.Addrs() {
		inner := "ip"
		if dst.Is6() {
			inner = "ipv6"
		}
		frames = append(frames, captured(t, a, func() {
			const size = 2e6
			_, err := lab.Transfer(within(t, 30*time.Second), lab.TransferConfig{From: a.container.Namespace, To: b.container.Namespace, Dst: dst, Bytes: size})
			must(t, err)
			want[tunnel+inner+":tcp"] = size / (a.env.MTU - 40) // no segment holds more
		})...)
		frames = append(frames, captured(t, a, func() { want[tunnel+inner+":udp"] = exchange(t, a, b, dst) })...)
	}
	checkDrops(t, a, b)
	got := map[string]int{}
	var good []byte
	wrong := 0
	for i, f := range tshark(t, a, frames) {
		got[f.kind]++
		if f.kind == tunnel+"ipv6:udp" {
			good = frames[i]
		}
		if len(f.wrong) == 0 {
			continue
		}
		if wrong++; wrong <= 20 {
			t.Errorf("frame %d, %s: %q\n%s", i+1, f.kind, f.wrong, f.line)
		}
	}
	t.Logf("captured: %v; wrong: %d", got, wrong)
	for kind, n := range want {
		if got[kind] < n {
			t.Errorf("%d packets of %s were captured, want at least %d", got[kind], kind, n)
		}
	}
	if good != nil {
		findsFaults(t, a, good, encap)
	}
}

// findsFaults breaks a good frame, of UDP in IPv6, and checks that it is noticed.
func findsFaults(t *testing.T, n *node, good []byte, encap string) {
	t.Helper()
	header := 20
	if good[14]>>4 == 6 {
		header = 40
	}
	inner := 14 + header + 8
	type fault struct {
		at   int  // the byte that is wrong
		bit  byte // in it
		want string
	}
	var framing []fault
	if encap == "vxlan" {
		framing = []fault{{inner, 0x80, "vxlan.flags"}, {inner + 6, 2, "vxlan.vni"}}
		inner += 8 + 14
	}
	faults := []fault{
		{len(good) - 1, 1, "udp.checksum.status"},
		{inner + 5, 1, "ipv6.plen"},
		{inner + 40 + 5, 1, "udp.length"},
		{14 + 8, 1, "ip.checksum.status"}, // the outer TTL
		{14 + 6, 0x40, "ip.flags.df"},
	}
	if header == 40 {
		faults = faults[:3]
	}
	faults = append(faults, framing...)
	var frames [][]byte
	for _, f := range faults {
		b := bytes.Clone(good)
		b[f.at] ^= f.bit
		frames = append(frames, b)
	}
	for i, f := range tshark(t, n, frames) {
		if !slices.ContainsFunc(f.wrong, func(w string) bool { return strings.HasPrefix(w, faults[i].want) }) {
			t.Errorf("with byte %d wrong, want a complaint about %s: %q\n%s", faults[i].at, faults[i].want, f.wrong, f.line)
		}
	}
}

// capturePair makes two nodes that know each other by one address, of the family
// ip or ipv6.
func capturePair(t *testing.T, encap, outer, offload string) (a, b *node) {
	t.Helper()
	_, _, nodes := cluster(t, 2)
	for i, n := range nodes {
		must(t, n.FinishChecksums("eth0"))
		at, seed := n.Addr4(), nodes[0].Addr4()
		if outer == "ipv6" {
			at, seed = n.Addr6(), nodes[0].Addr6()
		}
		args := []string{"--encap", encap, "--offload", offload, "--advertise", at.String()}
		if i > 0 {
			args = append(args, "--join", seed.String())
		}
		n.start(t, args...)
	}
	for _, n := range nodes {
		n.lease(t)
		n.attach(t)
	}
	awaitMesh(t, nodes...)
	return nodes[0], nodes[1]
}

// captured returns what passes the underlay interface of a node while fn runs: the
// first packets, where a busy machine makes TCP send more than a Capture keeps.
func captured(t *testing.T, n *node, fn func()) [][]byte {
	t.Helper()
	c, err := n.Capture("eth0", nil)
	must(t, err)
	defer c.Stop()
	fn()
	c.Stop()
	var frames [][]byte
	for _, p := range c.Packets() {
		frames = append(frames, p.Data)
	}
	return frames
}

// exchange sends datagrams of all sizes from the container of a to that of b,
// singly and in trains for the kernel to cut, and compares what arrives. It
// returns how many they were.
func exchange(t *testing.T, a, b *node, dst netip.Addr) (sent int) {
	t.Helper()
	in, err := b.container.ListenUDP(netip.AddrPortFrom(dst, 0))
	must(t, err)
	defer in.Close()
	out, err := a.container.Dial(within(t, 10*time.Second), "udp", in.LocalAddr().(*net.UDPAddr).AddrPort())
	must(t, err)
	defer out.Close()
	raw, err := out.(*net.UDPConn).SyscallConn()
	must(t, err)
	room := a.env.MTU - 8 - 20
	if dst.Is6() {
		room -= 20
	}
	src := rand.NewChaCha8([32]byte{})
	buf := make([]byte, room+1)
	for round := range 32 {
		// No more than every queue on the way has room for.
		burst := make([][]byte, 16)
		for i := range burst {
			size := 1 + (len(burst)*round+i)*(room-1)/495 // in round 30 the largest
			if round%2 == 1 {
				size = 1 + round*(room-1)/31 // a train, whose last one is shorter
				if i == len(burst)-1 {
					size = (size + 1) / 2
				}
			}
			burst[i] = make([]byte, size)
			src.Read(burst[i])
		}
		if round%2 == 1 {
			must(t, segment(raw, len(burst[0])))
			_, err := out.Write(bytes.Join(burst, nil))
			must(t, err, segment(raw, 0))
		} else {
			for _, d := range burst {
				_, err := out.Write(d)
				must(t, err)
			}
		}
		for i, d := range burst {
			must(t, in.SetReadDeadline(time.Now().Add(10*time.Second)))
			n, err := in.Read(buf)
			must(t, err)
			if !bytes.Equal(buf[:n], d) {
				t.Fatalf("to %v: of burst %d the datagram %d of %d bytes arrived with %d, or other ones", dst, round, i, len(d), n)
			}
		}
		sent += len(burst)
	}
	return sent
}

// segment makes the kernel cut what is sent by a UDP socket (udp(7)).
func segment(c interface{ Control(func(uintptr)) error }, size int) error {
	var err error
	ctlErr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size)
	})
	return errors.Join(ctlErr, err)
}

// sharkFields are what tshark is asked for of each frame. A field of several
// headers has as many values, the outer one's first.
var sharkFields = []string{
	"frame.protocols", "frame.len", "ip.len", "ipv6.plen", "udp.length", "udp.dstport",
	"ip.flags.df", "ip.flags.mf", "ip.frag_offset",
	"ip.checksum.status", "udp.checksum.status", "tcp.checksum.status", "_ws.malformed",
	"vxlan.flags", "vxlan.vni", "_ws.expert.severity", "_ws.expert.message",
}

// dissected is what tshark says of a frame.
type dissected struct {
	line  string // the values of sharkFields
	kind  string // the layers, such as ip:udp:ipv6:tcp
	wrong []string
}

// tshark has tshark read frames of the underlay interface of n. What the data port
// carries is dissected as IP, and what other ports carry not at all: they and the
// bytes are random, and could be some protocol's by chance.
func tshark(t *testing.T, n *node, frames [][]byte) (all []dissected) {
	t.Helper()
	file := filepath.Join(n.Dir(), "underlay.pcap")
	f, err := os.Create(file)
	must(t, err)
	defer f.Close()
	w := pcapgo.NewWriter(f)
	must(t, w.WriteFileHeader(1<<18, layers.LinkTypeEthernet))
	for _, b := range frames {
		must(t, w.WritePacket(gopacket.CaptureInfo{Timestamp: time.Now(), CaptureLength: len(b), Length: len(b)}, b))
	}
	args := []string{
		"-n", "-r", file, "-d", "tcp.port==1-65535,data", "-d", "udp.port==1-65535,data", "-d", "udp.port==8285,ip", "-d", "udp.port==8472,vxlan",
		"-o", "tcp.analyze_sequence_numbers:FALSE", // a capture that is not complete
		"-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE",
		"-T", "fields", "-E", "separator=/t", "-E", "occurrence=a", "-E", "aggregator=,",
	}
	for _, name := range sharkFields {
		args = append(args, "-e", name)
	}
	cmd := exec.CommandContext(within(t, 60*time.Second), "tshark", args...)
	cmd.Env = append(os.Environ(), "WIRESHARK_CONFIG_DIR="+n.Dir()) // nobody's preferences
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, errs.String())
	}
	for line := range strings.Lines(string(out)) {
		d := dissected{line: strings.TrimSuffix(line, "\n")}
		d.judge()
		all = append(all, d)
	}
	if len(all) != len(frames) {
		t.Fatalf("tshark tells of %d frames, want %d", len(all), len(frames))
	}
	return all
}

// judge sets kind and wrong.
func (d *dissected) judge() {
	values := map[string][]string{}
	for i, v := range strings.Split(d.line, "\t") {
		if v != "" {
			values[sharkFields[i]] = strings.Split(v, ",")
		}
	}
	// next takes the next value of a field and compares it.
	next := func(field string, want ...string) string {
		v := values[field]
		if len(v) == 0 {
			v = []string{"missing"}
		}
		values[field] = v[1:]
		if len(want) > 0 && !slices.Contains(want, v[0]) {
			d.wrong = append(d.wrong, fmt.Sprintf("%s is %s, want %s", field, v[0], want[0]))
		}
		return v[0]
	}
	kind := strings.TrimSuffix(strings.TrimPrefix(next("frame.protocols"), "eth:ethertype:"), ":data")
	// The dissector of IP hands IPv6 on, and finds that a probe is neither.
	d.kind = strings.TrimSuffix(strings.Replace(kind, ":ip:ipv6", ":ipv6", 1), ":udp:ip")
	if d.kind != kind && !strings.Contains(d.kind, ":") {
		d.kind += ":udp"
	}
	left, err := strconv.Atoi(next("frame.len"))
	if left -= 14; err != nil || left > 1500 {
		d.wrong = append(d.wrong, fmt.Sprintf("frame.len: %d bytes of an MTU of 1500: %v", left, err))
	}
	if m := values["_ws.malformed"]; len(m) > 0 {
		d.wrong = append(d.wrong, fmt.Sprintf("_ws.malformed is %q", m))
	}
	const warning = 0x600000 // PI_WARN of Wireshark's expert information
	sums := []string{"1"}
	for i, s := range values["_ws.expert.severity"] {
		m := values["_ws.expert.message"]
		if i < len(m) && m[i] == "D-SACK Sequence" {
			continue // TCP on a busy machine has sent something twice
		}
		if i < len(m) && strings.HasPrefix(m[i], "TCP Checksum 0xffff instead of 0x0000") {
			// Linux finishes a checksum of zero so for every protocol (skb_checksum_help in
			// linux/net/core/dev.c); to a receiver it is the same.
			sums = append(sums, "0")
			continue
		}
		if !strings.Contains(strings.TrimPrefix(d.kind, "ip"), "udp:") {
			break // of a probe, which is no packet, the dissector of IP thinks little
		}
		if n, err := strconv.Atoi(s); err != nil || n >= warning {
			d.wrong = append(d.wrong, fmt.Sprintf("_ws.expert warns: %q", values["_ws.expert.message"]))
		}
	}
	data := slices.ContainsFunc(values["udp.dstport"], func(p string) bool { return p == "8285" || p == "8472" })
	for i, layer := range strings.Split(d.kind, ":") {
		switch layer {
		case "ip":
			next("ip.len", strconv.Itoa(left))
			next("ip.checksum.status", "1")
			next("ip.flags.mf", "0", "False")
			next("ip.frag_offset", "0")
			if df := next("ip.flags.df"); i == 0 && data && df != "1" && df != "True" {
				d.wrong = append(d.wrong, "ip.flags.df is not set: a router may cut it")
			}
			left -= 20
		case "ipv6":
			left -= 40
			next("ipv6.plen", strconv.Itoa(left))
		case "udp":
			next("udp.length", strconv.Itoa(left))
			next("udp.checksum.status", "1")
			left -= 8
		case "vxlan":
			next("vxlan.flags", "0x0800")
			next("vxlan.vni", "1")
			left -= 8
		case "eth":
			left -= 14
		case "ethertype", "0x88b5":
		case "tcp":
			next("tcp.checksum.status", sums...)
		case "arp", "icmpv6", "ipv6.hopopts", "igmp": // neighbours, and who listens to what
			return
		default: // a header of a fragment, for example
			d.wrong = append(d.wrong, "frame.protocols has "+layer)
		}
	}
}
