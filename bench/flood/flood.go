package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/bench/report"
	"github.com/overlayd/overlayd/internal/kernel/lab"
)

const (
	// floodGoal is how much of a flow is left under junk, at the least, beside what
	// is left when the host's kernel drops the same junk.
	floodGoal = 0.5
	// logGoal is how many lines a second a daemon may log about junk.
	logGoal = 1.0
	// dataPort is where the daemons listen.
	dataPort = 8285
	// settle is for how long a flow runs before it is measured, without junk and
	// with it.
	settle = 100 * time.Millisecond
)

// junk is what a stranger sends to host B's data port.
type junk struct {
	name     string
	title    string
	segments int // datagrams for one send: 1, or what UDP_SEGMENT cuts
	datagram func(s *target) []byte
}

var junks = []junk{
	{"small", "64 bytes of garbage", 1, garbage(64)},
	{"smalltrain", "64 bytes, UDP_SEGMENT", 64, garbage(64)},
	{"train", "1400 bytes, UDP_SEGMENT", 46, garbage(1400)},
	{"inner", "inner IP packets", 1, innerPacket},
}

func garbage(size int) func(*target) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return func(*target) []byte { return b }
}

// innerPacket is what A could send to B: UDP without a checksum, of the size of
// the MTU.
func innerPacket(s *target) []byte {
	b := make([]byte, s.MTU)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	src, dst := s.A.Addr.As4(), s.B.Addr.As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(b[22:], 9) // discard
	binary.BigEndian.PutUint16(b[24:], uint16(len(b)-20))
	return b
}

// kept is what was measured for one kind of junk, one value per round.
type kept struct {
	dropped, reached           []float64 // Gb/s of the flow
	sentDropped, sentToOverlay []float64 // junk, datagrams a second
}

// ledger says what became of the junk that host B's kernel did not drop.
type ledger struct {
	sent    int64 // datagrams
	time    time.Duration
	lines   int               // of the daemon's log
	drops   map[string]uint64 // by the daemon, datagrams
	noRoom  uint64            // messages for which the socket's buffer had no room
	refused uint64            // all messages that did not get into it
}

// measureFlood measures one TCP stream from A to B without junk, with junk that
// B's kernel drops, and with junk that reaches B's daemon.
func measureFlood(ctx context.Context, w io.Writer, s *target, binary string, junks []junk, rounds int, length time.Duration) error {
	for _, pid := range []int{0, s.Daemons[0][0].PID(), s.Daemons[1][0].PID()} {
		if err := pin(pid, false); err != nil {
			return err
		}
	}
	victim := s.Hosts[1]
	all := make([]kept, len(junks))
	books := make([]ledger, len(junks))
	var clean []float64
	for round := range rounds {
		rate, _, err := flowUnder(ctx, s, nil, length)
		if err != nil {
			return fmt.Errorf("no junk: %w", err)
		}
		clean = append(clean, rate)
		for i := range junks {
			for turn := range 2 {
				var rate, sent float64
				// Neither state is always the first.
				if (turn+round)%2 == 0 {
					from := lab.Match{Proto: "udp", Port: dataPort, Src: netip.PrefixFrom(s.stranger.Addr4(), 32)}
					if err := victim.Block(from, lab.In); err != nil {
						return err
					}
					rate, sent, err = flowUnder(ctx, s, &junks[i], length)
					all[i].dropped, all[i].sentDropped = append(all[i].dropped, rate), append(all[i].sentDropped, sent)
					err = errors.Join(err, victim.Unblock())
				} else {
					err = books[i].keep(ctx, s, binary, func() (time.Duration, int64, error) {
						rate, sent, err = flowUnder(ctx, s, &junks[i], length)
						took := floodTime(length)
						return took, int64(sent * took.Seconds()), err
					})
					all[i].reached, all[i].sentToOverlay = append(all[i].reached, rate), append(all[i].sentToOverlay, sent)
				}
				if err != nil {
					return fmt.Errorf("%s: %w", junks[i].title, err)
				}
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d done\n", round+1, rounds)
	}
	printFlood(w, junks, clean, all, books)
	return nil
}

func floodTime(length time.Duration) time.Duration { return settle + length + settle }

// flowUnder returns what a TCP stream from A to B carries under junk, in Gb/s, and
// how many datagrams of it the stranger sent a second. The flow is there first. It
// is measured by what its receiver's kernel has, so that nothing counts which
// arrives before the junk or after it.
func flowUnder(ctx context.Context, s *target, j *junk, length time.Duration) (gbps, sent float64, err error) {
	client, server, err := load.Connect(s.System)
	if err != nil {
		return 0, 0, err
	}
	watch, err := unix.FcntlInt(uintptr(server), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(watch)
	sink, err := load.Start(ctx, s.B.Namespace, "sink", length, server, nil)
	if err != nil {
		return 0, 0, err
	}
	defer sink.Kill()
	source, err := load.Start(ctx, s.A.Namespace, "source", time.Hour, client, nil)
	if err != nil {
		return 0, 0, err
	}
	defer source.Kill()
	time.Sleep(settle)
	var stranger *load.Program
	if j != nil {
		if stranger, err = s.flood(ctx, *j, floodTime(length)); err != nil {
			return 0, 0, err
		}
		defer func() {
			if err != nil {
				stranger.Kill()
			}
		}()
	}
	time.Sleep(settle)
	began := time.Now()
	before, err := unix.GetsockoptTCPInfo(watch, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, 0, err
	}
	time.Sleep(length)
	after, err := unix.GetsockoptTCPInfo(watch, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, 0, err
	}
	gbps = float64(after.Bytes_received-before.Bytes_received) * 8 / time.Since(began).Seconds() / 1e9
	if stranger != nil {
		numbers, err := stranger.Result()
		if err != nil {
			return gbps, 0, err
		}
		n := numbers[0]
		return gbps, float64(n) / floodTime(length).Seconds(), err
	}
	return gbps, 0, nil
}

// flood starts to send junk from the stranger to host B.
func (s *target) flood(ctx context.Context, j junk, length time.Duration) (*load.Program, error) {
	datagram := j.datagram(s)
	fd, err := load.NewSocket(s.stranger.Namespace, unix.SOCK_DGRAM)
	if err != nil {
		return nil, err
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: s.Hosts[1].Addr4().As4(), Port: dataPort})
	if err == nil && j.segments > 1 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, len(datagram))
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("socket for junk: %w", err)
	}
	return load.Start(ctx, s.stranger.Namespace, "flood", length, fd, bytes.NewReader(bytes.Repeat(datagram, j.segments)))
}

// keep adds up what becomes of junk while fn sends it. fn returns for how long it
// did, and how many datagrams.
func (l *ledger) keep(ctx context.Context, s *target, binary string, fn func() (time.Duration, int64, error)) error {
	before, err := look(ctx, s, binary)
	if err != nil {
		return err
	}
	took, sent, err := fn()
	if err != nil {
		return err
	}
	after, err := look(ctx, s, binary)
	if err != nil {
		return err
	}
	l.time += took
	l.sent += sent
	l.lines += after.lines - before.lines
	l.noRoom += after.noRoom - before.noRoom
	l.refused += after.refused - before.refused
	if l.drops == nil {
		l.drops = map[string]uint64{}
	}
	for reason, n := range after.drops {
		l.drops[reason] += n - before.drops[reason]
	}
	return nil
}

// look reads host B's counters.
func look(ctx context.Context, s *target, binary string) (l ledger, err error) {
	victim, daemon := s.Hosts[1], s.Daemons[1][0]
	log, err := os.ReadFile(daemon.LogFile())
	if err != nil {
		return l, err
	}
	l.lines = bytes.Count(log, []byte("\n"))
	out, err := victim.Output(ctx, exec.Command(binary, "drops", "--json", "--run-dir", filepath.Join(victim.Dir(), "run")))
	if err != nil {
		return l, fmt.Errorf("overlayd drops: %w: %s", err, out)
	}
	var doc struct {
		Drops map[string]uint64 `json:"drops"`
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		return l, fmt.Errorf("overlayd drops: %w", err)
	}
	l.drops = doc.Drops
	udp, err := udpCounters(victim)
	l.noRoom, l.refused = udp["RcvbufErrors"], udp["InErrors"]
	return l, err
}

// udpCounters reads the kernel's counters of a namespace for UDP over IPv4. A
// train of datagrams that stays together counts once.
func udpCounters(h *lab.Host) (counters map[string]uint64, err error) {
	var text []byte
	err = h.Do(func() error {
		text, err = os.ReadFile("/proc/thread-self/net/snmp")
		return err
	})
	counters = map[string]uint64{}
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0 || fields[0] != "Udp:":
		case names == nil:
			names = fields
		default:
			for i := 1; i < len(fields); i++ {
				n, err := strconv.ParseUint(fields[i], 10, 64)
				if err != nil {
					return nil, fmt.Errorf("/proc/net/snmp: %w", err)
				}
				counters[names[i]] = n
			}
		}
	}
	return counters, err
}

func printFlood(w io.Writer, junks []junk, clean []float64, all []kept, books []ledger) {
	fmt.Fprintf(w, "TCP, one stream, without junk: %.4g Gb/s (medians of %d)\n\n", report.Median(clean), len(clean))
	fmt.Fprintf(w, "%-26s%22s%26s%10s%8s\n", "junk", "kernel drops it", "it reaches overlayd", "ratio", "goal")
	flow := func(gbps, sent []float64) string {
		return fmt.Sprintf("%.3g Gb/s, %.3g M/s", report.Median(gbps), report.Median(sent)/1e6)
	}
	for i, k := range all {
		ratio := report.Median(k.reached) / report.Median(k.dropped)
		fmt.Fprintf(w, "%-26s%22s%26s%10.2f%8s  %s\n", junks[i].title, flow(k.dropped, k.sentDropped),
			flow(k.reached, k.sentToOverlay), ratio, fmt.Sprintf(">=%.2f", floodGoal), verdict(ratio >= floodGoal))
	}
	fmt.Fprintln(w, "\nGb/s: the flow; M/s: million datagrams of junk a second that were sent.")
	fmt.Fprintln(w, "Below, socket full and refused count messages: a train that UDP_SEGMENT cuts counts once.")
	fmt.Fprintf(w, "\n%-26s%10s%20s%18s%16s\n", "what reached overlayd", "sent, M", "counted by it", "socket full", "refused")
	var lines int
	var took time.Duration
	for i, l := range books {
		lines, took = lines+l.lines, took+l.time
		fmt.Fprintf(w, "%-26s%10.4g%20s%18d%16d%s\n", junks[i].title, float64(l.sent)/1e6,
			fmt.Sprintf("%.1f%% unknown", 100*float64(l.drops[unknown])/float64(l.sent)), l.noRoom, l.refused-l.noRoom, l.others())
	}
	rate := float64(lines) / took.Seconds()
	fmt.Fprintf(w, "\nlog lines of the daemon a second: %.2f (goal: <=%.0f, %s)\n", rate, logGoal, verdict(rate <= logGoal))
}

// unknown is the daemon's name for what no peer has sent.
const unknown = "rx_unknown_source"

// others says what else the daemon dropped of what it received.
func (l *ledger) others() (text string) {
	for _, reason := range slices.Sorted(maps.Keys(l.drops)) {
		if n := l.drops[reason]; n > 0 && reason != unknown && strings.HasPrefix(reason, "rx_") {
			text += fmt.Sprintf("  %s %d", reason, n)
		}
	}
	return text
}

func verdict(reached bool) string {
	if reached {
		return "reached"
	}
	return "missed"
}
