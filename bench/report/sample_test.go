package report

import (
	"math"
	"testing"
	"time"
)

// sample is a report as a run on a machine with two processors gives it: all paths, those
// of flannel not run.
func sample() *Report {
	r := &Report{
		Schema: Schema,
		Host: Host{
			Date: time.Date(2026, 3, 14, 9, 26, 0, 0, time.UTC), Kernel: "6.12.8", Arch: "amd64",
			CPU: "Example CPU @ 2.60GHz", CPUs: 2, Go: "go1.26.0", Version: "0.9.0", Load: "iperf3 3.12",
			Rounds: 5, Seconds: 3, TookSecs: 1234.5, SelfCheck: 0.12,
		},
		Paths: []Path{
			kernelPath("underlay", "host to host, without containers", 1500, 31.4, 30.2, 512, 5.61, 31, 74, 0.51),
			kernelPath("direct", "overlayd gives the peer a plain route", 1500, 27.9, 27.1, 455, 4.98, 36, 82, 0.58),
			kernelPath("kernel-vxlan-by-hand", "a VXLAN device on each host, by hand", 1450, 15.2, 14.1, 310, 3.42, 49, 118, 0.98),
			kernelPath("kernel-vxlan", "overlayd hands the peer to the kernel", 1450, 15.0, 14.2, 305, 3.4, 50, 121, 0.99),
			daemonPath("userspace-udp", "overlayd run --encap udp", 1450, 6.42, 5.9, 171, 1.96, 128, 390, 2.21, 0.031, 44_800, "read"),
			daemonPath("userspace-udp-no-offload", "overlayd run --encap udp, without offload", 1450, 1.31, 1.28, 168, 1.24, 131, 402, 9.8, 1, 1438, "read"),
			daemonPath("userspace-vxlan", "overlayd run --encap vxlan", 1450, 6.05, 5.61, 166, 1.91, 130, 396, 2.33, 0.032, 43_100, "read"),
			daemonPath("wireguard-go", "wg0 on each host, one key each", 1420, 3.13, 3.3, 101, 1.4, 162, 610, 5.02, 0.044, 31_200, "read"),
			daemonPath("nebula", "AES, one lighthouse", 1300, 0.914, 0.87, 88.2, 0.71, 171, 744, 15.3, 1.02, 1298, "read"),
			{Name: "flannel-udp", Reason: "no program flanneld was given"},
			{Name: "flannel-vxlan", Reason: "no program flanneld was given"},
		},
	}
	for i := range r.Paths {
		p := &r.Paths[i]
		if p.Name == "wireguard-go" || p.Name == "nebula" {
			p.Encrypts = true
		}
		if p.Ran {
			vary(p, i, r.Host.Rounds, 0.02)
		}
	}
	return r
}

// vary gives a path its samples: rounds of them about each figure, by as much as noise is,
// with the figure as their median.
func vary(p *Path, seed, rounds int, noise float64) {
	p.Samples, p.Spread = map[string][]float64{}, map[string]Spread{}
	for j, f := range figures {
		if f.kind != speed {
			continue
		}
		v := make([]float64, rounds)
		for i := range v {
			// Symmetric about 0 in i, shuffled by the seed.
			at := (i*2 + seed + j) % rounds
			v[i] = f.get(p) * (1 + noise*(2*float64(at)/float64(max(rounds-1, 1))-1))
		}
		p.Samples[f.key], p.Spread[f.key] = v, SpreadOf(v)
	}
}

func kernelPath(name, detail string, mtu int, tcp, tcp4, udp64, udp1400, p50, p99, cpu float64) Path {
	p := Path{
		Name: name, Ran: true, Detail: detail, MTU: mtu, TCPGbps: tcp, TCP4Gbps: tcp4, UDP64Kpps: udp64,
		UDP1400Gbps: udp1400, RTTP50us: p50, RTTP99us: p99, CPUSecsPerGB: cpu,
		Crossings: []Crossing{
			{Host: "send", Place: "app", PerPacket: 0.011, Bytes: 131072, Calls: "write"},
			{Host: "recv", Place: "app", ToUser: true, PerPacket: 0.012, Bytes: 131072, Calls: "read"},
		},
		Devices: []Device{{"eth0", 181_233, 44.1, 65_226}, {"veth0", 180_877, 44.2, 65_226}},
	}
	if name == "kernel-vxlan" {
		p.Version, p.MemoryMiB = "1.2.3", 14.2
	}
	return p
}

func daemonPath(name, detail string, mtu int, tcp, tcp4, udp64, udp1400, p50, p99, cpu, copies, size float64, read string) Path {
	// Counts are worked out from how many packets cross in one copy.
	p := kernelPath(name, detail, mtu, tcp, tcp4, udp64, udp1400, p50, p99, cpu)
	mss := float64(mtu - 52)
	p.Version, p.MemoryMiB, p.CPUSecsPerGBDaemon = daemon(name)+" 1.2.3", 18.6, cpu*0.55
	p.CopiesToUserSend, p.CopiesToUserRecv = copies, copies*1.12
	p.CopiesFromUserSend, p.CopiesFromUserRecv = copies*1.03, copies*1.2
	p.CopiesToUser, p.CopiesFromUser = p.CopiesToUserSend+p.CopiesToUserRecv, p.CopiesFromUserSend+p.CopiesFromUserRecv
	p.BytesCopiedSend, p.BytesCopiedRecv = copies*size*2/mss, copies*size*2.02/mss
	p.BytesCopied = p.BytesCopiedSend + p.BytesCopiedRecv
	p.SyscallsSend, p.SyscallsRecv = copies*2.4, copies*2.9
	p.Syscalls = p.SyscallsSend + p.SyscallsRecv
	p.ContextSwitchesSend, p.ContextSwitchesRecv = copies*0.4, copies*0.5
	p.ContextSwitches = p.ContextSwitchesSend + p.ContextSwitchesRecv
	udp := []string{"sendmmsg", "recvmmsg"}
	if name == "nebula" {
		udp[0] = "sendto"
	}
	p.Crossings = []Crossing{
		p.Crossings[0],
		{"send", "tun", true, true, p.CopiesToUserSend, size, read},
		{"send", "udp", false, true, p.CopiesFromUserSend, size / 1.03, udp[0]},
		{"recv", "udp", true, true, p.CopiesToUserRecv, size / 1.12, udp[1]},
		{"recv", "tun", false, true, p.CopiesFromUserRecv, size / 1.2, "write"},
		p.Crossings[1],
	}
	segments := math.Max(1, math.Round(size/mss))
	p.Devices = []Device{
		{"eth0", 240_113, segments, uint64(size) + 28}, {"tun0", 231_870, segments, uint64(size)},
		{"veth0", 180_877, 44.2, 65_226},
	}
	p.Drops = map[string]uint64{"SOCKET_RCVBUFF": 41, "NO_SOCKET": 2}
	p.Calls = map[string]float64{"read": copies * 1.1, udp[0]: copies * 1.03, udp[1]: copies * 1.15, "write": copies * 1.2,
		"futex": copies * 0.3, "epoll_pwait": copies * 0.4}
	return p
}

// changed is a sample of which one path is different.
func changed(t *testing.T, name string, change func(*Path)) *Report {
	t.Helper()
	r := sample()
	p := r.Path(name)
	if p == nil {
		t.Fatalf("no path %s", name)
	}
	change(p)
	return r
}
