// Package system builds what is measured: an overlay, or none, between two hosts on a
// switch, each with a container behind a bridge, in network namespaces.
package system

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// ErrMissing is wrapped by the reason why a system cannot be had on this machine.
var ErrMissing = errors.New("not here")

// Config describes what the systems are made of.
type Config struct {
	// Overlayd is the daemon's program, an absolute path.
	Overlayd string
	// Args are more arguments for it.
	Args []string
	// Tools is a directory, kept between runs, for programs that are installed by Go.
	Tools string
	// Install allows that a program that is not there is installed.
	Install bool
	// Flanneld and Etcd are programs; empty: there are none.
	Flanneld, Etcd string
	// Log says, in a line, what takes long. It may be called by several goroutines.
	Log func(format string, args ...any)
}

// System is two ends with something between them that carries their packets.
type System struct {
	Name string // one of report.Names
	// A sends and B receives.
	A, B End
	// MTU is that of the ends.
	MTU int
	// Daemons are the overlay's processes on A's host and on B's, none where the kernel
	// does it all.
	Daemons [2][]*lab.Process
	// Hosts are A's host and B's.
	Hosts []*lab.Host
	// Version is that of the program, Detail what is configured, each a short line.
	Version, Detail string
	// Encrypts tells that packets are encrypted.
	Encrypts bool

	lab *lab.Lab
	sw  *lab.Switch
}

// End is where a program sends or receives.
type End struct {
	*lab.Namespace
	Addr netip.Addr // IPv4
}

// Close ends the processes and removes the namespaces.
func (s *System) Close() error { return s.lab.Close() }

// opens makes the systems, by their names. A system that is returned is closed by the
// caller, also when it comes with an error.
var opens = map[string]func(ctx context.Context, name string, cfg *Config) (*System, error){
	"underlay":                 openUnderlay,
	"direct":                   openOverlayd,
	"kernel-vxlan-by-hand":     openByHand,
	"kernel-vxlan":             openOverlayd,
	"userspace-udp":            openOverlayd,
	"userspace-udp-no-offload": openOverlayd,
	"userspace-vxlan":          openOverlayd,

	"wireguard-go":  openWireGuard,
	"nebula":        openNebula,
	"flannel-udp":   openFlannelUDP,
	"flannel-vxlan": openFlannelVXLAN,
}

// Open builds a system and waits until its ends reach each other with packets of full
// size. The error wraps ErrMissing if what it takes is not here.
func Open(ctx context.Context, name string, cfg Config) (*System, error) {
	open := opens[name]
	if open == nil {
		return nil, fmt.Errorf("no path is called %q", name)
	}
	s, err := open(ctx, name, &cfg)
	if err == nil {
		err = s.awaitReach(ctx)
	}
	if err != nil {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

// newHosts makes the lab of a system with two hosts on a switch.
func newHosts(name string) (*System, error) {
	l, err := lab.New(lab.Config{Name: name})
	if err != nil {
		return nil, err
	}
	s := &System{Name: name, lab: l}
	s.sw, s.Hosts, err = l.LAN("lan", 2)
	return s, err
}

// Stranger is a host on the same switch that is no part of the overlay.
func (s *System) Stranger() (*lab.Host, error) { return s.sw.Host("stranger", lab.PortConfig{}) }

// attach gives host i (0: A's) a bridge with these addresses and a container behind it,
// which is its end from then on.
func (s *System) attach(i int, addrs []netip.Prefix, mtu int) error {
	b, err := s.Hosts[i].Bridge(lab.BridgeConfig{Addrs: addrs, MTU: mtu})
	if err != nil {
		return err
	}
	c, err := b.Container("in-" + s.Hosts[i].Name())
	if err != nil {
		return err
	}
	*[]*End{&s.A, &s.B}[i] = End{c.Namespace, c.Addr4()}
	s.MTU = mtu
	return nil
}

// subnets are those of host i where nobody leases any.
func subnets(i int) []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("100.96.%d.1/24", i+1)),
		netip.MustParsePrefix(fmt.Sprintf("fd96:0:0:%d::1/64", i+1)),
	}
}

// startLimit is how long it may take until a daemon is ready.
const startLimit = 30 * time.Second

// await asks again and again until it gets nil, the daemons end, or the time is over.
func (s *System) await(ctx context.Context, what string, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		for _, p := range slices.Concat(s.Daemons[0], s.Daemons[1]) {
			if !p.Running() {
				tail, _ := p.Tail(5)
				return fmt.Errorf("%s: %s has ended: %w\n%s", what, p.Name(), p.Err(), tail)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, errors.Join(ctx.Err(), err))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// awaitReach waits until the ends reach each other with packets of full size.
func (s *System) awaitReach(ctx context.Context) error {
	return s.await(ctx, "reach", func() error {
		res, err := s.A.Ping(ctx, lab.PingConfig{Dst: s.B.Addr, Count: 1, Size: s.MTU, DontFragment: true, Timeout: 200 * time.Millisecond})
		if err == nil && res.Received != 1 {
			err = errors.New("no answer")
		}
		return err
	})
}

// environ is the environment without settings for another daemon.
func environ() []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "OVERLAYD_") })
}
