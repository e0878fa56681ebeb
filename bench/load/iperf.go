package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/overlayd/overlayd/bench/system"
	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// Iperf measures by iperf3.
type Iperf struct {
	program string
	servers map[*system.System]*lab.Process
}

// NewIperf returns nil if there is no iperf3.
func NewIperf() *Iperf {
	program, err := exec.LookPath("iperf3")
	if err != nil {
		return nil
	}
	return &Iperf{program: program, servers: make(map[*system.System]*lab.Process)}
}

// Version is what iperf3 calls itself.
func (i *Iperf) Version() string {
	out, _ := exec.Command(i.program, "--version").Output()
	line, _, _ := strings.Cut(string(out), " (")
	return strings.TrimSpace(line)
}

// iperfResult is what is read of the client's report (iperf3 --json).
type iperfResult struct {
	Error string `json:"error"`
	End   struct {
		Sent     iperfSum `json:"sum_sent"`
		Received iperfSum `json:"sum_received"`
		UDP      iperfSum `json:"sum"` // what the server has told
	} `json:"end"`
}

type iperfSum struct {
	Seconds float64 `json:"seconds"`
	Bytes   int64   `json:"bytes"`
	Bits    float64 `json:"bits_per_second"`
	Packets int64   `json:"packets"`
	Lost    int64   `json:"lost_packets"`
}

// run runs a client of s.A against a server of s.B.
func (i *Iperf) run(ctx context.Context, s *system.System, length time.Duration, args ...string) (r iperfResult, err error) {
	seconds := max(1, int(math.Round(length.Seconds()))) // it takes no other times
	args = append([]string{"--client", s.B.Addr.String(), "--json", "--time", strconv.Itoa(seconds)}, args...)
	for limit := time.Now().Add(10 * time.Second); ; {
		if p := i.servers[s]; p == nil || !p.Running() {
			if i.servers[s], err = s.B.Start(exec.Command(i.program, "--server"), lab.StartOptions{Name: "iperf3"}); err != nil {
				return r, err
			}
		}
		out, err := s.A.Output(ctx, exec.CommandContext(ctx, i.program, args...))
		if i := bytes.IndexByte(out, '{'); i > 0 { // a warning comes first, such as of fragments
			out = out[i:]
		}
		r = iperfResult{}
		if jerr := json.Unmarshal(out, &r); err == nil || jerr == nil {
			err = errors.Join(err, jerr)
		}
		if r.Error != "" {
			err = errors.New("iperf3: " + r.Error)
		}
		// The server may not listen yet, or not again.
		if err == nil || ctx.Err() != nil || time.Now().After(limit) {
			return r, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// TCP is like the function TCP.
func (i *Iperf) TCP(ctx context.Context, s *system.System, streams int, length time.Duration) (Transferred, error) {
	r, err := i.run(ctx, s, length, "--parallel", strconv.Itoa(streams))
	return Transferred{Gbps: r.End.Received.Bits / 1e9, Bytes: r.End.Sent.Bytes}, err
}

// UDP is like the function UDP.
func (i *Iperf) UDP(ctx context.Context, s *system.System, size int, length time.Duration) (perSecond float64, err error) {
	r, err := i.run(ctx, s, length, "--udp", "--bandwidth", "0", "--length", strconv.Itoa(size))
	if err == nil && r.End.UDP.Seconds == 0 {
		err = fmt.Errorf("iperf3: no time in its report")
	}
	if err != nil {
		return 0, err
	}
	return float64(r.End.UDP.Packets-r.End.UDP.Lost) / r.End.UDP.Seconds, nil
}
