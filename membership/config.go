package membership

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

// Errors that end a Member, to be told apart with errors.Is.
var (
	// ErrSettings: the cluster has other settings than this node.
	ErrSettings = errors.New("the cluster has other settings")
	// ErrNameTaken: a live node has this node's human name.
	ErrNameTaken = errors.New("node name taken")
	// ErrSubnetTaken: a static subnet belongs to another node.
	ErrSubnetTaken = errors.New("static subnet taken")
	// ErrPortInUse: the gossip port cannot be had.
	ErrPortInUse = errors.New("gossip port in use")
)

// Config describes a Member. StateDir, Name, Settings, Gossip, Addrs and Ports
// are required.
type Config struct {
	StateDir string
	// Name is the node's human name, see CheckName.
	Name     string
	Settings Settings
	// Static are subnets that this node claims instead of leased ones, at most
	// one per network.
	Static []netip.Prefix
	// Reserved are prefixes that somebody has who does not gossip, or that are left to
	// other nodes: this node claims nothing there.
	Reserved []netip.Prefix

	// Gossip is the address and port that gossip listens on and advertises.
	Gossip netip.AddrPort
	// Seeds are other nodes' gossip addresses, "host:port" or "[addr]:port".
	Seeds []string
	// Cluster is memberlist's label: packets with another one are dropped.
	Cluster string
	// Keys encrypt gossip; the first is used to send. 16, 24 or 32 bytes each.
	Keys [][]byte

	// Addrs, Ports, Caps, VNI and MTU are told to others as in Peer.
	Addrs []netip.Addr
	Ports Ports
	Caps  Capability
	VNI   uint32
	MTU   int

	// Spread is how long a record is given to reach every node before a claim
	// counts as uncontested. Zero: 4 s, enough for 1000 nodes on a LAN, where
	// gossip needs about 2.2 s.
	Spread time.Duration
	// Elect is how long nodes with seeds wait for somebody who holds the
	// settings before the lowest of them begins. Zero: 5 s.
	Elect time.Duration

	// OnEvent is called for each event from the Member's own goroutine; it must
	// not block and not call the Member. Nil: events are dropped.
	OnEvent func(Event)
	// Transport replaces the sockets, for tests and simulations. Nil: UDP and
	// TCP on Gossip.
	Transport memberlist.Transport
	// Logger gets the log; nil discards it.
	Logger *slog.Logger
}

// EventKind says what happened to this node's leases.
type EventKind uint8

// The kinds of events.
const (
	LeaseHeld EventKind = iota + 1 // Prefix is ours from now on
	LeaseLost                      // Prefix is not ours any more
	Warning                        // something a person should know: Reason, and About what
)

// Subject is what a Warning is about, and so when it is over.
type Subject uint8

// The subjects of warnings. Those about joining are over when this node is part of its
// cluster and has its subnets; of the others, the next one about the same subject replaces
// it, and one without a Reason says that it is over.
const (
	AboutJoining  Subject = iota // what keeps this node from its cluster, or from a subnet
	AboutClock                   // this node's clock is wrong
	AboutDisk                    // what has to survive a restart is not written
	AboutSettings                // nodes of a cluster with other settings gossip here
)

// Event is told to Config.OnEvent.
type Event struct {
	Kind   EventKind
	Prefix netip.Prefix
	Reason string
	About  Subject
}

const (
	defaultSpread = 4 * time.Second
	defaultElect  = 5 * time.Second
	// clusterMax is memberlist's LabelMaxSize.
	clusterMax = 255
)

// check tells what is wrong with a Config, in one line.
func (c *Config) check() error {
	if c.StateDir == "" {
		return errors.New("no state directory is given")
	}
	if err := CheckName(c.Name); err != nil {
		return err
	}
	if err := c.Settings.Check(); err != nil {
		return err
	}
	if err := c.Settings.CheckStatic(c.Static); err != nil {
		return err
	}
	if !usableEndpoint(c.Gossip.Addr()) {
		return fmt.Errorf("gossip address %v cannot be used: give one that others can reach", c.Gossip)
	}
	if len(c.Addrs) == 0 || len(c.Addrs) > 2 || len(c.Addrs) == 2 && !(c.Addrs[0].Is4() && c.Addrs[1].Is6()) {
		return errors.New("at most one IPv4 and one IPv6 endpoint, IPv4 first")
	}
	for _, a := range append([]netip.Addr{c.Gossip.Addr()}, c.Addrs...) {
		if !usableEndpoint(a) {
			return fmt.Errorf("endpoint %v cannot be used: give an address that others can reach", a)
		}
		for _, n := range c.Settings.Networks {
			if n.Contains(a) {
				return fmt.Errorf("endpoint %v lies inside the overlay network %v: advertise an address of the underlay", a, n)
			}
		}
	}
	if c.Ports.UDP == 0 {
		return errors.New("no UDP port is given")
	}
	if c.MTU < 0 || c.MTU > 65535 {
		return fmt.Errorf("MTU %d is not between 0 and 65535", c.MTU)
	}
	if len(c.Cluster) > clusterMax {
		return fmt.Errorf("the cluster name is %d bytes long: at most %d are possible", len(c.Cluster), clusterMax)
	}
	for _, k := range c.Keys {
		if err := memberlist.ValidateKey(k); err != nil {
			return fmt.Errorf("a key is %d bytes long: 16, 24 or 32 are possible", len(k))
		}
	}
	return nil
}

// CheckStatic tells what is wrong with the static subnets of a node, nil if
// nothing is.
func (s Settings) CheckStatic(static []netip.Prefix) error {
	var four, six bool
	for _, p := range static {
		if !p.IsValid() {
			return errors.New("a static subnet is not a valid prefix")
		}
		seen := &four
		if p.Addr().Is6() {
			seen = &six
		}
		if *seen {
			return fmt.Errorf("static subnet %v is the second of its family: give one per network", p)
		}
		*seen = true
		if p.Masked() != p {
			return fmt.Errorf("static subnet %v has host bits set: did you mean %v?", p, p.Masked())
		}
		if !s.admits(Claim{Key: Key{Prefix: p}, Static: true}) {
			return fmt.Errorf("static subnet %v does not lie inside the overlay networks %v, or leaves no room for containers", p, s.Networks)
		}
	}
	return nil
}
