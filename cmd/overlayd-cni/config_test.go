package main

import (
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd"
)

var update = flag.Bool("update", false, "write the golden files anew")

func env(subnets ...string) overlayd.SubnetEnv {
	e := overlayd.SubnetEnv{MTU: 1450}
	for _, s := range subnets {
		p := netip.MustParsePrefix(s)
		e.Subnets = append(e.Subnets, p)
		if p.Addr().Is4() {
			e.Networks = append(e.Networks, netip.MustParsePrefix("100.96.0.0/16"))
		} else {
			e.Networks = append(e.Networks, netip.MustParsePrefix("fd96::/48"))
		}
	}
	return e
}

// What the delegate is given, for each kind of configuration.
func TestDelegateConfig(t *testing.T) {
	both := env("100.96.1.0/24", "fd96:0:0:1::/64")
	for _, tt := range []struct {
		name string
		env  overlayd.SubnetEnv
		conf string
	}{
		{"both", both, `{"cniVersion":"1.0.0","name":"overlay","type":"overlayd-cni"}`},
		{"ipv4", env("100.96.1.0/24"), `{"cniVersion":"1.0.0","name":"overlay","type":"overlayd-cni","runDir":"/run/overlayd"}`},
		{"ipv6", env("fd96:0:0:1::/64"), `{"cniVersion":"1.0.0","name":"overlay","type":"overlayd-cni"}`},
		{"passed-on", both, `{"cniVersion":"1.1.0","name":"overlay","type":"overlayd-cni","capabilities":{"ips":true,"mac":true},
			"runtimeConfig":{"ips":["100.96.1.9/24"],"mac":"02:00:00:00:00:09"},"args":{"cni":{"ips":["100.96.1.9"]}},
			"dns":{"nameservers":["100.96.1.1"]},"cni.dev/more":1}`},
		{"own-bridge", both, `{"cniVersion":"1.0.0","name":"overlay","type":"overlayd-cni",
			"delegate":{"bridge":"br7","hairpinMode":false,"ipMasq":true,"mtu":1400,"vlan":7}}`},
		{"own-routes", both, `{"cniVersion":"1.0.0","name":"overlay","type":"overlayd-cni",
			"delegate":{"ipam":{"dataDir":"/run/leases","routes":[]}}}`},
		{"own-ranges", both, `{"cniVersion":"1.0.0","name":"overlay","type":"overlayd-cni",
			"delegate":{"ipam":{"ranges":[[{"subnet":"100.96.1.0/24","rangeStart":"100.96.1.100"}]]}}}`},
		{"other-plugins", both, `{"cniVersion":"1.0.0","name":"overlay","type":"overlayd-cni",
			"delegate":{"type":"ptp","ipam":{"type":"static","addresses":[{"address":"100.96.1.5/24"}]}}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parseConfig([]byte(tt.conf))
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(delegateConfig(c, tt.env), "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", tt.name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

func TestBadConfig(t *testing.T) {
	for _, tt := range []struct {
		keys string // beside the required ones
		want string
	}{
		{`"runDri":"/run"`, `unknown key "runDri": overlayd-cni has runDir, subnetFile, stateDir and delegate`},
		{`"ipam":{}`, `"ipam" is for the bridge plugin: write it inside "delegate"`},
		{`"runDir":7`, "runDir"},
		{`"runDir":"run"`, `runDir: "run" does not begin with a slash`},
		{`"subnetFile":"x"`, "subnetFile"},
		{`"stateDir":"x"`, "stateDir"},
		{`"delegate":[]`, "delegate"},
		{`"delegate":{"name":"x"}`, `delegate: "name" cannot be given`},
		{`"delegate":{"type":""}`, "delegate: type: a name is needed"},
		{`"delegate":{"bridge":1}`, "delegate: bridge: a name is needed"},
		{`"delegate":{"ipam":"dhcp"}`, "delegate: ipam: an object is needed"},
		{`"delegate":{"ipam":{"type":null}}`, "delegate: ipam: type: a name is needed"},
		{`"prevResult":{"ips":7}`, "prevResult"},
	} {
		_, err := parseConfig([]byte(`{"cniVersion":"1.0.0","name":"overlay","type":"overlayd-cni",` + tt.keys + `}`))
		var e *types.Error
		if !errors.As(err, &e) || e.Code != types.ErrInvalidNetworkConfig || !strings.Contains(e.Msg, tt.want) || strings.Contains(e.Msg, "\n") {
			t.Errorf("%s: %v, want one line with %q", tt.keys, err, tt.want)
		}
	}
}

// The bridge's name fits into what the kernel takes.
func TestBridgeName(t *testing.T) {
	if len(bridgeName) > 15 {
		t.Errorf("%s has %d bytes", bridgeName, len(bridgeName))
	}
}
