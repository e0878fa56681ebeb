package main

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"

	"github.com/overlayd/overlayd"
)

// TestFlagsOfRun is the list of section 7 of the design: each flag and its
// default, as the help shows it.
func TestFlagsOfRun(t *testing.T) {
	want := map[string]string{
		"network": "", "interface": "", "advertise": "",
		"join":       "",
		"subnet-len": "24,64", "subnet": "", "subnet-range": "", "net-conf": "",
		"encap": "udp", "vni": "1", "vxlan-reserved": "strict", "offload": "on",
		"fast-path":    "auto",
		"static-peer":  "",
		"allow-source": "", "gossip-port": "7946", "udp-port": "8285", "vxlan-port": "8472", "kernel-vxlan-port": "4789",
		"cluster": "", "key-file": "", "name": "the host name", "keep-paths": "", "ip-masq": "", "forward-rules": "auto",
		"state-dir": "/var/lib/overlayd", "run-dir": "/run/overlayd", "subnet-file": "RUN-DIR/subnet.env",
		"http-listen": "", "http-peers": "0, nobody is asked", "pprof": "",
		"device": "overlay0", "config": "", "log-level": "info", "log-format": "text",
	}
	got := map[string]string{}
	newRunCommand(nil).Flags().VisitAll(func(f *pflag.Flag) { got[f.Name] = f.DefValue })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// configOf is what "overlayd run" with these flags, variables and config file
// gives to overlayd.New.
func configOf(t *testing.T, file string, env []string, args ...string) (overlayd.Config, error) {
	t.Helper()
	if file != "" {
		path := filepath.Join(t.TempDir(), "overlayd.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"--config", path}, args...)
	}
	list := settings()
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	addSettings(fs, list)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	v, err := resolve(fs, env, list, true)
	if err != nil {
		return overlayd.Config{}, err
	}
	return nodeConfig(v)
}

func TestDefaults(t *testing.T) {
	got, err := configOf(t, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	want := overlayd.Config{
		Encap: "udp", VNI: 1, VXLANReserved: "strict", FastPath: "auto", Offload: "on", ForwardRules: "auto",
		GossipPort: 7946, UDPPort: 8285, VXLANPort: 8472, KernelVXLANPort: 4789,
		StateDir: "/var/lib/overlayd", RunDir: "/run/overlayd", SubnetFile: "/run/overlayd/subnet.env", Device: "overlay0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestEverySource gives every setting by flags, by variables and by a file.
func TestEverySource(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte(strings.Repeat("00", 16)), 0o600); err != nil {
		t.Fatal(err)
	}
	want := overlayd.Config{
		Networks:   []netip.Prefix{netip.MustParsePrefix("100.96.0.0/16"), netip.MustParsePrefix("fd96::/48")},
		SubnetLens: []int{25, 65},
		Subnets:    []netip.Prefix{netip.MustParsePrefix("100.96.7.0/25")},
		SubnetRanges: []overlayd.SubnetRange{
			{First: netip.MustParseAddr("100.96.7.0"), Last: netip.MustParseAddr("100.96.8.128")},
			{First: netip.MustParseAddr("fd96::"), Last: netip.MustParseAddr("fd96:0:0:f::")},
		},
		Interface: "eth0",
		Advertise: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Join:      []string{"a", "b:7000", "[2001:db8::2]:7946"},
		Name:      "node-1", Encap: "vxlan", VNI: 5, VXLANReserved: "rfc", FastPath: "off", Offload: "off",
		AllowSource: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		StaticPeers: []overlayd.StaticPeer{{
			Name: "switch", Endpoint: netip.MustParseAddrPort("[2001:db8::7]:4789"), VTEPMAC: [6]byte{2, 0, 0, 0, 0, 0xff},
			Subnets: []netip.Prefix{netip.MustParsePrefix("100.96.9.0/24"), netip.MustParsePrefix("fd96:0:0:9::/64")},
		}},
		KeepPaths: true, IPMasq: true, ForwardRules: "off", GossipPort: 1, UDPPort: 2, VXLANPort: 3, KernelVXLANPort: 4,
		Cluster: "blue", Keys: [][]byte{make([]byte, 16)},
		StateDir: "/s", RunDir: "/r", SubnetFile: "/r/x.env", HTTPListen: "[::1]:9570", HTTPPeers: 9571, Pprof: true, Device: "overlay7",
	}
	flags := []string{
		"--network", "100.96.0.0/16,fd96::/48", "--subnet-len=25,65", "--subnet=100.96.7.0/25", "--subnet-range=100.96.7.0-100.96.8.128,fd96::-fd96:0:0:f::", "--interface=eth0",
		"--advertise=192.0.2.1", "--advertise=2001:db8::1", "--join=a", "--join=b:7000,[2001:db8::2]:7946", "--name=node-1",
		"--encap=vxlan", "--vni=5", "--vxlan-reserved=rfc",
		"--static-peer=name=switch,endpoint=[2001:db8::7]:4789,subnet=100.96.9.0/24,subnet=fd96:0:0:9::/64,vtep-mac=02:00:00:00:00:ff", "--fast-path=off", "--offload=off", "--allow-source=192.0.2.0/24", "--gossip-port=1",
		"--udp-port=2", "--vxlan-port=3", "--kernel-vxlan-port=4", "--cluster=blue", "--key-file=" + key, "--keep-paths", "--ip-masq", "--forward-rules=off",
		"--state-dir=/s", "--run-dir=/r", "--subnet-file=/r/x.env", "--http-listen=[::1]:9570", "--http-peers=9571", "--pprof", "--device=overlay7", "--log-level=warn", "--log-format=json",
	}
	env := []string{
		"OVERLAYD_NETWORK=100.96.0.0/16, fd96::/48", "OVERLAYD_SUBNET_LEN=25,65", "OVERLAYD_SUBNET=100.96.7.0/25", "OVERLAYD_SUBNET_RANGE=100.96.7.0-100.96.8.128,fd96::-fd96:0:0:f::", "OVERLAYD_INTERFACE=eth0",
		"OVERLAYD_ADVERTISE=192.0.2.1,2001:db8::1", "OVERLAYD_JOIN=a,b:7000,[2001:db8::2]:7946", "OVERLAYD_NAME=node-1",
		"OVERLAYD_ENCAP=vxlan", "OVERLAYD_VNI=5", "OVERLAYD_VXLAN_RESERVED=rfc",
		"OVERLAYD_STATIC_PEER=name=switch,endpoint=[2001:db8::7]:4789,subnet=100.96.9.0/24,subnet=fd96:0:0:9::/64,vtep-mac=02:00:00:00:00:ff", "OVERLAYD_FAST_PATH=off", "OVERLAYD_OFFLOAD=off",
		"OVERLAYD_ALLOW_SOURCE=192.0.2.0/24", "OVERLAYD_GOSSIP_PORT=1", "OVERLAYD_UDP_PORT=2", "OVERLAYD_VXLAN_PORT=3",
		"OVERLAYD_KERNEL_VXLAN_PORT=4", "OVERLAYD_CLUSTER=blue", "OVERLAYD_KEY_FILE=" + key, "OVERLAYD_KEEP_PATHS=yes", "OVERLAYD_IP_MASQ=1", "OVERLAYD_FORWARD_RULES=off",
		"OVERLAYD_STATE_DIR=/s", "OVERLAYD_RUN_DIR=/r", "OVERLAYD_SUBNET_FILE=/r/x.env", "OVERLAYD_HTTP_LISTEN=[::1]:9570", "OVERLAYD_HTTP_PEERS=9571", "OVERLAYD_PPROF=1", "OVERLAYD_DEVICE=overlay7",
		"OVERLAYD_LOG_LEVEL=warn", "OVERLAYD_LOG_FORMAT=json", "HOME=/root",
	}
	file := `# a comment
network: [100.96.0.0/16, "fd96::/48"]
subnet_len: [25, 65]
subnet: 100.96.7.0/25
subnet_range: [100.96.7.0-100.96.8.128, "fd96::-fd96:0:0:f::"]
interface: eth0
advertise: 192.0.2.1,2001:db8::1
join:
  - a
  - b:7000,[2001:db8::2]:7946
name: node-1
encap: vxlan
vni: 5
vxlan_reserved: rfc
static_peer:
  - name=switch,endpoint=[2001:db8::7]:4789,subnet=100.96.9.0/24,subnet=fd96:0:0:9::/64,vtep-mac=02:00:00:00:00:ff
fast_path: off   # a boolean in YAML 1.1
offload: off
allow_source: 192.0.2.0/24
gossip_port: 1
udp_port: 2
vxlan_port: 3
kernel_vxlan_port: 4
cluster: blue
key_file: ` + key + `
keep_paths: true
ip_masq: true
forward_rules: off
state_dir: /s
run_dir: /r
subnet_file: /r/x.env
http_listen: "[::1]:9570"
http_peers: 9571
pprof: true
device: overlay7
log_level: warn
log_format: json
`
	// Each source names every setting but those that cannot be given, and --net-conf,
	// which has a test of its own.
	for _, s := range settings() {
		if s.flag == "static-peer" || s.flag == "config" || s.flag == flagNetConf {
			continue
		}
		if all := strings.Join(flags, "\n"); !strings.Contains(all, "--"+s.flag) {
			t.Errorf("flags lack --%s", s.flag)
		}
		if all := "\n" + strings.Join(env, "\n"); !strings.Contains(all, "\n"+s.variable()+"=") {
			t.Errorf("env lacks %s", s.variable())
		}
		if !strings.Contains(file, "\n"+s.key()+":") {
			t.Errorf("file lacks %s", s.key())
		}
	}
	check := func(name string, got overlayd.Config, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}, netip.AddrPort{}), cmpopts.IgnoreFields(overlayd.Config{}, "OnKeys")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		} else if got.OnKeys == nil { // a function, which cannot be compared
			t.Errorf("%s: changed keys would be forgotten", name)
		}
	}
	got, err := configOf(t, "", nil, flags...)
	check("flags", got, err)
	got, err = configOf(t, "", env)
	check("variables", got, err)
	got, err = configOf(t, file, nil)
	check("file", got, err)
}

func TestPrecedence(t *testing.T) {
	for _, tt := range []struct {
		name, file, env, flag string
		port                  uint16
		join                  string
	}{
		{name: "default", port: 8285},
		{name: "file", file: "udp_port: 1\njoin: a\n", port: 1, join: "a"},
		{name: "variable over file", file: "udp_port: 1\njoin: a\n", env: "OVERLAYD_UDP_PORT=2 OVERLAYD_JOIN=b", port: 2, join: "b"},
		{name: "flag over variable", env: "OVERLAYD_UDP_PORT=2 OVERLAYD_JOIN=b", flag: "--udp-port=3 --join=c --join=d", port: 3, join: "c,d"},
		{name: "flag over all", file: "udp_port: 1\njoin: a\n", env: "OVERLAYD_UDP_PORT=2 OVERLAYD_JOIN=b", flag: "--udp-port=3 --join=c", port: 3, join: "c"},
		{name: "flag over file", file: "udp_port: 1\njoin: a\n", flag: "--udp-port=3 --join=c", port: 3, join: "c"},
		{name: "each by itself", file: "join: a\n", env: "OVERLAYD_UDP_PORT=2", port: 2, join: "a"},
		{name: "an explicit default wins", file: "udp_port: 1\n", flag: "--udp-port=8285", port: 8285},
		{name: "an empty variable is none", file: "udp_port: 1\njoin: a\n", env: "OVERLAYD_UDP_PORT= OVERLAYD_JOIN=", port: 1, join: "a"},
		{name: "an empty flag empties", file: "join: a\n", flag: "--join=", port: 8285},
		// A wrong value that loses is not looked at; it is when it wins.
		{name: "a loser is not read", env: "OVERLAYD_UDP_PORT=x", flag: "--udp-port=3", port: 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := configOf(t, tt.file, strings.Fields(tt.env), strings.Fields(tt.flag)...)
			if err != nil {
				t.Fatal(err)
			}
			if join := strings.Join(cfg.Join, ","); cfg.UDPPort != tt.port || join != tt.join {
				t.Errorf("port %d and join %q, want %d and %q", cfg.UDPPort, join, tt.port, tt.join)
			}
		})
	}
}

func TestConfigFileByVariable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte("udp_port: 99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := configOf(t, "", []string{"OVERLAYD_CONFIG=" + path})
	if err != nil || cfg.UDPPort != 99 {
		t.Fatalf("port %d: %v", cfg.UDPPort, err)
	}
}

// TestConfigFileErrors checks the one line that each mistake gets; FILE stands
// for the path.
func TestConfigFileErrors(t *testing.T) {
	const likeText = "(texts like numbers or yes and no need quotes)"
	for _, tt := range []struct{ file, want string }{
		{"netwrok: x\n", `FILE:1: unknown key "netwrok": did you mean "network"?`},
		{"# one\n\n\nudp-port: 1\n", `FILE:4: unknown key "udp-port": did you mean "udp_port"?`},
		{"udp_port: 1\nfrobnicate: 1\n", `FILE:2: unknown key "frobnicate"`},
		{"config: x\n", `FILE:1: unknown key "config"`},
		{"name: |\n  zzz: 1\n  yyy: 2\nfrob: 1\nquux: 1\n", `FILE:4: unknown key "frob"`},
		{"{\"udp_port\": 1,\n \"frobnicate\": 1}", `FILE:2: unknown key "frobnicate"`},
		{"udp_port: 1\nname: a\nudp_port: 2\n", `FILE:3: key "udp_port" is given twice`},
		{"udp_port: \"1\"\n", `FILE:1: udp_port: "1" is not a number`},
		{"name: a\nudp_port: lots\n", `FILE:2: udp_port: "lots" is not a number`},
		{"udp_port: 0\n", `FILE:1: udp_port: "0" is not a number from 1 to 65535`},
		{"udp_port: 65536\n", `FILE:1: udp_port: "65536" is not a number from 1 to 65535`},
		{"udp_port: 1.5\n", `FILE:1: udp_port: "1.5" is not a number from 1 to 65535`},
		{"udp_port: [1]\n", `FILE:1: udp_port: a list is not a number`},
		{"udp_port: {a: 1}\n", `FILE:1: udp_port: a mapping is not a number`},
		{"udp_port: true\n", `FILE:1: udp_port: true is not a number`},
		{"udp_port:\n", `FILE:1: udp_port: no value: write a number, or remove the key`},
		{"vni: 16777216\n", `FILE:1: vni: "16777216" is not a number from 1 to 16777215`},
		{"name: 12\n", `FILE:1: name: 12 is not a text ` + likeText},
		{"name: yes\n", `FILE:1: name: true is not a text ` + likeText},
		{"name: [a]\n", `FILE:1: name: a list is not a text ` + likeText},
		{"join: [a, 1]\n", `FILE:1: join: 1 is not a text or a list of texts ` + likeText},
		{"join: [[a]]\n", `FILE:1: join: a list is not a text or a list of texts ` + likeText},
		{"join: a,,b\n", `FILE:1: join: an item of "a,,b" is empty`},
		{"keep_paths: maybe\n", `FILE:1: keep_paths: "maybe" is not true or false`},
		{"offload: maybe\n", `FILE:1: offload: "maybe" is not one of on, off`},
		{"encap: off\n", `FILE:1: encap: false is not one of udp, vxlan`},
		{"fast_path: on\n", `FILE:1: fast_path: true is not one of auto, off, kernel-vxlan, direct`},
		{"log_level: loud\n", `FILE:1: log_level: "loud" is not one of debug, info, warn, error`},
		{"network: 100.96.0.0\n", `FILE:1: network: "100.96.0.0" has no length: write ADDRESS/LENGTH, such as 100.96.0.0/16`},
		{"allow_source: 192.0.2.7\n", `FILE:1: allow_source: "192.0.2.7" has no length: write ADDRESS/LENGTH, such as 192.0.2.7/32`},
		{"network: \"fd96::\"\n", `FILE:1: network: "fd96::" has no length: write ADDRESS/LENGTH, such as fd96::/64`},
		{"network: 100.96.0.0/33\n", `FILE:1: network: "100.96.0.0/33": length "33" is not a number from 0 to 32`},
		{"network: banana/8\n", `FILE:1: network: "banana/8" is not a prefix: write ADDRESS/LENGTH, such as 100.96.0.0/16 or fd96::/48`},
		{"advertise: 192.0.2.1/24\n", `FILE:1: advertise: "192.0.2.1/24" is a prefix: write the address alone, 192.0.2.1`},
		{"advertise: 192.0.2.1:80\n", `FILE:1: advertise: "192.0.2.1:80" has a port: write the address alone, 192.0.2.1`},
		{"advertise: eth0\n", `FILE:1: advertise: "eth0" is not an IP address, such as 192.0.2.1 or 2001:db8::1`},
		{"subnet_len: [24, x]\n", `FILE:1: subnet_len: "x" is not a prefix length, such as 24`},
		{"state_dir: \"\"\n", `FILE:1: state_dir: a directory is needed`},
		{"name: a\n\tb: c\n", `FILE:2: not YAML: found a tab character that violates indentation`},
		{"- a\n", `FILE: not a mapping: write one "key: value" per line`},
		{"hello\n", `FILE: not a mapping: write one "key: value" per line`},
		{"name: a\n---\nname: b\n", `FILE: more than one document: keep what stands before the second "---"`},
		{"name: a\n---\n: :\n- {\n", `FILE: more than one document: keep what stands before the second "---"`},
		{"a: *b\n", `FILE: not YAML: unknown anchor 'b' referenced`},
	} {
		t.Run(tt.file, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "overlayd.yaml")
			if err := os.WriteFile(path, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"config", "check", path}, {"run", "--config", path}} {
				got := command(t, nil, args...)
				want := "overlayd: " + strings.ReplaceAll(tt.want, "FILE", path) + "\n"
				if got.code != 2 || got.stderr != want || got.stdout != "" {
					t.Errorf("%s: exit code %d\ngot  %swant %s", args[0], got.code, got.stderr, want)
				}
			}
		})
	}
}

func TestConfigFileUnreadable(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, []byte(strings.Repeat("#", maxConfigFile+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "open " + filepath.Join(dir, "none") + ": no such file or directory",
		dir:                        dir + " is a directory",
		big:                        big + " is longer than 1048576 bytes",
	} {
		got := command(t, nil, "config", "check", path)
		if got.code != 2 || got.stderr != "overlayd: config file: "+want+"\n" {
			t.Errorf("%+v, want %s", got, want)
		}
	}
}

// TestEmptyConfigFile: a file of comments says nothing, which is no mistake of
// the file.
func TestEmptyConfigFile(t *testing.T) {
	for _, file := range []string{"", "# nothing\n", "---\n", "{}\n"} {
		if v, err := parseConfig("f", []byte(file), settings()); err != nil || len(v) != 0 {
			t.Errorf("%q: %v %v", file, v, err)
		}
	}
}

func TestConfigCheckAccepts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "overlayd.yaml")
	file := "network: [100.96.0.0/16, fd96::/48]\nadvertise: [192.0.2.1]\njoin: [a, b]\nname: a\n"
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	got := command(t, nil, "config", "check", path)
	if want := (result{0, path + ": ok\n", ""}); got != want {
		t.Errorf("got %+v", got)
	}
}

func TestValueErrors(t *testing.T) {
	for _, tt := range []struct{ flag, env, want string }{
		{flag: "--udp-port=x", want: `--udp-port: "x" is not a number from 1 to 65535`},
		{flag: "--gossip-port=-1", want: `--gossip-port: "-1" is not a number from 1 to 65535`},
		{env: "OVERLAYD_UDP_PORT=x", want: `OVERLAYD_UDP_PORT: "x" is not a number from 1 to 65535`},
		{env: "OVERLAYD_NETWORK=x", want: `OVERLAYD_NETWORK: "x" is not a prefix: write ADDRESS/LENGTH, such as 100.96.0.0/16 or fd96::/48`},
		{env: "OVERLAYD_UDP_PROT=1", want: `unknown variable OVERLAYD_UDP_PROT: did you mean "OVERLAYD_UDP_PORT"?`},
		{env: "OVERLAYD_FROBNICATE=1", want: `unknown variable OVERLAYD_FROBNICATE`},
		{flag: "--encap=gre", want: `--encap: "gre" is not one of udp, vxlan`},
		{flag: "--fast-path=none", want: `--fast-path: "none" is not one of auto, off, kernel-vxlan, direct`},
		{flag: "--vxlan-reserved=no", want: `--vxlan-reserved: "no" is not one of strict, rfc`},
		{flag: "--static-peer=a", want: `--static-peer: "a" is not KEY=VALUE: write name=N,endpoint=ADDR[:PORT],subnet=PREFIX[,vtep-mac=MAC]`},
		{flag: "--static-peer=name=a,subnet=100.96.9.0/24", want: `--static-peer: "name=a,subnet=100.96.9.0/24" has no endpoint: write name=N,endpoint=ADDR[:PORT],subnet=PREFIX[,vtep-mac=MAC]`},
		{flag: "--static-peer=name=a,name=b", want: `--static-peer: "name=a,name=b" gives name twice`},
		{flag: "--static-peer=name=a,endpoint=host", want: `--static-peer: endpoint "host" is not ADDR or ADDR:PORT, such as 192.0.2.7, 192.0.2.7:4789 or [2001:db8::7]:4789`},
		{flag: "--static-peer=name=a,endpoint=192.0.2.1:0", want: `--static-peer: endpoint "192.0.2.1:0" is not ADDR or ADDR:PORT, such as 192.0.2.7, 192.0.2.7:4789 or [2001:db8::7]:4789`},
		{flag: "--static-peer=name=a,subnet=100.96.9.0", want: `--static-peer: "100.96.9.0" has no length: write ADDRESS/LENGTH, such as 100.96.9.0/32`},
		{flag: "--static-peer=name=a,vtep-mac=1", want: `--static-peer: vtep-mac "1" is not a MAC address, such as 02:42:ac:11:00:02`},
		{flag: "--static-peer=nmae=a", want: `--static-peer: "nmae" is not one of name, endpoint, subnet, vtep-mac: write name=N,endpoint=ADDR[:PORT],subnet=PREFIX[,vtep-mac=MAC]`},
		{env: "OVERLAYD_STATIC_PEER=a", want: `OVERLAYD_STATIC_PEER: "a" is not KEY=VALUE: write name=N,endpoint=ADDR[:PORT],subnet=PREFIX[,vtep-mac=MAC]`},
		{flag: "--keep-paths=maybe", want: `--keep-paths: "maybe" is not true or false`},
		{flag: "--run-dir=", want: `--run-dir: a directory is needed`},
		{flag: "--key-file=/nonexistent/key", want: `--key-file: stat /nonexistent/key: no such file or directory`},
		{flag: "--config=/nonexistent/c", want: `config file: open /nonexistent/c: no such file or directory`},
	} {
		t.Run(tt.flag+tt.env, func(t *testing.T) {
			args := []string{"run"}
			if tt.flag != "" {
				args = append(args, tt.flag)
			}
			got := command(t, []string{tt.env}, args...)
			if want := "overlayd: " + tt.want + "\n"; got.code != 2 || got.stderr != want {
				t.Errorf("exit code %d\ngot  %swant %s", got.code, got.stderr, want)
			}
		})
	}
}

func TestKeyFile(t *testing.T) {
	k16, k24, k32 := []byte("0123456789abcdef"), []byte("0123456789abcdef01234567"), []byte("0123456789abcdef0123456789abcde\xff")
	for _, tt := range []struct {
		name, file string
		mode       os.FileMode
		keys       [][]byte
		err        string
	}{
		{name: "base64", file: base64.StdEncoding.EncodeToString(k32) + "\n", keys: [][]byte{k32}},
		{name: "base64 without padding or newline", file: base64.RawStdEncoding.EncodeToString(k16), keys: [][]byte{k16}},
		{name: "base64 for URLs", file: base64.URLEncoding.EncodeToString(k32), keys: [][]byte{k32}},
		{name: "hexadecimal", file: hex.EncodeToString(k16) + "\n" + strings.ToUpper(hex.EncodeToString(k32)), keys: [][]byte{k16, k32}},
		{name: "order, comments, empty lines", file: "# first\r\n" + base64.StdEncoding.EncodeToString(k24) + "  # sends\r\n\r\n" + hex.EncodeToString(k24) + "\n",
			keys: [][]byte{k24, k24}},
		{name: "group may read", file: hex.EncodeToString(k16), mode: 0o640, keys: [][]byte{k16}},
		{name: "others may read", file: hex.EncodeToString(k16), mode: 0o644, err: "FILE is open to everybody (mode 0644): run \"chmod 600 FILE\""},
		{name: "empty", file: "# nothing\n", err: "FILE holds no key: write 16, 24 or 32 bytes in base64 or hexadecimal on a line"},
		{name: "wrong length", file: "\n" + hex.EncodeToString(k16[:15]), err: "FILE:2: not a key: write 16, 24 or 32 bytes in base64 or hexadecimal"},
		{name: "a password", file: "hunter2", err: "FILE:1: not a key: write 16, 24 or 32 bytes in base64 or hexadecimal"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(path, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			if tt.mode != 0 {
				if err := os.Chmod(path, tt.mode); err != nil {
					t.Fatal(err)
				}
			}
			keys, err := readKeyFile(path)
			if got, want := fmt.Sprint(err), strings.ReplaceAll(tt.err, "FILE", path); tt.err != "" && got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			if tt.err == "" && err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(tt.keys, keys); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestEditDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0}, {"abc", "acb", 1}, {"abc", "abd", 1}, {"netwrok", "network", 1}, {"kitten", "sitting", 3}, {"ca", "abc", 3}} {
		if got := editDistance(tt.a, tt.b); got != tt.want {
			t.Errorf("%q to %q: %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

// FuzzConfigFile: whatever the file says, there is one line or a config.
func FuzzConfigFile(f *testing.F) {
	for _, s := range []string{"network: 100.96.0.0/16\n", "a: *b\n", "? [a]\n: b\n", "!!binary x: 1\n", "<<: {name: a}\n", "name: &x [*x]\n", "{", "\x00", "---\n---\n", "join: [a,\n b]\n"} {
		f.Add([]byte(s))
	}
	list := settings()
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := parseConfig("f", b, list)
		if err != nil {
			if line := oneLine(err); strings.ContainsAny(line, "\n\r") && !strings.ContainsAny(string(b), "\r") {
				t.Errorf("more than one line: %q", line)
			}
			return
		}
		for flag := range v {
			if len(named(flag)) != 1 {
				t.Errorf("setting %q does not exist", flag)
			}
		}
	})
}
