package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd"
)

// netConfFile writes a net-conf.json.
func netConfFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "net-conf.json")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// fromNetConf is what comes of the settings that a net-conf.json may make.
type fromNetConf struct {
	Networks, Ranges   string
	Lens               []int
	Encap, FastPath    string
	VNI                uint32
	UDPPort, VXLANPort uint16
}

func pick(cfg overlayd.Config) fromNetConf {
	join := func(n int, item func(int) string) string {
		var out []string
		for i := range n {
			out = append(out, item(i))
		}
		return strings.Join(out, " ")
	}
	return fromNetConf{
		Networks: join(len(cfg.Networks), func(i int) string { return cfg.Networks[i].String() }),
		Ranges: join(len(cfg.SubnetRanges), func(i int) string {
			return cfg.SubnetRanges[i].First.String() + "-" + cfg.SubnetRanges[i].Last.String()
		}),
		Lens: cfg.SubnetLens, Encap: cfg.Encap, FastPath: cfg.FastPath, VNI: cfg.VNI, UDPPort: cfg.UDPPort, VXLANPort: cfg.VXLANPort,
	}
}

// Files as flannel's own documentation and manifests have them.
func TestNetConf(t *testing.T) {
	plain := fromNetConf{Networks: "10.0.0.0/8", Lens: []int{24}, Encap: "udp", FastPath: "auto", VNI: 1, UDPPort: 8285, VXLANPort: 8472}
	with := func(change func(*fromNetConf)) fromNetConf {
		want := plain
		change(&want)
		return want
	}
	for _, tt := range []struct {
		name, file, flags string
		want              fromNetConf
	}{
		{"the least", `{"Network": "10.0.0.0/8"}`, "", plain},
		{"documentation", `{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0","Backend":{"Type":"udp","Port":7890}}`, "",
			with(func(w *fromNetConf) { w.Lens, w.Ranges, w.UDPPort = []int{20}, "10.10.0.0-10.99.0.0", 7890 })},
		{"kube-flannel", `{"Network":"10.244.0.0/16","EnableNFTables":false,"Backend":{"Type":"vxlan"}}`, "",
			with(func(w *fromNetConf) { w.Networks, w.Encap, w.FastPath = "10.244.0.0/16", "vxlan", "kernel-vxlan" })},
		{"both families", `{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"2001:cafe:42::/56","Backend":{"Type":"vxlan","VNI":7,"Port":4790,"DirectRouting":true,"GBP":false}}`, "",
			with(func(w *fromNetConf) {
				w.Networks, w.Lens = "10.42.0.0/16 2001:cafe:42::/56", []int{24, 64}
				w.Encap, w.VNI, w.VXLANPort = "vxlan", 7, 4790
			})},
		{"IPv6 alone", `{"EnableIPv4":false,"Network":"10.0.0.0/8","IPv6Network":"fd96::/48","IPv6SubnetLen":60,"IPv6SubnetMin":"fd96:0:0:10::","Backend":{"Type":"host-gw"}}`, "",
			with(func(w *fromNetConf) {
				w.Networks, w.Lens, w.Ranges, w.FastPath = "fd96::/48", []int{60}, "fd96:0:0:10::-fd96:0:0:fff0::", "direct"
			})},
		{"IPv6 switched off", `{"Network":"10.0.0.0/8","EnableIPv6":false,"IPv6Network":"fd96::/48"}`, "", plain},
		{"a small network, host bits, any case", `{"network":"10.1.2.3/24","subnetmax":"10.1.2.64"}`, "",
			with(func(w *fromNetConf) { w.Networks, w.Lens, w.Ranges = "10.1.2.0/24", []int{26}, "10.1.2.0-10.1.2.64" })},
		{"a backend in any case", `{"Network":"10.0.0.0/8","backend":{"type":"VXLAN","vni":7}}`, "",
			with(func(w *fromNetConf) { w.Encap, w.VNI, w.FastPath = "vxlan", 7, "kernel-vxlan" })},
		{"flags win", `{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","VNI":7}}`, "--vni=9 --fast-path=off --network=10.64.0.0/10",
			with(func(w *fromNetConf) {
				w.Networks, w.Encap, w.FastPath, w.VNI = "10.64.0.0/10", "vxlan", "off", 9
			})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := configOf(t, "", nil, append(strings.Fields(tt.flags), "--net-conf", netConfFile(t, tt.file))...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, pick(cfg)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			cfg.Advertise, cfg.StateDir = []netip.Addr{netip.MustParseAddr("192.0.2.1")}, "/nonexistent"
			if _, err := overlayd.New(cfg); err != nil { // New does nothing but check
				t.Error(err)
			}
		})
	}
	// The file's name may come from the config file and from a variable, too.
	path := netConfFile(t, `{"Network":"10.0.0.0/8","Backend":{"Type":"udp","Port":7}}`)
	for _, source := range []struct{ file, env string }{{"net_conf: " + path, ""}, {"", "OVERLAYD_NET_CONF=" + path}, {"net_conf: /nowhere", "OVERLAYD_NET_CONF=" + path}} {
		cfg, err := configOf(t, source.file, []string{source.env})
		if err != nil || cfg.UDPPort != 7 {
			t.Errorf("%+v: port %d, %v", source, cfg.UDPPort, err)
		}
	}
	if cfg, err := configOf(t, "udp_port: 8\nnet_conf: "+path, nil); err != nil || cfg.UDPPort != 8 {
		t.Errorf("the config file does not win: port %d, %v", cfg.UDPPort, err)
	}
}

// What cannot be honoured is refused in one line that names the file and the key.
func TestNetConfErrors(t *testing.T) {
	for _, tt := range []struct{ file, want string }{
		{`Network: 10.0.0.0/8`, "not a JSON object"},
		{`{}`, "Network is missing"},
		{`{"SubnetLen":24}`, "Network is missing, but there are other keys of its family"},
		{`{"Network":"10.0.0.0/8","EnableIPv6":true}`, "IPv6Network is missing"},
		{`{"Network":"10.0.0.0"}`, `Network: "10.0.0.0" has no length`},
		{`{"Network":"fd96::/48"}`, "Network: fd96::/48 is of the other address family"},
		{`{"Network":"10.0.0.0/8","SubnetLen":"24"}`, "SubnetLen: a string is not what it takes"},
		{`{"Network":"10.0.0.0/24","SubnetLen":24}`, "SubnetLen: 24: there are no subnets of this length in 10.0.0.0/24"},
		{`{"Network":"10.0.0.0/8","SubnetMin":"10.1"}`, `SubnetMin: "10.1" is not an IP address`},
		{`{"Network":"10.0.0.0/8","SubnetMin":"10.10.0.7"}`, "no /24 begins with 10.10.0.7: did you mean 10.10.0.0?"},
		{`{"Network":"10.0.0.0/8","SubnetMax":"11.0.0.0"}`, "does not lie inside one of the overlay networks"},
		{`{"Network":"10.0.0.0/8","SubnetLenn":24}`, `overlayd has nothing for the key "SubnetLenn": did you mean "SubnetLen"?`},
		{`{"Network":"10.0.0.0/8","Backend":"vxlan"}`, "Backend: a string is not what it takes"},
		{`{"Network":"10.0.0.0/8","Backend":{}}`, "Backend: Type is missing"},
		{`{"Network":"10.0.0.0/8","Backend":{"Type":""}}`, "Backend: Type is missing"},
		{`{"Network":"10.0.0.0/8","Backend":{"Type":7}}`, "Backend: Type: a number is not what it takes"},
		{`{"Network":"10.0.0.0/8","Backend":{"Type":"wireguard"}}`, `Backend: Type: "wireguard" is none of udp, vxlan and host-gw`},
		{`{"Network":"10.0.0.0/8","Backend":{"Type":"host-gw","Port":7}}`, `Backend: overlayd has nothing for the key "Port"`},
		{`{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","GBP":true}}`, "Backend: GBP and Learning are not there"},
		{`{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","MTU":1400}}`, `Backend: overlayd has nothing for the key "MTU"`},
		{`{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan","VNI":-1}}`, `Backend: VNI: "-1" is not a number from 1 to 16777215`},
	} {
		path := netConfFile(t, tt.file)
		cfg, err := configOf(t, "", nil, "--net-conf", path)
		if err == nil {
			cfg.Advertise, cfg.StateDir = []netip.Addr{netip.MustParseAddr("192.0.2.1")}, "/nonexistent"
			_, err = overlayd.New(cfg)
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q", tt.file, err, tt.want)
		}
	}
	if _, err := configOf(t, "", nil, "--net-conf", "/nowhere/net-conf.json"); err == nil || !strings.Contains(err.Error(), "net-conf: open /nowhere/net-conf.json") {
		t.Errorf("without a file: %v", err)
	}
}
