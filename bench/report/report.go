// Package report holds what the benchmarks have measured, and shows it: as JSON, as a
// table for a terminal and as a page. It also compares two reports.
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
)

// Schema is the "schema" of a report.
const Schema = "overlayd.bench/v1"

// The names of the paths, in the order in which they are shown.
var Names = []string{
	"underlay", "direct", "kernel-vxlan-by-hand", "kernel-vxlan",
	"userspace-udp", "userspace-udp-no-offload", "userspace-vxlan",
	"wireguard-go", "nebula", "flannel-udp", "flannel-vxlan",
}

// Base is the path that others are compared with: everything else of a machine drifts by
// a factor of two from hour to hour, and a ratio in one run does not.
const Base = "kernel-vxlan-by-hand"

// Report is what one run has measured.
type Report struct {
	Schema string `json:"schema"`
	Host   Host   `json:"host"`
	Paths  []Path `json:"paths"`
}

// Host is the machine and how it was measured.
type Host struct {
	Date     time.Time `json:"date"`
	Kernel   string    `json:"kernel"` // uname -r
	Arch     string    `json:"arch"`
	CPU      string    `json:"cpu"` // model name
	CPUs     int       `json:"cpus"`
	Go       string    `json:"go"`
	Version  string    `json:"version"` // of overlayd
	Load     string    `json:"load"`    // what made the traffic, such as "iperf3 3.12"
	Rounds   int       `json:"rounds"`
	Seconds  float64   `json:"seconds"`   // of each measurement
	TookSecs float64   `json:"took_secs"` // the whole run
	// SelfCheck is how far off the counters were on a known workload, in percent.
	SelfCheck float64 `json:"self_check_percent"`
}

// Path is what was measured of one path. If it did not run, Reason says why, and every
// figure is 0. Speeds and times are medians over the rounds.
//
// "PerPacket" is per inner TCP segment of full size that was sent. What is counted is what
// the overlay's own processes do, on both hosts together, and on the sender's and the
// receiver's apart; it is 0 where none touches a packet.
type Path struct {
	Name   string `json:"name"`
	Ran    bool   `json:"ran"`
	Reason string `json:"reason"`
	// Version is that of the program, Detail what was configured, each a short line.
	Version string `json:"version,omitempty"`
	Detail  string `json:"detail,omitempty"`
	// Encrypts tells that its packets are encrypted, as the others' are not.
	Encrypts bool `json:"encrypts"`

	MTU         int     `json:"mtu"`
	TCPGbps     float64 `json:"tcp_gbps"`
	TCP4Gbps    float64 `json:"tcp4_gbps"`
	UDP64Kpps   float64 `json:"udp64_kpps"`
	UDP1400Gbps float64 `json:"udp1400_gbps"`
	RTTP50us    float64 `json:"rtt_us_p50"`
	RTTP99us    float64 `json:"rtt_us_p99"`
	// CPUSecsPerGB is busy time of the whole machine for 1e9 bytes of TCP payload, with
	// the programs that send and receive; Daemon that of the overlay's processes alone.
	CPUSecsPerGB       float64 `json:"cpu_s_per_gb"`
	CPUSecsPerGBDaemon float64 `json:"cpu_s_per_gb_daemon"`
	MemoryMiB          float64 `json:"memory_mib"` // resident, of the larger host's processes

	// Copies are what the overlay's processes read of packets from the kernel (to user)
	// and write to it (from user), of the direction that has the data: a superpacket, or a
	// train of datagrams, that crosses in one piece is one.
	CopiesToUser       float64 `json:"copies_to_user_per_packet"`
	CopiesToUserSend   float64 `json:"copies_to_user_per_packet_send"`
	CopiesToUserRecv   float64 `json:"copies_to_user_per_packet_recv"`
	CopiesFromUser     float64 `json:"copies_from_user_per_packet"`
	CopiesFromUserSend float64 `json:"copies_from_user_per_packet_send"`
	CopiesFromUserRecv float64 `json:"copies_from_user_per_packet_recv"`
	// SKBCopies is what skb:skb_copy_datagram_iovec has told of the same processes, of both
	// directions: what they read from TUN devices, and received where it was not in one piece.
	SKBCopies float64 `json:"skb_copies_to_user_per_packet"`
	// BytesCopied is how often each byte of payload crosses, both ways together.
	BytesCopied     float64 `json:"bytes_copied_per_payload_byte"`
	BytesCopiedSend float64 `json:"bytes_copied_per_payload_byte_send"`
	BytesCopiedRecv float64 `json:"bytes_copied_per_payload_byte_recv"`
	// Syscalls and ContextSwitches are all of those processes', for what goes the other
	// way (acknowledgements) too.
	Syscalls            float64 `json:"syscalls_per_packet"`
	SyscallsSend        float64 `json:"syscalls_per_packet_send"`
	SyscallsRecv        float64 `json:"syscalls_per_packet_recv"`
	ContextSwitches     float64 `json:"context_switches_per_packet"`
	ContextSwitchesSend float64 `json:"context_switches_per_packet_send"`
	ContextSwitchesRecv float64 `json:"context_switches_per_packet_recv"`

	// Crossings are the same copies one by one, in the order of a packet's way.
	Crossings []Crossing `json:"crossings"`
	// Devices tell, of interfaces on the way, how large the packets were that passed.
	Devices []Device `json:"devices"`
	// Drops are packets that the kernel dropped while TCP was counted, by its reasons.
	Drops map[string]uint64 `json:"drops"`
	// Calls are the system calls per packet by name, of both hosts, the most frequent ones.
	Calls map[string]float64 `json:"calls"`

	// Spread is, by the names of figures above, how they varied over the rounds, and
	// Samples the rounds themselves.
	Spread  map[string]Spread    `json:"spread"`
	Samples map[string][]float64 `json:"samples"`
}

// Crossing is one place where packets cross between user and kernel.
type Crossing struct {
	Host   string `json:"host"`    // "send" or "recv"
	Place  string `json:"place"`   // "app", "tun", "udp" or "other"
	ToUser bool   `json:"to_user"` // from the kernel to user, or the other way
	// Counted is false for the traffic programs: one crossing of each byte by definition,
	// which is drawn but not measured.
	Counted   bool    `json:"counted"`
	PerPacket float64 `json:"per_packet"` // copies
	Bytes     float64 `json:"bytes"`      // of each copy, on average
	Calls     string  `json:"calls"`      // the system calls that do it, such as "recvmmsg"
}

// Device is an interface that packets passed while TCP was counted, by name: those of both
// hosts and containers with the same name are taken together.
type Device struct {
	Name     string  `json:"name"`
	Packets  uint64  `json:"packets"`
	Segments float64 `json:"segments"` // of a packet of more than 1000 bytes, on average
	Largest  uint64  `json:"largest"`  // bytes
}

// Spread is how a figure varied over the rounds.
type Spread struct {
	Min float64 `json:"min"`
	Q1  float64 `json:"q1"`
	Q3  float64 `json:"q3"`
	Max float64 `json:"max"`
}

// Read reads a report.
func Read(r io.Reader) (*Report, error) {
	var rep Report
	d := json.NewDecoder(r)
	if err := d.Decode(&rep); err != nil {
		return nil, fmt.Errorf("not a report: %w", err)
	}
	if rep.Schema != Schema {
		return nil, fmt.Errorf("schema is %q, want %q", rep.Schema, Schema)
	}
	if len(rep.Paths) == 0 {
		return nil, errors.New("a report without paths")
	}
	return &rep, nil
}

// Write writes a report as JSON. Lists and maps that are nil are written as empty ones, so
// that no reader meets a null.
func (r *Report) Write(w io.Writer) error {
	full := *r
	full.Paths = append([]Path{}, r.Paths...)
	for i := range full.Paths {
		p := &full.Paths[i]
		p.Crossings, p.Devices = append([]Crossing{}, p.Crossings...), append([]Device{}, p.Devices...)
		p.Drops, p.Calls = notNil(p.Drops), notNil(p.Calls)
		p.Spread = notNil(p.Spread)
		p.Samples = maps.Clone(notNil(p.Samples)) // the caller's keeps what it has
		for name, v := range p.Samples {
			p.Samples[name] = append([]float64{}, v...)
		}
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(&full)
}

func notNil[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return m
}

// Path returns the path of a name, nil if it is not in the report.
func (r *Report) Path(name string) *Path {
	i := slices.IndexFunc(r.Paths, func(p Path) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	return &r.Paths[i]
}

// Median is the middle of v, 0 if it is empty.
func Median(v []float64) float64 { return quantile(v, 0.5) }

// SpreadOf tells how v varies.
func SpreadOf(v []float64) Spread {
	return Spread{quantile(v, 0), quantile(v, 0.25), quantile(v, 0.75), quantile(v, 1)}
}

// quantile interpolates between the nearest two of v.
func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	at := q * float64(len(v)-1)
	i := int(at)
	if i+1 == len(v) {
		return v[i]
	}
	return v[i] + (at-float64(i))*(v[i+1]-v[i])
}
