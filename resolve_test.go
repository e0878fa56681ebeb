package overlayd

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/forward"
)

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// soundConfig can work somewhere, which New does not look at.
func soundConfig() Config {
	return Config{
		Networks: prefixes("100.96.0.0/16", "fd96::/48"), Advertise: addrs("192.0.2.1", "2001:db8::1"),
		Name: "a", StateDir: "/nonexistent/state", RunDir: "/nonexistent/run",
	}
}

// TestBadConfig: each line says what is wrong and what would be right.
func TestBadConfig(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   []string
	}{
		// Networks.
		{"no network", func(c *Config) { c.Networks = nil }, []string{"no overlay network", "100.96.0.0/16"}},
		{"zero prefix", func(c *Config) { c.Networks = []netip.Prefix{{}} }, []string{"not a valid prefix"}},
		{"host bits", func(c *Config) { c.Networks = prefixes("100.96.1.0/16") }, []string{"100.96.1.0/16 has host bits", "100.96.0.0/16?"}},
		{"host bits, IPv6", func(c *Config) { c.Networks = prefixes("fd96::1/48") }, []string{"fd96::1/48 has host bits", "fd96::/48?"}},
		{"two of IPv4", func(c *Config) { c.Networks = prefixes("100.96.0.0/16", "100.97.0.0/16") }, []string{"two networks of one family"}},
		{"two of IPv6", func(c *Config) { c.Networks = prefixes("fd96::/48", "fd97::/48") }, []string{"two networks of one family"}},
		{"three", func(c *Config) { c.Networks = prefixes("100.96.0.0/16", "fd96::/48", "fd97::/48") }, []string{"at most one IPv4 and one IPv6"}},
		{"everything", func(c *Config) { c.Networks = prefixes("0.0.0.0/0") }, []string{"0.0.0.0/0", "100.96.0.0/16 or fd96::/48"}},
		{"everything, IPv6", func(c *Config) { c.Networks = prefixes("::/0") }, []string{"::/0", "100.96.0.0/16 or fd96::/48"}},
		{"loopback", func(c *Config) { c.Networks = prefixes("127.1.0.0/16") }, []string{"127.1.0.0/16", "100.96.0.0/16"}},
		{"multicast", func(c *Config) { c.Networks = prefixes("224.0.0.0/8") }, []string{"224.0.0.0/8", "100.96.0.0/16"}},
		{"multicast, IPv6", func(c *Config) { c.Networks = prefixes("ff00::/8") }, []string{"ff00::/8", "fd96::/48"}},
		{"link-local", func(c *Config) { c.Networks = prefixes("169.254.0.0/16") }, []string{"169.254.0.0/16", "100.96.0.0/16"}},
		{"link-local, IPv6", func(c *Config) { c.Networks = prefixes("fe80::/48") }, []string{"fe80::/48", "fd96::/48"}},
		{"covers loopback", func(c *Config) { c.Networks = prefixes("64.0.0.0/2") }, []string{"64.0.0.0/2 overlaps 127.0.0.0/8", "100.96.0.0/16"}},
		{"covers link-local", func(c *Config) { c.Networks = prefixes("fe00::/7") }, []string{"fe00::/7 overlaps", "fd96::/48"}},
		{"this network", func(c *Config) { c.Networks = prefixes("0.1.0.0/16") }, []string{"0.1.0.0/16", "100.96.0.0/16"}},
		{"IPv4-mapped", func(c *Config) { c.Networks = prefixes("::ffff:100.96.0.0/112") }, []string{"100.96.0.0/112", "100.96.0.0/16"}},

		// Subnets and their lengths.
		{"network too small", func(c *Config) { c.Networks = prefixes("100.96.0.0/25") }, []string{"100.96.0.0/25 is too small for subnets of length 24", "/24 or shorter", "--subnet-len"}},
		{"network too small, IPv6", func(c *Config) { c.Networks, c.SubnetLens = prefixes("fd96::/48"), []int{40} }, []string{"fd96::/48 is too small for subnets of length 40"}},
		{"subnets without room", func(c *Config) { c.SubnetLens = []int{31} }, []string{"subnet length 31", "100.96.0.0/16", "between 16 and 30"}},
		{"subnets without room, IPv6", func(c *Config) { c.SubnetLens = []int{24, 127} }, []string{"subnet length 127", "fd96::/48", "between 48 and 126"}},
		{"negative length", func(c *Config) { c.SubnetLens = []int{-1} }, []string{"subnet length -1", "between 16 and 30"}},
		{"zero length", func(c *Config) { c.SubnetLens = []int{0, 64} }, []string{"subnet length 0", "between 16 and 30"}},
		{"three lengths", func(c *Config) { c.SubnetLens = []int{24, 64, 64} }, []string{"3 subnet lengths", "at most one for IPv4 and one for IPv6"}},
		{"static subnet outside", func(c *Config) { c.Subnets = prefixes("100.97.1.0/24") }, []string{"100.97.1.0/24", "does not lie inside", "100.96.0.0/16"}},
		{"static subnet larger than the network", func(c *Config) { c.Subnets = prefixes("100.96.0.0/15") }, []string{"100.96.0.0/15", "does not lie inside"}},
		{"static subnet outside, IPv6", func(c *Config) { c.Subnets = prefixes("fd97::/64") }, []string{"fd97::/64", "does not lie inside"}},
		{"static subnet of a family without network", func(c *Config) { c.Networks, c.Subnets = prefixes("100.96.0.0/16"), prefixes("fd96::/64") }, []string{"fd96::/64", "does not lie inside"}},
		{"static subnet with host bits", func(c *Config) { c.Subnets = prefixes("100.96.1.1/24") }, []string{"100.96.1.1/24 has host bits", "100.96.1.0/24?"}},
		{"static subnet without room", func(c *Config) { c.Subnets = prefixes("100.96.1.0/31") }, []string{"100.96.1.0/31", "no room"}},
		{"two static subnets of a family", func(c *Config) { c.Subnets = prefixes("100.96.1.0/24", "100.96.2.0/24") }, []string{"100.96.2.0/24 is the second", "one per network"}},
		{"static subnet that is none", func(c *Config) { c.Subnets = []netip.Prefix{{}} }, []string{"not a valid prefix"}},
		{"lease time", func(c *Config) { c.LeaseTime = 1500 * time.Millisecond }, []string{"1.5s", "whole seconds"}},
		{"negative lease time", func(c *Config) { c.LeaseTime = -time.Hour }, []string{"-1h0m0s", "whole seconds"}},

		// Sources.
		{"allowed source in the overlay", func(c *Config) { c.AllowSource = prefixes("100.96.7.0/24") }, []string{"100.96.7.0/24 lies inside", "100.96.0.0/16", "only be outside"}},
		{"allowed source with host bits", func(c *Config) { c.AllowSource = prefixes("198.51.100.1/24") }, []string{"host bits", "198.51.100.0/24?"}},
		{"allowed source that is none", func(c *Config) { c.AllowSource = []netip.Prefix{{}} }, []string{"not a valid prefix", "192.0.2.0/24"}},
		{"allowed source, IPv4-mapped", func(c *Config) { c.AllowSource = prefixes("::ffff:198.51.100.0/120") }, []string{"IPv4-mapped", "as an IPv4 prefix"}},

		// Underlay.
		{"no underlay", func(c *Config) { c.Advertise = nil }, []string{"--interface eth0", "--advertise ADDR"}},
		{"interface and address", func(c *Config) { c.Interface = "eth0" }, []string{"both", "eth0", "use one of them"}},
		{"two addresses of IPv4", func(c *Config) { c.Advertise = addrs("192.0.2.1", "192.0.2.2") }, []string{"at most one IPv4 and one IPv6"}},
		{"two addresses of IPv6", func(c *Config) { c.Advertise = addrs("2001:db8::1", "2001:db8::2") }, []string{"at most one IPv4 and one IPv6"}},
		{"three addresses", func(c *Config) { c.Advertise = addrs("192.0.2.1", "2001:db8::1", "192.0.2.2") }, []string{"at most one IPv4 and one IPv6"}},
		{"address that is none", func(c *Config) { c.Advertise = []netip.Addr{{}} }, []string{"cannot be advertised", "unicast address"}},
		{"unspecified address", func(c *Config) { c.Advertise = addrs("0.0.0.0") }, []string{"0.0.0.0 cannot be advertised", "unicast"}},
		{"multicast address", func(c *Config) { c.Advertise = addrs("ff02::1") }, []string{"ff02::1 cannot be advertised", "unicast"}},
		{"link-local address", func(c *Config) { c.Advertise = addrs("fe80::1") }, []string{"fe80::1 cannot be advertised"}},
		{"address with zone", func(c *Config) { c.Advertise = addrs("fe80::1%eth0") }, []string{"fe80::1%eth0 cannot be advertised"}},
		{"IPv4-mapped address", func(c *Config) { c.Advertise = addrs("::ffff:192.0.2.1") }, []string{"cannot be advertised"}},
		{"address in the overlay", func(c *Config) { c.Advertise = addrs("100.96.1.1") }, []string{"100.96.1.1 cannot be advertised", "100.96.0.0/16", "--network"}},
		{"address in the overlay, IPv6", func(c *Config) { c.Advertise = addrs("192.0.2.1", "fd96::1") }, []string{"fd96::1 cannot be advertised", "fd96::/48", "--network"}},

		// Ports.
		{"gossip on the udp port", func(c *Config) { c.GossipPort = 8285 }, []string{"gossip port", "udp port", "8285", "its own"}},
		{"udp on the gossip port", func(c *Config) { c.UDPPort = 7946 }, []string{"gossip port", "udp port", "7946"}},
		{"equal vxlan ports", func(c *Config) { c.KernelVXLANPort = 8472 }, []string{"vxlan port", "kernel-vxlan port", "8472"}},
		{"udp on the kernel's vxlan port", func(c *Config) { c.UDPPort = 4789 }, []string{"udp port", "kernel-vxlan port", "4789"}},

		// Words and numbers.
		{"encap", func(c *Config) { c.Encap = "gre" }, []string{`"gre"`, "udp"}},
		{"encap in capitals", func(c *Config) { c.Encap = "UDP" }, []string{`"UDP"`, "udp"}},
		{"reserved bits", func(c *Config) { c.VXLANReserved = "lax" }, []string{`"lax"`, "strict and rfc"}},
		{"fast path", func(c *Config) { c.FastPath = "fast" }, []string{`"fast"`, "auto, off, kernel-vxlan, direct"}},
		{"offload", func(c *Config) { c.Offload = "yes" }, []string{`"yes"`, "on nor off"}},
		{"forward rules", func(c *Config) { c.ForwardRules = "on" }, []string{`"on"`, "auto and off"}},
		{"masquerading without the kernel", func(c *Config) { c.IPMasq, c.Tunnel = true, newDevice() }, []string{"masquerading", "leaves the kernel alone", "use one of them"}},
		{"VNI", func(c *Config) { c.VNI = 1 << 24 }, []string{"VNI 16777216", "between 1 and 16777215"}},
		{"MTU too small", func(c *Config) { c.MTU = 575 }, []string{"MTU 575", "between 576 and 65485"}},
		{"MTU negative", func(c *Config) { c.MTU = -1 }, []string{"MTU -1", "between 576 and 65485"}},
		{"MTU too large", func(c *Config) { c.MTU = 65486 }, []string{"MTU 65486", "between 576 and 65485"}},
		{"MTU too small for IPv6", func(c *Config) { c.MTU = 1279 }, []string{"MTU 1279 is too small for the overlay network fd96::/48", "1280"}},
		{"key length", func(c *Config) { c.Keys = [][]byte{make([]byte, 16), make([]byte, 17)} }, []string{"key 2 of 2", "17 bytes", "16, 24 or 32"}},
		{"empty key", func(c *Config) { c.Keys = [][]byte{nil} }, []string{"key 1 of 1", "0 bytes"}},
		{"cluster name", func(c *Config) { c.Cluster = strings.Repeat("x", 256) }, []string{"cluster name", "256 bytes", "at most 255"}},

		// Names.
		{"name with a space", func(c *Config) { c.Name = "a b" }, []string{"node name", `"a b"`, "letters, digits"}},
		{"name with control characters", func(c *Config) { c.Name = "a\nb" }, []string{"node name", `a\nb`}},
		{"name with umlauts", func(c *Config) { c.Name = "höst" }, []string{"node name", "letters, digits"}},
		{"name with broken UTF-8", func(c *Config) { c.Name = "\xff" }, []string{"node name"}},
		{"long name", func(c *Config) { c.Name = strings.Repeat("x", 200) }, []string{"node name", "200 bytes", "at most"}},
		{"long device name", func(c *Config) { c.Device = "sixteen-letters-" }, []string{`"sixteen-letters-"`, "at most 15", "overlay0"}},
		{"device name with slash", func(c *Config) { c.Device = "a/b" }, []string{`"a/b"`, "overlay0"}},
		{"device name with space", func(c *Config) { c.Device = "a b" }, []string{`"a b"`}},
		{"device name with line break", func(c *Config) { c.Device = "a\nb" }, []string{`a\nb`}},
		{"device name with percent", func(c *Config) { c.Device = "tun%d" }, []string{`"tun%d"`, "'%'"}},
		{"device name with colon", func(c *Config) { c.Device = "eth0:1" }, []string{`"eth0:1"`}},
		{"device named dot", func(c *Config) { c.Device = ".." }, []string{`".."`}},
		{"device named all", func(c *Config) { c.Device = "all" }, []string{`"all"`}},
		{"device name not ASCII", func(c *Config) { c.Device = "överlay" }, []string{`"överlay"`}},

		// Seeds.
		{"empty seed", func(c *Config) { c.Join = []string{""} }, []string{`seed ""`, "HOST:PORT"}},
		{"seed without host", func(c *Config) { c.Join = []string{":7946"} }, []string{`seed ":7946"`, "HOST:PORT"}},
		{"seed with port 0", func(c *Config) { c.Join = []string{"b:0"} }, []string{`seed "b:0"`, "between 1 and 65535"}},
		{"seed with a large port", func(c *Config) { c.Join = []string{"b:65536"} }, []string{`"b:65536"`, "between 1 and 65535"}},
		{"seed with a named port", func(c *Config) { c.Join = []string{"b:gossip"} }, []string{`"b:gossip"`, "between 1 and 65535"}},
		{"seed with an empty port", func(c *Config) { c.Join = []string{"b:"} }, []string{`"b:"`, "between 1 and 65535"}},
		{"seed with two ports", func(c *Config) { c.Join = []string{"b:1:2"} }, []string{`"b:1:2"`, "[ADDR6]:PORT"}},
		{"seed with open bracket", func(c *Config) { c.Join = []string{"[2001:db8::2"} }, []string{`"[2001:db8::2"`, "[ADDR6]:PORT"}},
		{"seed in brackets without port", func(c *Config) { c.Join = []string{"[2001:db8::2]"} }, []string{`"[2001:db8::2]"`, "[ADDR6]:PORT"}},
		{"seed that is a URL", func(c *Config) { c.Join = []string{"http://b"} }, []string{`"http://b"`}},
		{"seeds in one text", func(c *Config) { c.Join = []string{"b, c"} }, []string{`"b, c"`, "host name"}},
		{"seed with zone", func(c *Config) { c.Join = []string{"fe80::1%eth0"} }, []string{`"fe80::1%eth0"`, "address of another node"}},
		{"seed with zone and port", func(c *Config) { c.Join = []string{"[fe80::1%eth0]:7946"} }, []string{"fe80::1%eth0", "address of another node"}},
		{"unspecified seed", func(c *Config) { c.Join = []string{"0.0.0.0"} }, []string{`"0.0.0.0"`, "address of another node"}},
		{"unspecified seed with port", func(c *Config) { c.Join = []string{"[::]:7946"} }, []string{`"[::]:7946"`, "address of another node"}},
		{"multicast seed", func(c *Config) { c.Join = []string{"224.0.0.1:7946"} }, []string{`"224.0.0.1:7946"`, "address of another node"}},
		{"seed in the overlay", func(c *Config) { c.Join = []string{"100.96.1.1"} }, []string{`"100.96.1.1"`, "100.96.0.0/16", "address of the underlay"}},
		{"seed in the overlay, IPv6", func(c *Config) { c.Join = []string{"[fd96::1]:7946"} }, []string{`"[fd96::1]:7946"`, "fd96::/48"}},
		{"good seed, bad seed", func(c *Config) { c.Join = []string{"b", "c:x"} }, []string{`"c:x"`}},

		{"no state directory", func(c *Config) { c.StateDir = "" }, []string{"state directory", DefaultStateDir}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := soundConfig()
			tt.change(&cfg)
			n, err := New(cfg)
			if n != nil || !errors.Is(err, ErrConfig) {
				t.Fatalf("New returns %v, %v", n, err)
			}
			oneLine(t, err, tt.want...)
		})
	}
}

func TestDefaults(t *testing.T) {
	cfg := Config{Networks: prefixes("100.96.0.0/16"), Interface: "eth0", StateDir: "/s", RunDir: "/r", Name: "a"}
	r, err := resolve(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ got, want any }{
		{r.GossipPort, uint16(7946)}, {r.UDPPort, uint16(8285)}, {r.VXLANPort, uint16(8472)}, {r.KernelVXLANPort, uint16(4789)},
		{r.VNI, uint32(1)}, {r.Device, "overlay0"}, {r.LeaseTime, 24 * time.Hour}, {r.settings.LeaseTime, 24 * time.Hour},
		{r.Encap, "udp"}, {r.FastPath, "auto"}, {r.Offload, "on"}, {r.subnetFile, filepath.Join("/r", "subnet.env")},
		{fmt.Sprint(r.SubnetLens), "[24]"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %v, want %v", tt.got, tt.want)
		}
	}
	if r, err = resolve(Config{Networks: cfg.Networks, Interface: "eth0", StateDir: "/s"}); err != nil || r.Name == "" {
		t.Errorf("without a name: %v", err)
	} else if r.subnetFile != "" {
		t.Errorf("without a run directory, subnet.env goes to %q", r.subnetFile)
	}
}

// TestSubnetLengths: which length counts for which network.
func TestSubnetLengths(t *testing.T) {
	four, six := "100.96.0.0/16", "fd96::/48"
	for _, tt := range []struct {
		networks []string
		lens     []int
		want     []int // IPv4 first
	}{
		{[]string{four}, nil, []int{24}},
		{[]string{six}, nil, []int{64}},
		{[]string{four, six}, nil, []int{24, 64}},
		{[]string{six, four}, nil, []int{24, 64}},
		{[]string{four}, []int{22}, []int{22}},
		{[]string{six}, []int{60}, []int{60}},
		{[]string{four, six}, []int{22}, []int{22, 64}},
		{[]string{six, four}, []int{22}, []int{22, 64}},
		{[]string{four, six}, []int{22, 60}, []int{22, 60}},
		{[]string{six, four}, []int{60, 22}, []int{22, 60}}, // in the order of the networks
		{[]string{four}, []int{22, 60}, []int{22}},
		{[]string{six}, []int{22, 60}, []int{60}},
	} {
		cfg := soundConfig()
		cfg.Networks, cfg.SubnetLens = prefixes(tt.networks...), tt.lens
		r, err := resolve(cfg)
		if err != nil {
			t.Errorf("%v with %v: %v", tt.networks, tt.lens, err)
			continue
		}
		if !slices.Equal(r.settings.SubnetLens, tt.want) {
			t.Errorf("%v with %v: %v, want %v", tt.networks, tt.lens, r.settings.SubnetLens, tt.want)
		}
		if !slices.IsSortedFunc(r.settings.Networks, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() }) {
			t.Errorf("%v: IPv4 is not first in %v", tt.networks, r.settings.Networks)
		}
	}
}

func TestSeeds(t *testing.T) {
	cfg := soundConfig()
	cfg.GossipPort = 7000
	cfg.Join = []string{"b", "b.example:7001", "192.0.2.2", "192.0.2.2:7001", "2001:db8::2", "[2001:db8::2]:7001", "::ffff:192.0.2.3"}
	r, err := resolve(cfg)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"b:7000", "b.example:7001", "192.0.2.2:7000", "192.0.2.2:7001", "[2001:db8::2]:7000", "[2001:db8::2]:7001", "[::ffff:192.0.2.3]:7000"}
	if !slices.Equal(r.seeds, want) {
		t.Errorf("got  %q\nwant %q", r.seeds, want)
	}
}

// TestConfigIsTheCallersOwn: New changes nothing of it, and what the caller
// changes afterwards changes nothing of the node.
func TestConfigIsTheCallersOwn(t *testing.T) {
	cfg := soundConfig()
	cfg.Networks = prefixes("fd96::/48", "100.96.0.0/16")
	cfg.SubnetLens = []int{60, 22}
	cfg.Advertise = addrs("2001:db8::1", "192.0.2.1")
	cfg.Subnets, cfg.AllowSource = prefixes("100.96.4.0/22"), prefixes("198.51.100.0/24")
	cfg.Keys = [][]byte{make([]byte, 32)}
	before := fmt.Sprint(cfg)
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Stop() })
	if after := fmt.Sprint(cfg); after != before {
		t.Errorf("New has changed %s\nto %s", before, after)
	}
	was := fmt.Sprint(n.cfg.Config, n.cfg.settings)
	cfg.Networks[0], cfg.SubnetLens[0], cfg.Advertise[0] = netip.Prefix{}, 1, netip.Addr{}
	cfg.Subnets[0], cfg.AllowSource[0], cfg.Keys[0][0] = netip.Prefix{}, netip.Prefix{}, 1
	if is := fmt.Sprint(n.cfg.Config, n.cfg.settings); is != was {
		t.Errorf("the node's configuration has become %s\nfrom %s", is, was)
	}
}

// TestNetworksOfTheTable: what New accepts, the forwarding table takes.
func TestNetworksOfTheTable(t *testing.T) {
	for bits := 1; bits <= 24; bits++ {
		for _, first := range []string{"0.1.0.0", "10.0.0.0", "64.0.0.0", "100.96.0.0", "126.0.0.0", "128.0.0.0", "160.0.0.0", "192.168.0.0", "223.0.0.0", "240.0.0.0", "255.255.255.0"} {
			p, _ := netip.MustParseAddr(first).Prefix(bits)
			cfg := soundConfig()
			cfg.Networks, cfg.Advertise, cfg.Interface = []netip.Prefix{p}, nil, "eth0"
			if _, err := resolve(cfg); err != nil {
				continue
			}
			if _, err := forward.NewTable(forward.TableConfig{Networks: cfg.Networks}); err != nil {
				t.Errorf("%v: %v", p, err)
			}
		}
	}
}
