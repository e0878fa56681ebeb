package main

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/overlayd/overlayd"
)

// kind says how a setting is written.
type kind uint8

const (
	text     kind = iota // one text
	list                 // texts: repeated, or separated by commas
	number               // one number
	numbers              // numbers: repeated, or separated by commas
	oneOf                // one of setting.choices
	boolean              // true or false; a flag without a value is true
	repeated             // texts that may hold commas: repeated only
)

// setting is one thing that "overlayd run" can be told, by a flag, a variable
// or a key of the config file.
type setting struct {
	flag    string
	kind    kind
	arg     string // what stands for the value in the help
	def     string // default, as it would be written on the command line
	shown   string // default as the help shows it, where that is not def
	choices []string
	help    string
}

// variable is the name of the setting's environment variable.
func (s *setting) variable() string {
	return variablePrefix + strings.ToUpper(s.key())
}

// key is the setting's name in the config file.
func (s *setting) key() string { return strings.ReplaceAll(s.flag, "-", "_") }

const variablePrefix = "OVERLAYD_"

// Names of settings that the code asks for.
const (
	flagConfig     = "config"
	flagNetConf    = "net-conf"
	flagRunDir     = "run-dir"
	flagSubnetFile = "subnet-file"
	flagDevice     = "device"
)

// settings lists what "overlayd run" can be told, in the order of its help.
func settings() []*setting {
	port := func(p int) string { return strconv.Itoa(p) }
	return []*setting{
		{flag: "network", kind: list, arg: "PREFIX[,PREFIX6]", help: "overlay network, the same on every host: an IPv4 prefix, an IPv6 one or both"},
		{flag: "interface", kind: text, arg: "NAME", help: "underlay interface whose addresses are advertised"},
		{flag: "advertise", kind: list, arg: "ADDR[,ADDR6]", help: "underlay addresses of this host, instead of those of --interface"},
		{flag: "join", kind: list, arg: "HOST[:PORT],...", help: "hosts to join by; repeats add up; none: this is the first node"},
		{flag: "subnet-len", kind: numbers, arg: "LEN[,LEN]", shown: "24,64", help: "length of a host's subnet, in the order of --network"},
		{flag: "subnet", kind: list, arg: "PREFIX[,PREFIX6]", help: "static subnet of this host, which beats leased ones"},
		{flag: "subnet-range", kind: list, arg: "FIRST-LAST[,...]", help: "lease only subnets from the one that begins with FIRST to the one that begins with LAST; one range for each network"},
		{flag: "encap", kind: oneOf, def: "udp", choices: []string{"udp", "vxlan"}, help: "framing of packets on the underlay; peers with the other one are reached with theirs"},
		{flag: "vni", kind: number, arg: "N", def: port(overlayd.DefaultVNI), help: "VXLAN network identifier, 1 to 16777215"},
		{flag: "vxlan-reserved", kind: oneOf, def: "strict", choices: []string{"strict", "rfc"}, help: "strict drops VXLAN frames with reserved bits set, as Linux does; rfc ignores the bits"},
		{flag: "offload", kind: oneOf, def: "on", choices: []string{"on", "off"}, help: "use the kernel's segmentation offloads"},
		{flag: "fast-path", kind: oneOf, def: "auto", choices: []string{"auto", "off", "kernel-vxlan", "direct"}, help: "which kernel paths may be taken: all that are proven, none, or one kind"},
		{flag: "static-peer", kind: repeated, arg: "PEER", help: "peer that speaks no gossip, as name=N,endpoint=ADDR[:PORT],subnet=PREFIX[,vtep-mac=MAC]; repeatable; without vtep-mac it is asked for by ARP or ND"},
		{flag: "allow-source", kind: list, arg: "PREFIX", help: "source addresses outside the overlay that peers may send from; repeats add up"},
		{flag: "ip-masq", kind: boolean, help: "hide containers behind this host's address when they reach beyond the overlay"},
		{flag: "forward-rules", kind: oneOf, def: "auto", choices: []string{"auto", "off"}, help: "auto adds rules that accept the overlay to an iptables FORWARD chain that would drop it; off only warns"},
		{flag: "gossip-port", kind: number, arg: "PORT", def: port(overlayd.DefaultGossipPort), help: "gossip, UDP and TCP"},
		{flag: "udp-port", kind: number, arg: "PORT", def: port(overlayd.DefaultUDPPort), help: "udp encap"},
		{flag: "vxlan-port", kind: number, arg: "PORT", def: port(overlayd.DefaultVXLANPort), help: "vxlan encap in userspace"},
		{flag: "kernel-vxlan-port", kind: number, arg: "PORT", def: port(overlayd.DefaultKernelVXLANPort), help: "VXLAN device of the kernel"},
		{flag: "cluster", kind: text, arg: "NAME", help: "label that keeps other clusters out, the same on every host"},
		{flag: "key-file", kind: text, arg: "FILE", help: "keys of the cluster, see above"},
		{flag: "name", kind: text, arg: "NAME", shown: "the host name", help: "name of this node, unique in the cluster"},
		{flag: "keep-paths", kind: boolean, help: "leave kernel paths and subnet.env in place when stopping, for the next start"},
		{flag: "state-dir", kind: text, arg: "DIR", def: overlayd.DefaultStateDir, help: "where identity, lease and known peers are kept"},
		{flag: flagRunDir, kind: text, arg: "DIR", def: overlayd.DefaultRunDir, help: "where the control socket and subnet.env are"},
		{flag: flagSubnetFile, kind: text, arg: "FILE", shown: "RUN-DIR/subnet.env", help: "where the subnet is written for container runtimes"},
		{flag: "http-listen", kind: text, arg: "[ADDR:]PORT", help: "answer HTTP there: a page, /metrics, /status, /healthz, /readyz; without ADDR on loopback; anybody who reaches it may read"},
		{flag: "http-peers", kind: number, arg: "PORT", def: "0", shown: "0, nobody is asked", help: "let the page show what the peers see: their /status is asked for at this port of their hosts, while somebody looks"},
		{flag: "pprof", kind: boolean, help: "profiles of the daemon at /debug/pprof/ of --http-listen"},
		{flag: flagDevice, kind: text, arg: "NAME", def: overlayd.DefaultDevice, help: "name of the TUN device"},
		{flag: flagConfig, kind: text, arg: "FILE", help: "config file in YAML; its keys are these flags with underscores"},
		{flag: flagNetConf, kind: text, arg: "FILE", help: "flannel's net-conf.json, whose values everything else wins over"},
		{flag: "log-level", kind: oneOf, def: "info", choices: []string{"debug", "info", "warn", "error"}, help: "least level that is logged"},
		{flag: "log-format", kind: oneOf, def: "text", choices: []string{"text", "json"}, help: "form of the log"},
	}
}

// named picks the settings of the given flags, for commands that need a few.
func named(flags ...string) []*setting {
	var out []*setting
	for _, s := range settings() {
		if slices.Contains(flags, s.flag) {
			out = append(out, s)
		}
	}
	return out
}

// flagValue collects what the command line says of one setting, unparsed: the
// same text is parsed by the same code wherever it comes from.
type flagValue struct {
	s     *setting
	items []string
}

func (v *flagValue) Set(text string) error {
	if v.s.isList() {
		v.items = append(v.items, v.s.split(text)...)
	} else {
		v.items = []string{text}
	}
	return nil
}

// String is the default, which pflag shows.
func (v *flagValue) String() string {
	if v.s == nil {
		return ""
	}
	if v.s.shown != "" {
		return v.s.shown
	}
	return v.s.def
}

// Type names the value where the help has no other name for it.
func (v *flagValue) Type() string {
	switch v.s.kind {
	case boolean:
		return "bool"
	case oneOf:
		return strings.Join(v.s.choices, "|")
	}
	return v.s.arg
}

// isList tells whether the setting may have several items.
func (s *setting) isList() bool { return s.kind == list || s.kind == numbers || s.kind == repeated }

// split cuts the text of a setting into its items.
func (s *setting) split(text string) []string {
	switch s.kind {
	case list, numbers:
		items := strings.Split(text, ",")
		for i := range items {
			items[i] = strings.TrimSpace(items[i])
		}
		return items
	}
	return []string{text}
}

// addSettings makes flags of settings.
func addSettings(fs *pflag.FlagSet, list []*setting) {
	fs.SortFlags = false
	for _, s := range list {
		f := fs.VarPF(&flagValue{s: s}, s.flag, "", s.help)
		if s.kind == boolean {
			f.NoOptDefVal = "true"
		}
	}
}

// subnetFile is where subnet.env is by the settings.
func subnetFile(v values) string {
	if f := v.text(flagSubnetFile); f != "" {
		return f
	}
	return filepath.Join(v.text(flagRunDir), "subnet.env")
}
