package report

// kind is how a figure comes about, and so by what its change is judged.
type kind int

const (
	speed  kind = iota // measured in every round: speeds, times, processor time
	count              // counted once, by tracepoints
	memory             // read once; garbage collection moves it by some percent
)

// figure is one thing that is measured of a path.
type figure struct {
	key    string // in JSON, and of Spread and Samples
	title  string
	unit   string
	higher bool // more is better
	kind   kind
	get    func(*Path) float64
}

// The figures, in the order in which they are shown.
var (
	figTCP = figure{"tcp_gbps", "TCP, one stream", "Gb/s", true, speed,
		func(p *Path) float64 { return p.TCPGbps }}
	figTCP4 = figure{"tcp4_gbps", "TCP, four streams", "Gb/s", true, speed,
		func(p *Path) float64 { return p.TCP4Gbps }}
	figUDP64 = figure{"udp64_kpps", "UDP, 64 bytes", "kpps", true, speed,
		func(p *Path) float64 { return p.UDP64Kpps }}
	figUDP1400 = figure{"udp1400_gbps", "UDP, 1400 bytes", "Gb/s", true, speed,
		func(p *Path) float64 { return p.UDP1400Gbps }}
	figP50 = figure{"rtt_us_p50", "Round trip, median", "µs", false, speed,
		func(p *Path) float64 { return p.RTTP50us }}
	figP99 = figure{"rtt_us_p99", "Round trip, 99th percentile", "µs", false, speed,
		func(p *Path) float64 { return p.RTTP99us }}
	figCPU = figure{"cpu_s_per_gb", "Processor time per GB", "s", false, speed,
		func(p *Path) float64 { return p.CPUSecsPerGB }}
	figTo = figure{"copies_to_user_per_packet", "Copies to user per packet", "", false, count,
		func(p *Path) float64 { return p.CopiesToUser }}
	figFrom = figure{"copies_from_user_per_packet", "Copies from user per packet", "", false, count,
		func(p *Path) float64 { return p.CopiesFromUser }}
	figBytes = figure{"bytes_copied_per_payload_byte", "Bytes copied per byte of payload", "", false, count,
		func(p *Path) float64 { return p.BytesCopied }}
	figCalls = figure{"syscalls_per_packet", "System calls per packet", "", false, count,
		func(p *Path) float64 { return p.Syscalls }}
	figSwitch = figure{"context_switches_per_packet", "Context switches per packet", "", false, count,
		func(p *Path) float64 { return p.ContextSwitches }}
	figMemory = figure{"memory_mib", "Resident memory", "MiB", false, memory,
		func(p *Path) float64 { return p.MemoryMiB }}

	figures = []figure{figTCP, figTCP4, figUDP64, figUDP1400, figP50, figP99, figCPU,
		figTo, figFrom, figBytes, figCalls, figSwitch, figMemory}
)
