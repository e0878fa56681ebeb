package overlayd

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/overlayd/overlayd/internal/forward"
	"github.com/overlayd/overlayd/membership"
)

// resolved is a Config with its defaults filled in and everything checked that
// can be checked without looking at the host.
type resolved struct {
	Config
	settings   membership.Settings
	named      bool     // Name was given
	seeds      []string // "host:port"
	subnetFile string
	outside    []netip.Prefix // of SubnetRanges
	http       netip.AddrPort // HTTPListen; not valid: nowhere
	log        *slog.Logger
}

// resolve checks cfg. Its errors satisfy errors.Is(err, ErrConfig), except for
// a host name that cannot be read.
func resolve(cfg Config) (*resolved, error) {
	r := &resolved{Config: cfg, log: cfg.Logger}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	for _, step := range []func() error{r.defaults, r.networks, r.subnetRanges, r.underlay, r.words, r.staticPeers, r.join, r.files, r.listen} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *resolved) defaults() error {
	fill(&r.GossipPort, DefaultGossipPort)
	fill(&r.UDPPort, DefaultUDPPort)
	fill(&r.VXLANPort, DefaultVXLANPort)
	fill(&r.KernelVXLANPort, DefaultKernelVXLANPort)
	fill(&r.VNI, DefaultVNI)
	fill(&r.Device, DefaultDevice)
	fill(&r.LeaseTime, DefaultLeaseTime)
	fill(&r.Encap, "udp")
	fill(&r.VXLANReserved, "strict")
	fill(&r.FastPath, "auto")
	fill(&r.Offload, "on")
	fill(&r.ForwardRules, "auto")
	fill(&r.Queues, DefaultQueues())
	if r.named = r.Name != ""; !r.named {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("the host name cannot be read: %w: give a name with --name", err)
		}
		r.Name = name
	}
	if err := membership.CheckName(r.Name); err != nil {
		return configError{err}
	}
	return nil
}

func fill[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// networks orders the overlay networks and their subnet lengths, IPv4 first.
func (r *resolved) networks() error {
	type network struct {
		prefix netip.Prefix
		length int
	}
	var list []network
	for i, p := range r.Networks {
		n := network{prefix: p, length: DefaultSubnetLen4}
		if p.Addr().Is6() {
			n.length = DefaultSubnetLen6
		}
		switch {
		case len(r.SubnetLens) == len(r.Networks):
			n.length = r.SubnetLens[i]
		case len(r.SubnetLens) == 2 && p.Addr().Is4(), len(r.SubnetLens) == 1 && p.Addr().Is4():
			n.length = r.SubnetLens[0]
		case len(r.SubnetLens) == 2:
			n.length = r.SubnetLens[1]
		}
		list = append(list, n)
	}
	if len(r.SubnetLens) > 2 {
		return badConfig("%d subnet lengths are given: at most one for IPv4 and one for IPv6", len(r.SubnetLens))
	}
	slices.SortStableFunc(list, func(a, b network) int {
		switch {
		case a.prefix.Addr().Is4() == b.prefix.Addr().Is4():
			return 0
		case a.prefix.Addr().Is4():
			return -1
		}
		return 1
	})
	r.settings = membership.Settings{LeaseTime: r.LeaseTime}
	for _, n := range list {
		r.settings.Networks = append(r.settings.Networks, n.prefix)
		r.settings.SubnetLens = append(r.settings.SubnetLens, n.length)
	}
	r.Networks, r.SubnetLens = r.settings.Networks, r.settings.SubnetLens
	if err := r.settings.Check(); err != nil {
		return configError{err}
	}
	if _, err := forward.NewTable(forward.TableConfig{Networks: r.Networks}); err != nil {
		return badConfig("%s: give a private unicast network such as 100.96.0.0/16 or fd96::/48", strings.TrimPrefix(err.Error(), forward.ErrTable.Error()+": "))
	}
	r.Subnets = slices.Clone(r.Subnets)
	if err := r.settings.CheckStatic(r.Subnets); err != nil {
		return configError{err}
	}
	r.AllowSource = slices.Clone(r.AllowSource)
	for _, p := range r.AllowSource {
		if !p.IsValid() {
			return badConfig("an allowed source is not a valid prefix: give one such as 192.0.2.0/24")
		}
		if p.Addr().Is4In6() {
			return badConfig("allowed source %v is an IPv4-mapped prefix: give it as an IPv4 prefix", p)
		}
		if p.Masked() != p {
			return badConfig("allowed source %v has host bits set: did you mean %v?", p, p.Masked())
		}
		for _, n := range r.Networks {
			if p.Overlaps(n) && p.Bits() >= n.Bits() {
				return badConfig("allowed source %v lies inside the overlay network %v, where each subnet has its owner: it can only be outside", p, n)
			}
		}
	}
	return nil
}

// underlay checks what is said of the hosts' own network.
func (r *resolved) underlay() error {
	if r.Interface == "" && len(r.Advertise) == 0 {
		return badConfig("neither an underlay interface nor an address is given: use --interface eth0 or --advertise ADDR")
	}
	if r.Interface != "" && len(r.Advertise) > 0 {
		return badConfig("both an interface (%s) and addresses to advertise are given: use one of them", r.Interface)
	}
	if len(r.Advertise) > 2 || len(r.Advertise) == 2 && r.Advertise[0].Is4() == r.Advertise[1].Is4() {
		return badConfig("addresses to advertise: at most one IPv4 and one IPv6 address")
	}
	r.Advertise = slices.Clone(r.Advertise)
	slices.SortFunc(r.Advertise, netip.Addr.Compare)
	for _, a := range r.Advertise {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() || a.Zone() != "" || a.IsLinkLocalUnicast() {
			return badConfig("%v cannot be advertised: give a unicast address of this host that the others reach", a)
		}
		for _, n := range r.Networks {
			if n.Contains(a) {
				return badConfig("%v cannot be advertised: it lies inside the overlay network %v; give an address of the underlay, or another --network", a, n)
			}
		}
	}
	ports := map[uint16]string{}
	for _, p := range []struct {
		name string
		port uint16
	}{{"gossip", r.GossipPort}, {"udp", r.UDPPort}, {"vxlan", r.VXLANPort}, {"kernel-vxlan", r.KernelVXLANPort}} {
		if other, taken := ports[p.port]; taken {
			return badConfig("the %s port and the %s port are both %d: each needs its own", other, p.name, p.port)
		}
		ports[p.port] = p.name
	}
	return nil
}

// words checks what is one of a few words or in a range.
func (r *resolved) words() error {
	if r.Encap != "udp" && r.Encap != "vxlan" {
		return badConfig("encap %q is neither udp nor vxlan", r.Encap)
	}
	if r.VXLANReserved != "strict" && r.VXLANReserved != "rfc" {
		return badConfig("reserved VXLAN bits %q: strict and rfc are possible", r.VXLANReserved)
	}
	switch r.FastPath {
	case "auto", "off", PathKernelVXLAN, PathDirect:
	default:
		return badConfig("fast path %q is none of auto, off, kernel-vxlan, direct", r.FastPath)
	}
	if r.ForwardRules != "auto" && r.ForwardRules != "off" {
		return badConfig("forward rules %q: auto and off are possible", r.ForwardRules)
	}
	if r.IPMasq && r.Tunnel != nil {
		return badConfig("masquerading changes the kernel's rules, and with a device of its caller's own a node leaves the kernel alone: use one of them")
	}
	if r.Queues < 1 || r.Queues > maxQueues {
		return badConfig("%d queues: give 1 to %d, or 0 to have them follow the processors", r.Queues, maxQueues)
	}
	if r.Offload != "on" && r.Offload != "off" {
		return badConfig("offload %q is neither on nor off", r.Offload)
	}
	if r.VNI >= 1<<24 {
		return badConfig("VNI %d is not between 1 and %d", r.VNI, 1<<24-1)
	}
	if r.MTU != 0 && (r.MTU < minInner4 || r.MTU > maxInner) {
		return badConfig("MTU %d is not between %d and %d", r.MTU, minInner4, maxInner)
	}
	for _, n := range r.Networks {
		if n.Addr().Is6() && r.MTU != 0 && r.MTU < minInner6 {
			return badConfig("MTU %d is too small for the overlay network %v: IPv6 needs at least %d", r.MTU, n, minInner6)
		}
	}
	r.Keys = slices.Clone(r.Keys)
	for i, k := range r.Keys {
		r.Keys[i] = slices.Clone(k)
		if len(k) != 16 && len(k) != 24 && len(k) != 32 {
			return badConfig("key %d of %d is %d bytes long: 16, 24 or 32 are possible", i+1, len(r.Keys), len(k))
		}
	}
	if len(r.Cluster) > 255 {
		return badConfig("the cluster name is %d bytes long: at most 255 are possible", len(r.Cluster))
	}
	return checkDevice(r.Device)
}

// allows tells whether kernel paths of a kind may be tried.
func (r *resolved) allows(kind string) bool {
	return r.Tunnel == nil && (r.FastPath == "auto" || r.FastPath == kind)
}

// checkDevice refuses names that no interface can have, or that mean something
// else in /proc/sys/net/*/conf (dev_valid_name in linux/net/core/dev.c).
func checkDevice(d string) error {
	strange := func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune("/:%", c) }
	if len(d) > 15 || strings.ContainsFunc(d, strange) || d == "." || d == ".." || d == "all" || d == "default" {
		return badConfig("device name %q: at most 15 letters, digits and signs other than '/', ':' and '%%', such as %s", d, DefaultDevice)
	}
	return nil
}

// join completes seeds with the gossip port.
func (r *resolved) join() error {
	for _, s := range r.Join {
		host, port := s, strconv.Itoa(int(r.GossipPort))
		if _, err := netip.ParseAddr(s); err == nil { // an IPv6 address has colons
		} else if h, p, err := net.SplitHostPort(s); err == nil {
			host, port = h, p
		} else if strings.ContainsAny(s, ":[]") {
			return badConfig("seed %q is not HOST, HOST:PORT, ADDR or [ADDR6]:PORT", s)
		}
		if a, err := netip.ParseAddr(host); err == nil {
			if a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
				return badConfig("seed %q cannot be joined: give the address of another node", s)
			}
			for _, n := range r.Networks {
				if n.Contains(a.Unmap()) {
					return badConfig("seed %q cannot be joined: it lies inside the overlay network %v; give an address of the underlay", s, n)
				}
			}
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return badConfig("seed %q: the port is not between 1 and 65535", s)
		}
		if host == "" || strings.ContainsAny(host, " /@") {
			return badConfig("seed %q has no host name that could be looked up: give HOST, HOST:PORT, ADDR or [ADDR6]:PORT", s)
		}
		r.seeds = append(r.seeds, net.JoinHostPort(host, port))
	}
	return nil
}

func (r *resolved) files() error {
	if r.StateDir == "" {
		return badConfig("no state directory is given: one such as %s keeps the node's identity and lease", DefaultStateDir)
	}
	r.subnetFile = r.SubnetFile
	if r.subnetFile == "" && r.RunDir != "" {
		r.subnetFile = filepath.Join(r.RunDir, "subnet.env")
	}
	return nil
}
