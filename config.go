package overlayd

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/overlayd/overlayd/tunnel"
)

// The default ports and values of a Config. 8285 is flannel's for its udp
// backend, 8472 the one that Linux used for VXLAN before IANA assigned 4789
// (RFC 7348 section 8, linux/drivers/net/vxlan), 7946 memberlist's.
const (
	DefaultGossipPort      = 7946
	DefaultUDPPort         = 8285
	DefaultVXLANPort       = 8472
	DefaultKernelVXLANPort = 4789
	DefaultVNI             = 1
	DefaultDevice          = "overlay0"
	DefaultSubnetLen4      = 24
	DefaultSubnetLen6      = 64
	DefaultLeaseTime       = 24 * time.Hour
	DefaultStateDir        = "/var/lib/overlayd"
	DefaultRunDir          = "/run/overlayd"
)

// Config describes a node. Networks, StateDir and one of Interface and
// Advertise are required; the zero value of everything else is the default
// that its comment names. New checks all of it and never changes it.
type Config struct {
	// Networks are the overlay networks: one IPv4 prefix, one IPv6 prefix, or
	// one of each. All nodes of a cluster have the same.
	Networks []netip.Prefix
	// SubnetLens are the lengths of the subnets leased from Networks, in the
	// same order as Networks. A single one for two networks is that of IPv4; of
	// two for a single network the first counts for IPv4, the second for IPv6.
	// Empty: 24 for IPv4, 64 for IPv6.
	SubnetLens []int
	// Subnets are static subnets inside Networks, at most one per network,
	// which beat leased ones. A network without one gets a leased subnet.
	Subnets []netip.Prefix
	// SubnetRanges narrow what this node leases its subnets from, at most one for
	// each of Networks. A subnet of an earlier run that lies outside is given up.
	// None: the whole network.
	SubnetRanges []SubnetRange

	// Interface is the underlay interface, whose addresses are advertised.
	Interface string
	// Advertise are underlay addresses of this host, at most one per family,
	// instead of those of Interface.
	Advertise []netip.Addr
	// Join are the seeds as "host", "host:port", "addr" or "[addr]:port". None
	// makes this node the first of a cluster, unless it remembers peers.
	Join []string
	// Name is the node's human name, unique in the cluster. Empty: the host name.
	Name string

	// Encap is "udp" (the default) or "vxlan".
	Encap string
	// VNI is the VXLAN network identifier, 1 to 2^24-1. Zero: 1.
	VNI uint32
	// VXLANReserved is "strict" (the default): VXLAN frames with reserved bits set are
	// dropped, as Linux does; or "rfc": the bits are ignored, as RFC 7348 demands.
	VXLANReserved string
	// StaticPeers are peers that do not gossip.
	StaticPeers []StaticPeer
	// FastPath is which kernel paths are allowed: "auto" (the default), "off",
	// "kernel-vxlan" or "direct".
	FastPath string
	// KeepPaths has a stop leave the kernel's paths and subnet.env as they are, for the
	// next start to take over, and say no good-bye: what goes by kernel paths goes on.
	// Cleanup removes them.
	KeepPaths bool
	// IPMasq has the host hide its containers behind its own address when they reach
	// beyond the overlay networks, by rules in an nftables table of the node's own: they
	// stand while the node holds a subnet, until Stop, or beyond it where KeepPaths keeps
	// the kernel's paths. What stays within the overlay is never rewritten, by no path;
	// UDP to the overlay's data ports neither, so that no container sends in its host's
	// name. Where the rules cannot be had the node runs without them, with a warning, and
	// subnet.env says so.
	IPMasq bool
	// ForwardRules is "auto" (the default): where an iptables FORWARD chain of this host
	// (as nftables' tables "ip filter" and "ip6 filter" have it) would drop the overlay's
	// packets, rules that accept those from and to the overlay networks are put at its
	// head, into DOCKER-USER where Docker has made that. They stand as IPMasq's do. Or
	// "off": what drops packets is told, and nothing is changed. Firewalls of other make,
	// and those of legacy iptables, are told of only.
	ForwardRules string
	// AllowSource are inner source prefixes outside of the overlay networks
	// that this node accepts from any of its peers.
	AllowSource []netip.Prefix

	// GossipPort (UDP and TCP), UDPPort, VXLANPort and KernelVXLANPort are the
	// outer ports; zero means the default.
	GossipPort, UDPPort, VXLANPort, KernelVXLANPort uint16
	// Cluster is a label that keeps gossip of other clusters out.
	Cluster string
	// Keys encrypt gossip and authenticate probes: 16, 24 or 32 bytes each. The
	// first is used for sending, all are accepted. Empty: neither.
	Keys [][]byte
	// OnKeys is called with all installed keys, the one used for sending first,
	// after they were changed in the running node, so that they can be kept for
	// its next start. One call at a time. Nil: they are forgotten.
	OnKeys func(keys [][]byte) error

	// StateDir holds the node's identity, lease and remembered peers. It is
	// made if it does not exist.
	StateDir string
	// RunDir gets the control socket and subnet.env. Empty: there is no socket,
	// and the node is reached by its methods alone.
	RunDir string
	// SubnetFile is where subnet.env goes, also without a RunDir. Empty:
	// RunDir/subnet.env.
	SubnetFile string
	// Device is the name of the TUN device. Empty: overlay0.
	Device string
	// Tunnel is a device of the caller's own instead of a TUN. Then the node
	// needs no privilege, touches no kernel state, and closes Tunnel when it
	// ends, which is also when Start fails. The device must take packets as long
	// as the MTU.
	Tunnel tunnel.Device
	// MTU is the inner MTU. Zero: computed from the underlay's.
	MTU int
	// Queues is how many queues the TUN has, each with threads and sockets of its own
	// that take their share of the flows. 0: half as many as there are processors, at
	// most 8. Without offloads, or with a Tunnel of the caller's, there is one.
	Queues int

	// Offload turns the kernel's segmentation offloads "on" (the default) or
	// "off".
	Offload string

	// HTTPListen is where the node answers HTTP, for people and for monitoring: /, /metrics,
	// /status, /leases, /healthz and /readyz. "PORT" and ":PORT" mean loopback, "ADDR:PORT"
	// that address: all who reach it may read what this node knows. The host need not have
	// it yet: Status warns of that, and the node answers there once the host has it. Port 0
	// is one that is free, which the log tells. Empty: nowhere.
	HTTPListen string
	// Pprof adds /debug/pprof/ to it.
	Pprof bool
	// HTTPPeers is the TCP port at which the peers' hosts answer /status. With it the page
	// can show what they see, and /mesh tells it; they are asked when somebody looks. 0:
	// nobody is asked.
	HTTPPeers uint16

	// LeaseTime is how long an owner must be silent before its subnet is taken
	// for a new node when none is free. Zero: 24 h. A setting of the cluster.
	LeaseTime time.Duration
	// OnReload is called when somebody asks by the control socket ("overlayd reload") that
	// what has changed in the settings be taken up. It makes a new Config, calls
	// Node.Reload, and returns what that returns. Nil: whoever asks is told that it cannot
	// be done.
	OnReload func(ctx context.Context) (changed []string, err error)
	// Logger gets the node's log. Nil: nothing is logged.
	Logger *slog.Logger
}
