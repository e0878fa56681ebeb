package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// system is an overlay over two hosts on a switch, with a container on each.
type system struct {
	name     string
	lab      *lab.Lab
	stranger *lab.Host // on the same switch, and no part of the overlay
	a, b     *lab.Container
	mtu      int
	daemons  []*lab.Process // none if the kernel does it all
	hosts    []*lab.Host
	binary   string // of the daemons
	path     string // that they are to take
	base     string // the system that this one is compared with
}

func (s *system) close() error { return s.lab.Close() }

// newHosts makes the two hosts of a system, and a stranger.
func newHosts(name string) (*system, []*lab.Host, error) {
	l, err := lab.New(lab.Config{Name: name})
	if err != nil {
		return nil, nil, err
	}
	s := &system{name: name, lab: l}
	sw, hosts, err := l.LAN("lan", 2)
	if err != nil {
		return s, nil, err
	}
	s.hosts = hosts
	s.stranger, err = sw.Host("stranger", lab.PortConfig{})
	return s, hosts, err
}

// attach gives a host a bridge with these addresses and a container.
func attach(h *lab.Host, addrs []netip.Prefix, mtu int) (*lab.Container, error) {
	b, err := h.Bridge(lab.BridgeConfig{Addrs: addrs, MTU: mtu})
	if err != nil {
		return nil, err
	}
	return b.Container("in-" + h.Name())
}

func openVXLAN() (*system, error) {
	s, hosts, err := newHosts("kernelvxlan")
	if err != nil {
		return s, err
	}
	s.mtu = 1450
	for i, c := range []**lab.Container{&s.a, &s.b} {
		addrs := []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("100.96.%d.1/24", i+1)), netip.MustParsePrefix(fmt.Sprintf("fd96:0:0:%d::1/64", i+1))}
		if *c, err = attach(hosts[i], addrs, s.mtu); err != nil {
			return s, err
		}
	}
	return s, lab.KernelVXLAN(hosts, lab.VXLANConfig{MTU: s.mtu})
}

// leaseLimit is how long a daemon may take to get its subnet.
const leaseLimit = 30 * time.Second

func openOverlayd(ctx context.Context, name, binary string, args ...string) (*system, error) {
	s, hosts, err := newHosts(name)
	if err != nil {
		return s, err
	}
	s.binary = binary
	for _, h := range hosts {
		// By IPv4 alone, as the VXLAN made by hand, and so with the same MTU.
		cmd := exec.Command(binary, slices.Concat([]string{"run", "--name", h.Name(),
			"--network", "100.96.0.0/16,fd96::/48", "--advertise", h.Addr4().String(), "--join", hosts[0].Addr4().String(),
			"--state-dir", filepath.Join(h.Dir(), "state"), "--run-dir", filepath.Join(h.Dir(), "run")}, args)...)
		cmd.Env = daemonEnv()
		p, err := h.Start(cmd, lab.StartOptions{Name: "overlayd"})
		if err != nil {
			return s, err
		}
		s.daemons = append(s.daemons, p)
	}
	for i, c := range []**lab.Container{&s.a, &s.b} {
		lease, err := s.awaitLease(ctx, hosts[i], s.daemons[i])
		if err != nil {
			return s, err
		}
		s.mtu = lease.MTU
		if *c, err = attach(hosts[i], lease.Subnets(), lease.MTU); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (s *system) awaitLease(ctx context.Context, h *lab.Host, p *lab.Process) (lab.SubnetEnv, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseLimit)
	defer cancel()
	for {
		env, err := lab.ReadSubnetEnv(filepath.Join(h.Dir(), "run", "subnet.env"))
		if err == nil {
			return env, nil
		}
		select {
		case <-p.Done():
			tail, _ := p.Tail(5)
			return env, fmt.Errorf("%s: the daemon has ended: %w\n%s", h, p.Err(), tail)
		case <-ctx.Done():
			return env, errors.Join(ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// daemonEnv is the environment without settings for another daemon.
func daemonEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "OVERLAYD_") })
}

// awaitPath waits until both daemons send by the path that is to be measured.
func (s *system) awaitPath(ctx context.Context) error {
	for i := range s.daemons {
		cmd := exec.CommandContext(ctx, s.binary, "ping", s.hosts[1-i].Name(), "--until", s.path, "--timeout", "20s", "--run-dir", filepath.Join(s.hosts[i].Dir(), "run"))
		cmd.Env = daemonEnv()
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %s: %w: %s", s.name, s.hosts[i], err, out)
		}
	}
	return nil
}

// awaitReach waits until the containers reach each other by the path that is to be
// measured.
func (s *system) awaitReach(ctx context.Context) error {
	if err := s.awaitPath(ctx); err != nil {
		return err
	}
	for limit := time.Now().Add(leaseLimit); ; {
		ok := true
		for _, dst := range s.b.Addrs() {
			res, err := s.a.Ping(ctx, lab.PingConfig{Dst: dst, Count: 1, Size: s.mtu, DontFragment: true, Timeout: 200 * time.Millisecond})
			if err != nil {
				return err
			}
			ok = ok && res.Received == 1
		}
		if ok {
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%s: the containers do not reach each other", s.name)
		}
	}
}
