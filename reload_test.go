package overlayd

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/path"
	"github.com/overlayd/overlayd/membership"
	"github.com/overlayd/overlayd/tunnel"
)

// TestEveryFieldIsHotOrCold: whoever adds a field to Config says what Reload does
// about it.
func TestEveryFieldIsHotOrCold(t *testing.T) {
	listed := map[string]int{}
	for _, f := range append(hotFields(), coldFields()...) {
		listed[f.name]++
	}
	for _, name := range ownFields() {
		listed[name]++
	}
	config := reflect.TypeFor[Config]()
	for i := range config.NumField() {
		if name := config.Field(i).Name; listed[name] != 1 {
			t.Errorf("Config.%s is in %d of hotFields, coldFields and ownFields: put it in one", name, listed[name])
		}
		delete(listed, config.Field(i).Name)
	}
	for name := range listed {
		t.Errorf("Config has no %s", name)
	}
}

var reloadKeys = [][]byte{bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 16)}

// aStaticPeer is one of a node with the udp encap.
func aStaticPeer(name, subnet string) StaticPeer {
	return StaticPeer{Name: name, Endpoint: netip.MustParseAddrPort("192.0.2.7:0"), Subnets: prefixes(subnet)}
}

// TestReloadRefused: what cannot change is refused by its name, all of it, and then
// nothing changes, as with a Config that New would not take.
func TestReloadRefused(t *testing.T) {
	cfg := testConfig(t, 1)
	cfg.Keys = reloadKeys[:1]
	n := startNode(t, cfg)
	awaitReady(t, n)
	before := n.Status()
	held := before.Node.Subnets[0]
	cases := map[string]func(c *Config){
		"--network":                   func(c *Config) { c.Networks = prefixes("100.96.0.0/17", "fd96::/48") },
		"--http-listen, --pprof":      func(c *Config) { c.HTTPListen, c.Pprof = "9571", true },
		"--http-listen, --http-peers": func(c *Config) { c.HTTPListen, c.HTTPPeers = "9571", 9571 },
		"--interface, --advertise":    func(c *Config) { c.Interface, c.Advertise = "lo", nil },
		"--advertise":                 func(c *Config) { c.Advertise = []netip.Addr{testAddr(9)} },
		"--subnet-len":                func(c *Config) { c.SubnetLens = []int{25} },
		"--subnet":                    func(c *Config) { c.Subnets = prefixes("100.96.77.0/24") },
		"--encap":                     func(c *Config) { c.Encap = "vxlan" },
		"--vni":                       func(c *Config) { c.VNI = 7 },
		"--vxlan-reserved":            func(c *Config) { c.VXLANReserved = "rfc" },
		"--offload":                   func(c *Config) { c.Offload = "off" },
		"--gossip-port":               func(c *Config) { c.GossipPort = 21999 },
		"--udp-port":                  func(c *Config) { c.UDPPort = 21999 },
		"--vxlan-port":                func(c *Config) { c.VXLANPort = 21999 },
		"--kernel-vxlan-port":         func(c *Config) { c.KernelVXLANPort = 21999 },
		"--cluster":                   func(c *Config) { c.Cluster = "other" },
		"--name":                      func(c *Config) { c.Name = "other" },
		"--keep-paths":                func(c *Config) { c.KeepPaths = true },
		"--state-dir":                 func(c *Config) { c.StateDir += "/x" },
		"--run-dir":                   func(c *Config) { c.RunDir = t.TempDir() },
		"--subnet-file":               func(c *Config) { c.SubnetFile = t.TempDir() + "/x" },
		"--device":                    func(c *Config) { c.Device = "other" },
		"--subnet-range": func(c *Config) {
			c.SubnetRanges = []SubnetRange{{First: netip.MustParseAddr("100.96.0.0"), Last: netip.MustParseAddr("100.96.255.0")}}
		},
		"--forward-rules": func(c *Config) { c.ForwardRules = "off" },
		"--http-listen":   func(c *Config) { c.HTTPListen = "9571" },
		"MTU":             func(c *Config) { c.MTU++ },
		"LeaseTime":       func(c *Config) { c.LeaseTime = 2 * time.Hour },
		"Tunnel":          func(c *Config) { c.Tunnel = nil },
		"Queues":          func(c *Config) { c.Queues = n.cfg.Queues + 1 },
		"--key-file (a node is with a key or without one)": func(c *Config) { c.Keys = nil },
	}
	for _, f := range coldFields() {
		tried := false
		for flags := range cases {
			tried = tried || slices.Contains(strings.Split(flags, ", "), f.flag)
		}
		if !tried && f.name != "IPMasq" { // which is nothing for a Tunnel of one's own
			t.Errorf("%s is not tried", f.flag)
		}
	}
	refused := func(what string, change func(*Config)) error {
		t.Helper()
		c := cfg
		c.AllowSource, c.Join = prefixes("192.0.2.0/24"), []string{"192.0.2.9"} // could change
		change(&c)
		changed, err := n.Reload(c)
		if err == nil || changed != nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: changed %v, error %v", what, changed, err)
		}
		if r := n.live(); len(r.AllowSource)+len(r.seeds) != 0 {
			t.Fatalf("%s: something was taken up all the same", what)
		}
		return err
	}
	for name, change := range cases {
		err := refused(name, change)
		if want := name + " cannot change without a restart"; !errors.Is(err, ErrNeedsRestart) || err.Error() != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	err := refused("two", func(c *Config) { c.VNI, c.Networks = 7, prefixes("100.97.0.0/16", "fd96::/48") })
	if want := "--network, --vni cannot change without a restart"; err == nil || err.Error() != want {
		t.Errorf("two: %v, want %s", err, want)
	}
	if err := refused("faulty", func(c *Config) { c.FastPath = "warp" }); !errors.Is(err, ErrConfig) {
		t.Errorf("faulty: %v", err)
	}
	err = refused("own lease", func(c *Config) { c.StaticPeers = []StaticPeer{aStaticPeer("old", held.String())} })
	oneLine(t, err, "static peer old", "overlaps this node's lease "+held.String())
	after := n.Status()
	if !reflect.DeepEqual(before.Node, after.Node) {
		t.Errorf("the status was %+v, and is %+v", before.Node, after.Node)
	}
}

// TestReload: what can change does, is named, and is no change the next time.
func TestReload(t *testing.T) {
	cfg := testConfig(t, 1)
	cfg.Keys = reloadKeys[:1]
	cfg.OnKeys = func([][]byte) error { t.Error("the keys are where they came from"); return nil }
	n := startNode(t, cfg)
	awaitReady(t, n)
	same := func() {
		t.Helper()
		if changed, err := n.Reload(cfg); len(changed) != 0 || err != nil {
			t.Fatalf("no change: %v, %v", changed, err)
		}
	}
	same()
	static := func(name string) *PeerStatus {
		for _, p := range n.Status().Peers {
			if p.Name == name {
				return &p
			}
		}
		return nil
	}
	for _, tt := range []struct {
		what   string // as Reload calls it
		change func()
		check  func() bool
	}{
		{"--join", func() { cfg.Join = []string{testAddr(2).String()} }, func() bool { return len(n.live().seeds) == 1 }},
		{"--fast-path", func() { cfg.FastPath = "direct" }, func() bool {
			return n.Status().Node.FastPath == "direct" && n.metrics().Node.FastPath == "direct"
		}},
		{"--static-peer", func() { cfg.StaticPeers = []StaticPeer{aStaticPeer("old", "100.96.200.0/24")} }, func() bool {
			p := static("old")
			return p != nil && p.State == "static" && p.Path == PathUserspaceUDP && len(n.Routes().Routes) == 3
		}},
		{"--static-peer", func() { cfg.StaticPeers = []StaticPeer{aStaticPeer("new", "100.96.200.0/25")} }, func() bool {
			p := static("new")
			return p != nil && p.Subnets[0].Bits() == 25 && static("old") == nil
		}},
		{"--static-peer", func() { cfg.StaticPeers = nil }, func() bool { return static("new") == nil && len(n.Routes().Routes) == 2 }},
		{"--allow-source", func() { cfg.AllowSource = prefixes("192.0.2.0/24", "198.51.100.0/24") }, func() bool { return len(n.live().AllowSource) == 2 }},
		{"", func() { slices.Reverse(cfg.AllowSource) }, func() bool { return true }},
		{"--key-file", func() { cfg.Keys = reloadKeys }, func() bool { return len(n.Keys().Keys) == 2 && n.Keys().Keys[0].ID == KeyID(reloadKeys[0]) }},
		{"--key-file", func() { cfg.Keys = [][]byte{reloadKeys[1], reloadKeys[0]} }, func() bool { return n.Keys().Keys[0].ID == KeyID(reloadKeys[1]) }},
		{"--key-file", func() { cfg.Keys = reloadKeys[1:] }, func() bool { return len(n.Keys().Keys) == 1 && n.Keys().Keys[0].ID == KeyID(reloadKeys[1]) }},
		{"--join --fast-path --allow-source", func() { cfg.Join, cfg.FastPath, cfg.AllowSource = nil, "", nil }, func() bool { return n.Status().Node.FastPath == "auto" }},
	} {
		tt.change()
		changed, err := n.Reload(cfg)
		if err != nil || strings.Join(changed, " ") != tt.what {
			t.Fatalf("%s: changed %v, error %v", tt.what, changed, err)
		}
		if !tt.check() { // at once
			t.Errorf("%s was not taken up: %+v, routes %+v, keys %+v", tt.what, n.Status(), n.Routes(), n.Keys())
		}
		same()
	}
	n.Stop()
	if _, err := n.Reload(cfg); !errors.Is(err, ErrNotStarted) {
		t.Errorf("a node that has stopped: %v", err)
	}
}

// TestReloadReachesTheLoops: a node that waits joins by a seed that is new to it, what
// it may not send is taken once it is allowed, and the peers follow its keys.
func TestReloadReachesTheLoops(t *testing.T) {
	a, b := testConfig(t, 1), testConfig(t, 2)
	a.Keys, b.Keys = reloadKeys[:1], reloadKeys[:1]
	b.Join = []string{testAddr(9).String()} // nobody is there
	var nodes []*meshNode
	for _, cfg := range []Config{a, b} {
		nodes = append(nodes, &meshNode{Node: startNode(t, cfg), dev: cfg.Tunnel.(*tunnel.Memory)})
	}
	reload := func(n *meshNode, cfg Config, want string) {
		t.Helper()
		if changed, err := n.Reload(cfg); err != nil || fmt.Sprint(changed) != want {
			t.Fatalf("changed %v, error %v, want %s", changed, err, want)
		}
	}
	b.Join = []string{testAddr(1).String()}
	reload(nodes[1], b, "[--join]")
	for _, n := range nodes {
		awaitReady(t, n.Node)
	}
	nodes[0].knows(t, "node2")
	nodes[1].knows(t, "node1")

	foreign := netip.MustParseAddr("192.0.2.55")
	dropped := func() uint64 { return nodes[0].Drops().Drops["rx_spoofed_source"] }
	send := func(text string) {
		t.Helper()
		if err := nodes[1].dev.Inject(udpPacket(t, foreign, nodes[0].host(0, 5), text)); err != nil {
			t.Fatal(err)
		}
	}
	send("before")
	waitFor(t, "the packet to be dropped", func() bool { return dropped() > 0 })
	a.AllowSource = prefixes("192.0.2.0/24")
	reload(nodes[0], a, "[--allow-source]")
	send("after")
	if got := receive(t, nodes[0].dev); !bytes.HasSuffix(got, []byte("after")) {
		t.Errorf("received %x", got)
	}

	// Three rounds over all nodes.
	for _, keys := range [][][]byte{reloadKeys, {reloadKeys[1], reloadKeys[0]}, reloadKeys[1:]} {
		a.Keys, b.Keys = keys, keys
		reload(nodes[0], a, "[--key-file]")
		reload(nodes[1], b, "[--key-file]")
		if _, err := nodes[0].Ping(t.Context(), "node2"); err != nil {
			t.Errorf("with the keys %v: %v", nodes[0].Keys(), err)
		}
	}
	for _, n := range nodes {
		if got := n.Drops().Drops["control_auth"]; got != 0 {
			t.Errorf("%d control frames were refused", got)
		}
	}
}

// TestReloadsAtOnce: of reloads at the same time each is taken up as a whole, and one that
// meets a stop ends with it.
func TestReloadsAtOnce(t *testing.T) {
	check := nothingLeft(t)
	cfg := testConfig(t, 1)
	cfg.Keys = reloadKeys[:1]
	n := startNode(t, cfg)
	awaitReady(t, n)
	// Each of these has its fast path, its source and its key.
	var all [3]Config
	for i := range all {
		all[i] = cfg
		all[i].FastPath = []string{"auto", "direct", "kernel-vxlan"}[i]
		all[i].AllowSource = prefixes(fmt.Sprintf("192.0.2.%d/32", i))
		all[i].Keys = [][]byte{bytes.Repeat([]byte{byte(i + 1)}, 32)}
	}
	const rounds = 200
	done := make(chan error, len(all))
	reload := func(c Config, until func(round int) bool) {
		for round := 0; until(round); round++ {
			if _, err := n.Reload(c); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}
	for _, c := range all {
		go reload(c, func(round int) bool { return round < rounds })
	}
	for range all {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	i := slices.IndexFunc(all[:], func(c Config) bool { return c.FastPath == n.live().FastPath })
	if got := n.live(); i < 0 || !sameSetting(got.AllowSource, all[i].AllowSource) || !sameKeys(n.parts.member.Keys(), all[i].Keys) {
		t.Errorf("of %d there is the fast path %s, with the sources %v and the keys %v", i, got.FastPath, got.AllowSource, n.Keys())
	}
	for _, c := range all {
		go reload(c, func(int) bool { return true })
	}
	within(t, stopTime, "Stop", func() {
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
	})
	for range all {
		if err := <-done; !errors.Is(err, ErrStopped) && !errors.Is(err, ErrNotStarted) {
			t.Errorf("a reload that meets a stop: %v", err)
		}
	}
	check()
}

// TestFastPathNeedsRestart: kinds that were set up at the start may come and go, as long
// as the MTU holds for them.
func TestFastPathNeedsRestart(t *testing.T) {
	for _, tt := range []struct {
		encap, start, next string
		want               string
	}{
		{"udp", "auto", "off", ""},
		{"udp", "auto", "direct", ""},
		{"udp", "auto", "kernel-vxlan", ""},
		{"udp", "direct", "off", ""},
		{"udp", "direct", "auto", "auto leaves room for an MTU of 1450, and that of this node is 1472"},
		{"vxlan", "direct", "auto", ""},
		{"udp", "off", "auto", "it was off at the start, so that nothing is set up for auto"},
		{"vxlan", "off", "direct", "it was off at the start, so that nothing is set up for direct"},
		{"udp", "off", "off", ""},
	} {
		cfg := soundConfig()
		cfg.Encap, cfg.FastPath = tt.encap, tt.start
		was, err := resolve(cfg)
		if err != nil {
			t.Fatal(err)
		}
		n := &Node{cfg: was}
		n.parts.kernel, n.parts.outer, n.parts.endpoints = new(kernel.Kernel), 1500, addrs("192.0.2.1")
		n.parts.mtu = n.parts.outer.inner(overhead(tt.encap, tt.start, n.parts.endpoints))
		if tt.start != "off" {
			n.parts.fast = &fastPaths{n: n}
		}
		next := *was
		next.FastPath = tt.next
		if got := n.fastPathNeeds(&next); got != tt.want {
			t.Errorf("%s, from %s to %s: %q, want %q", tt.encap, tt.start, tt.next, got, tt.want)
		}
		if tt.want == "" && tt.next == "off" && next.caps()&(membership.CapDirect|membership.CapKernelVXLAN) != 0 {
			t.Errorf("off, and it tells of %v", next.caps())
		}
	}
}

// TestNarrow: a kind that is not allowed any more is not tried, but taken for a while.
func TestNarrow(t *testing.T) {
	was, err := resolve(soundConfig())
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{cfg: was}
	n.parts.fast = &fastPaths{n: n, fast: new(kernel.Fast)}
	next := *was
	next.FastPath = PathKernelVXLAN
	n.takeUp(&next)
	f, now := n.parts.fast, time.Now()
	late := now.Add(leaveFor)
	if devices := f.takenBy(late); !slices.Equal(devices, []string{"overlay0-v4", "overlay0-v6"}) {
		t.Errorf("packets come by %q", devices)
	}
	for _, tt := range []struct {
		kind         path.Kind
		at           time.Time
		allows, take bool
	}{
		{path.KernelVXLAN, now, true, true}, {path.KernelVXLAN, late, true, true},
		{path.Direct, now, false, true}, {path.Direct, late, false, false},
	} {
		if allows, takes := f.allows(tt.kind), f.takes(tt.kind, tt.at); allows != tt.allows || takes != tt.take {
			t.Errorf("%v at %v: allowed %v, taken %v", tt.kind, tt.at.Sub(now), allows, takes)
		}
	}
	if f.leftForGood(now) || !f.leftForGood(late) || f.leftForGood(late) {
		t.Error("that peers have had their time is to be told once")
	}
	n.takeUp(was)
	if !f.allows(path.Direct) || !f.takes(path.Direct, late) {
		t.Error("it is not allowed again")
	}
	next.FastPath = PathDirect
	n.takeUp(&next)
	if devices := f.takenBy(time.Now().Add(leaveFor)); len(devices) > 0 {
		t.Errorf("VXLAN is not allowed, and packets come by %q", devices)
	}
}

// TestReloadDataPorts: a container cannot send in its host's name to a static peer that
// came by a reload either.
func TestReloadDataPorts(t *testing.T) {
	was, err := resolve(soundConfig())
	if err != nil {
		t.Fatal(err)
	}
	n, next := &Node{cfg: was}, *was
	p := aStaticPeer("old", "100.96.7.0/24")
	p.Endpoint = netip.MustParseAddrPort("192.0.2.7:9999")
	next.StaticPeers = []StaticPeer{p}
	for _, want := range [][]netip.AddrPort{nil, {p.Endpoint}, nil} {
		if _, others := n.dataPorts(new(membership.View)); !slices.Equal(others, want) {
			t.Errorf("the unusual ports of peers are %v, want %v", others, want)
		}
		if want == nil {
			n.takeUp(&next)
		} else {
			n.takeUp(was)
		}
	}
}

// TestReloadOverTheSocket: what a client asks for is the program's affair.
func TestReloadOverTheSocket(t *testing.T) {
	n := fullNode()
	c := serveFake(t, n)
	if changed, err := c.Reload(t.Context()); err != nil || n.asked != "reload" || fmt.Sprint(changed) != "[--join]" {
		t.Errorf("changed %v, error %v, the node was asked %q", changed, err, n.asked)
	}
	n.keyErr = fmt.Errorf("--vni %w", ErrNeedsRestart)
	if _, err := c.Reload(t.Context()); err == nil || err.Error() != "--vni cannot change without a restart" {
		t.Errorf("error: %v", err)
	}
	if _, err := newNode(t, testConfig(t, 1)).reload(t.Context()); err == nil || !strings.Contains(err.Error(), "does not reload") {
		t.Errorf("a program that does not reload: %v", err)
	}
}
