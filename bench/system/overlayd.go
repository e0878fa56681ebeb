package system

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// daemonOn is an overlayd that is to send by a path: its lab, the path's name in overlayd,
// a line about it, the overlay's networks and more arguments.
type daemonOn struct {
	lab, path, detail, network string
	args                       []string
}

// overlayds are overlayd on each of its paths.
var overlayds = map[string]daemonOn{
	// A plain route of IPv6 would need an IPv6 underlay.
	"direct":                   {"direct", "direct", "handed off to a plain route on the link", network4, []string{"--fast-path", "direct"}},
	"kernel-vxlan":             {"handoff", "kernel-vxlan", "handed off to the kernel's VXLAN, behind the guard", network, []string{"--fast-path", "kernel-vxlan"}},
	"userspace-udp":            {"udp", "userspace-udp", "the udp encap, offloads on", network, []string{"--fast-path", "off"}},
	"userspace-udp-no-offload": {"plain", "userspace-udp", "the udp encap, a packet for each call, as flannel's udp backend", network, []string{"--fast-path", "off", "--offload", "off"}},
	"userspace-vxlan":          {"vxlan", "userspace-vxlan", "the vxlan encap, offloads on", network, []string{"--fast-path", "off", "--encap", "vxlan"}},
}

// openOverlayd starts an overlayd on each host and waits until both send by the path.
func openOverlayd(ctx context.Context, name string, cfg *Config) (*System, error) {
	o := overlayds[name]
	s, err := startOverlayd(ctx, o.lab, cfg, append([]string{"--network", o.network}, o.args...))
	if s != nil {
		s.Name, s.Detail = name, o.detail
	}
	if err != nil {
		return s, err
	}
	return s, s.awaitPath(ctx, cfg.Overlayd, o.path)
}

const (
	network4 = "100.96.0.0/16"
	network  = network4 + ",fd96::/48"
)

// RunDir is the run directory of the overlayd on host i (0: A's).
func (s *System) RunDir(i int) string { return filepath.Join(s.Hosts[i].Dir(), "run") }

func startOverlayd(ctx context.Context, name string, cfg *Config, args []string) (*System, error) {
	s, err := newHosts(name)
	if err != nil {
		return s, err
	}
	if s.Version, err = overlaydVersion(ctx, cfg.Overlayd); err != nil {
		return s, err
	}
	for i, h := range s.Hosts {
		// By IPv4 alone, as the VXLAN made by hand, and so with the same MTU.
		cmd := exec.Command(cfg.Overlayd, slices.Concat([]string{"run", "--name", h.Name(),
			"--advertise", h.Addr4().String(), "--join", s.Hosts[0].Addr4().String(),
			"--state-dir", filepath.Join(h.Dir(), "state"), "--run-dir", s.RunDir(i)}, args, cfg.Args)...)
		cmd.Env = environ()
		p, err := h.Start(cmd, lab.StartOptions{Name: "overlayd"})
		if err != nil {
			return s, err
		}
		s.Daemons[i] = append(s.Daemons[i], p)
	}
	for i := range s.Hosts {
		var env lab.SubnetEnv
		err := s.await(ctx, "lease", func() (err error) {
			env, err = lab.ReadSubnetEnv(filepath.Join(s.RunDir(i), "subnet.env"))
			return err
		})
		if err != nil {
			return s, err
		}
		if err := s.attach(i, env.Subnets(), env.MTU); err != nil {
			return s, err
		}
	}
	return s, nil
}

// awaitPath waits until both daemons send by a path.
func (s *System) awaitPath(ctx context.Context, overlayd, path string) error {
	for i := range s.Hosts {
		cmd := exec.CommandContext(ctx, overlayd, "ping", s.Hosts[1-i].Name(), "--until", path, "--timeout", startLimit.String(), "--run-dir", s.RunDir(i))
		cmd.Env = environ()
		if out, err := cmd.CombinedOutput(); err != nil {
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			return fmt.Errorf("%s: %w: %s", s.Hosts[i], err, lines[len(lines)-1])
		}
	}
	return nil
}

func overlaydVersion(ctx context.Context, program string) (string, error) {
	out, err := exec.CommandContext(ctx, program, "version").Output()
	if err != nil {
		return "", fmt.Errorf("%s version: %w", program, errors.Join(err, ctx.Err()))
	}
	f := strings.Fields(string(out)) // its name, version, platform and Go
	if len(f) < 2 || f[0] != "overlayd" {
		return "", fmt.Errorf("%s version: %q", program, out)
	}
	return f[1], nil
}
