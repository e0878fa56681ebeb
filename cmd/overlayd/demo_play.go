package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// demo is one run of the demo: its steps fill in what they make.
type demo struct {
	opt    demoOptions
	out    *narrator
	lab    *lab.Lab
	binary string

	networks []string
	hosts    []*demoHost
}

// demoHost is a host of the demo with what runs on it.
type demoHost struct {
	*lab.Host
	daemon    *lab.Process
	env       lab.SubnetEnv
	container *lab.Container
}

// demoError is a step that failed because of some hosts, whose logs then tell
// why.
type demoError struct {
	err   error
	hosts []*demoHost
}

func (e *demoError) Error() string { return e.err.Error() }
func (e *demoError) Unwrap() error { return e.err }

// pollInterval is how often the demo looks whether something has happened.
const pollInterval = 50 * time.Millisecond

// play goes through the demo's steps.
func (d *demo) play(ctx context.Context) error {
	d.networks = []string{demoNetwork4}
	if d.opt.ipv6 {
		if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
			d.networks = append(d.networks, demoNetwork6)
		}
	}
	d.out.say(fmt.Sprintf("overlayd demo: %d hosts, overlay %s", d.opt.hosts, strings.Join(d.networks, " and ")))
	if len(d.networks) == 1 && d.opt.ipv6 {
		d.out.say("(no IPv6: this kernel has none)")
	}
	steps := []func(context.Context) error{
		d.buildHosts, d.startDaemons, d.addContainers, d.meet, d.pingAll, d.sendByEachPath, d.showStatus,
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// buildHosts makes the hosts and the switch between them.
func (d *demo) buildHosts(context.Context) error {
	d.out.begin("making a switch and %d hosts", d.opt.hosts)
	_, hosts, err := d.lab.LAN("switch", d.opt.hosts)
	if err != nil {
		return err
	}
	d.out.done("a switch and %d hosts, each a network namespace of its own", len(hosts))
	for _, h := range hosts {
		d.hosts = append(d.hosts, &demoHost{Host: h})
		d.out.detail("%-8s eth0 %s, %s", h, h.Addr4(), h.Addr6())
	}
	return nil
}

// startDaemons runs a daemon on each host and waits for the leases: the first
// host makes the cluster, the others join it together.
func (d *demo) startDaemons(ctx context.Context) error {
	first := d.hosts[0]
	if err := d.startDaemon(first, ""); err != nil {
		return err
	}
	d.out.done("%s: overlayd run --network %s --interface eth0", first, strings.Join(d.networks, ","))
	if err := d.awaitLease(ctx, first); err != nil {
		return err
	}
	for _, h := range d.hosts[1:] {
		if err := d.startDaemon(h, first.Addr4().String()); err != nil {
			return err
		}
		d.out.done("%s: overlayd run --network %s --interface eth0 --join %s", h, strings.Join(d.networks, ","), first.Addr4())
	}
	for _, h := range d.hosts[1:] {
		if err := d.awaitLease(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

func (h *demoHost) runDir() string { return filepath.Join(h.Dir(), "run") }

func (d *demo) startDaemon(h *demoHost, join string) error {
	args := []string{"run",
		"--network", strings.Join(d.networks, ","),
		"--interface", "eth0",
		"--name", h.Name(),
		"--state-dir", filepath.Join(h.Dir(), "state"),
		"--run-dir", h.runDir(),
	}
	if join != "" {
		args = append(args, "--join", join)
	}
	cmd := exec.Command(d.binary, args...)
	cmd.Env = daemonEnv()
	var err error
	h.daemon, err = h.Start(cmd, lab.StartOptions{Name: "overlayd", Outlive: d.opt.keep})
	return err
}

// awaitLease waits for the host's subnet.env, which the daemon writes when it
// holds its lease.
func (d *demo) awaitLease(ctx context.Context, h *demoHost) error {
	d.out.begin("%s: waiting for its lease", h)
	path := filepath.Join(h.runDir(), "subnet.env")
	err := poll(ctx, func() (bool, error) {
		env, err := lab.ReadSubnetEnv(path)
		if err == nil {
			h.env = env
			return true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if !h.daemon.Running() {
			return false, fmt.Errorf("the daemon has ended: %v", h.daemon.Err())
		}
		return false, nil
	})
	if err != nil {
		return &demoError{fmt.Errorf("%s: no lease: %w", h, err), []*demoHost{h}}
	}
	if got := len(h.env.Subnets()); got != len(d.networks) {
		return &demoError{fmt.Errorf("%s: subnet.env has %d subnets for %d networks", h, got, len(d.networks)), []*demoHost{h}}
	}
	var subnets []string
	for _, s := range h.env.Subnets() {
		subnets = append(subnets, s.Masked().String())
	}
	d.out.done("%s: holds %s, MTU %d", h, strings.Join(subnets, " and "), h.env.MTU)
	return nil
}

// addContainers does on each host what a container runtime does with
// subnet.env.
func (d *demo) addContainers(context.Context) error {
	d.out.begin("making containers")
	for i, h := range d.hosts {
		br, err := h.Bridge(lab.BridgeConfig{Addrs: h.env.Subnets(), MTU: h.env.MTU})
		if err != nil {
			return err
		}
		if h.container, err = br.Container(fmt.Sprintf("c%d", i+1)); err != nil {
			return err
		}
	}
	d.out.done("a container on each host: container eth0 - veth - bridge br0 - overlay0 - host eth0")
	for _, h := range d.hosts {
		d.out.detail("%-8s on %s: %s", h.container, h, join(h.container.Addrs()))
	}
	return nil
}

// showStatus runs the commands that a user would.
func (d *demo) showStatus(ctx context.Context) error {
	h := d.hosts[0]
	for _, what := range []string{"status", "peers"} {
		d.out.begin("overlayd %s", what)
		cmd := exec.Command(d.binary, what, "--run-dir", h.runDir())
		cmd.Env = daemonEnv()
		text, err := h.Output(ctx, cmd)
		if err != nil {
			return &demoError{fmt.Errorf("overlayd %s on %s: %w: %s", what, h, err, strings.TrimSpace(string(text))), []*demoHost{h}}
		}
		d.out.done("%s: overlayd %s", h, what)
		d.out.block(string(text))
	}
	return nil
}

// poll calls ready every pollInterval until it is true, fails, or ctx ends.
func poll(ctx context.Context, ready func() (bool, error)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		ok, err := ready()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// join is addresses with commas between.
func join(addrs []netip.Addr) string {
	var s []string
	for _, a := range addrs {
		s = append(s, a.String())
	}
	return strings.Join(s, ", ")
}
