package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// The overlay networks of the demo.
const (
	demoNetwork4 = "100.96.0.0/16"
	demoNetwork6 = "fd96::/48"
)

// demoLab is the name of the demo's lab, by which --remove finds it.
const demoLab = "demo"

// maxDemoHosts keeps the demo within its time: pairs grow with the square.
const maxDemoHosts = 16

// demoLimit is how long a demo may take, without its end.
const demoLimit = 55 * time.Second

// errInterrupted is how a demo ends at Ctrl-C or SIGTERM.
var errInterrupted = errors.New("interrupted")

// demoOptions are the flags of overlayd demo.
type demoOptions struct {
	hosts  int
	bytes  int64
	keep   bool
	remove bool
	ipv6   bool
}

func newDemoCommand() *cobra.Command {
	var opt demoOptions
	cmd := &cobra.Command{
		Use:   "demo [--hosts N] [--keep] | demo --remove [PREFIX...]",
		Short: "Show a whole overlay on this machine, in network namespaces",
		Long: `Builds hosts out of network namespaces, connects them by a switch, runs a real
daemon on each, puts containers behind a bridge on each host, sends packets and a
file between them, shows what "overlayd status" says, and removes it all again.
It takes about 15 seconds, needs no other program and leaves nothing behind.

Needs root and /dev/net/tun. Nothing is changed in the machine's own network.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if opt.remove {
				return nil
			}
			return exactly()(cmd, args)
		},
	}
	cmd.DisableFlagsInUseLine = true
	f := cmd.Flags()
	f.IntVar(&opt.hosts, "hosts", 2, fmt.Sprintf("number of hosts, 2 to %d", maxDemoHosts))
	f.Int64Var(&opt.bytes, "bytes", 100e6, "size of the file that is sent, in bytes")
	f.BoolVar(&opt.ipv6, "ipv6", true, "make an IPv6 overlay network too")
	f.BoolVar(&opt.keep, "keep", false, "leave everything up and print how to look around")
	f.BoolVar(&opt.remove, "remove", false, "remove what --keep, or a demo that was killed, left: all of them, or those named")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if opt.hosts < 2 || opt.hosts > maxDemoHosts {
			return usagef("--hosts %d: want 2 to %d", opt.hosts, maxDemoHosts)
		}
		if opt.keep && opt.remove {
			return usagef("--keep and --remove exclude each other")
		}
		if opt.bytes < 1 || opt.bytes > 10e9 {
			return usagef("--bytes %d: want 1 to 10000000000", opt.bytes)
		}
		if err := demoAllowed(); err != nil {
			return err
		}
		out := newNarrator(cmd.OutOrStdout())
		if opt.remove {
			return removeDemos(out, args)
		}
		ctx, stop := interruptible(cmd)
		defer stop()
		// A terminal that is closed ends the demo too; a reader of our output that
		// goes away must not, or it would leave everything behind.
		ctx, stopHangup := signal.NotifyContext(ctx, syscall.SIGHUP)
		defer stopHangup()
		broken := make(chan os.Signal, 1)
		signal.Notify(broken, syscall.SIGPIPE)
		defer signal.Stop(broken)
		return runDemo(ctx, out, opt)
	}
	return cmd
}

// demoAllowed tells what the demo lacks, in a line.
func demoAllowed() error {
	if err := lab.Supported(); err != nil {
		return errors.New("the demo makes network namespaces and needs root: run \"sudo overlayd demo\"")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return errors.New("there is no /dev/net/tun: load the module with \"modprobe tun\", or give the container the device")
	}
	return nil
}

// runDemo runs the demo and removes it, unless it shall stay.
func runDemo(ctx context.Context, out *narrator, opt demoOptions) (err error) {
	binary, err := os.Executable()
	if err != nil {
		return fmt.Errorf("demo: find this program: %w", err)
	}
	l, err := lab.New(lab.Config{Name: demoLab})
	if err != nil {
		return err
	}
	d := &demo{opt: opt, out: out, lab: l, binary: binary}
	limited, cancel := context.WithTimeoutCause(ctx, demoLimit, fmt.Errorf("not done after %v", demoLimit))
	defer cancel()
	err = d.play(limited)
	if ctx.Err() != nil {
		err = errInterrupted
	}
	if err != nil && err != errInterrupted {
		d.explain(err)
	}
	if opt.keep && err != errInterrupted {
		if err := l.Keep(); err != nil {
			return err
		}
		d.lookAround()
		return err
	}
	// The end is not cut short by what ended the play.
	return errors.Join(err, d.tearDown(err == nil))
}

// demoPrefix is what the prefixes of demos look like.
var demoPrefix = regexp.MustCompile(`^ovl[0-9]+-` + demoLab + `[0-9]*$`)

// removeDemos removes the demos with the given prefixes, or every demo, that no
// running process holds.
func removeDemos(out *narrator, prefixes []string) error {
	for _, p := range prefixes {
		if !demoPrefix.MatchString(p) {
			return usagef("%q is no demo: want a name such as ovl123-%s", p, demoLab)
		}
	}
	if len(prefixes) == 0 {
		left, err := lab.Leftovers()
		if err != nil {
			return err
		}
		for _, l := range left {
			if demoPrefix.MatchString(l.Prefix) {
				prefixes = append(prefixes, l.Prefix)
			}
		}
		if len(prefixes) == 0 {
			out.say("there is no demo to remove")
		}
	}
	var errs []error
	for _, p := range prefixes {
		err := lab.Remove(p)
		switch {
		case errors.Is(err, lab.ErrInUse):
			err = fmt.Errorf("%s is running: stop it with Ctrl-C", p)
		case errors.Is(err, fs.ErrNotExist):
			err = fmt.Errorf("there is no demo %s", p)
		case err == nil:
			out.say("removed " + p)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// daemonEnv is the environment of the demo's daemons: the caller's, without
// settings that are meant for another daemon.
func daemonEnv() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, variablePrefix) && !strings.HasPrefix(e, "NOTIFY_SOCKET=") && !strings.HasPrefix(e, "WATCHDOG_") {
			env = append(env, e)
		}
	}
	return env
}
