package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd"
)

func newRunCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run --network PREFIX[,PREFIX6] {--interface NAME | --advertise ADDR[,ADDR6]} [--join HOST,...]",
		Short: "Run a node in the foreground",
		Long: `Runs a node in the foreground until SIGINT or SIGTERM, which take down all that
it has made and keep its lease; a signal more than three seconds later exits at
once. The log goes to standard error. Needs CAP_NET_ADMIN and /dev/net/tun.

Every flag may be given as a variable (--udp-port is OVERLAYD_UDP_PORT) or in the
config file (udp_port: 8285); a flag wins over the variable, that over the file.
Lists are repeated, separated by commas, or lists in YAML. A setting is taken
from one place as a whole; "" on the command line empties a list.

A key file holds one key per line, in base64 or hexadecimal, of 16, 24 or 32
bytes; '#' starts a comment. The first key is used for sending, all are accepted.
The file must be closed to others (chmod 600).`,
		Args: exactly(),
	}
	cmd.DisableFlagsInUseLine = true
	list := settings()
	addSettings(cmd.Flags(), list)
	for _, s := range list {
		if s.kind == oneOf {
			// Fails only for a flag that does not exist.
			_ = cmd.RegisterFlagCompletionFunc(s.flag, cobra.FixedCompletions(s.choices, cobra.ShellCompDirectiveNoFileComp))
		}
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v, err := resolve(cmd.Flags(), env, list, true)
		if err != nil {
			return err
		}
		cfg, err := nodeConfig(v)
		if err != nil {
			return err
		}
		// The packet loops keep their places in Go's scheduler while they wait for the
		// next packet, if there are more than they need.
		cfg.Queues = overlayd.DefaultQueues()
		if procs := 3*cfg.Queues + 1; runtime.GOMAXPROCS(0) < procs && os.Getenv("GOMAXPROCS") == "" {
			runtime.GOMAXPROCS(procs)
		}
		// Nothing on the packet path allocates, so collecting often costs little, and the
		// memory that would wait for it stays the host's.
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(gcPercent)
		}
		cfg.Logger = newLogger(cmd.ErrOrStderr(), v.text("log-level"), v.text("log-format"))
		signals := make(chan os.Signal, 2)
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
		if !signal.Ignored(syscall.SIGHUP) { // nohup(1) means it
			signal.Notify(signals, syscall.SIGHUP)
		}
		defer signal.Stop(signals)
		// A reader of our log that goes away must not take the node with it.
		broken := make(chan os.Signal, 1)
		signal.Notify(broken, syscall.SIGPIPE)
		defer signal.Stop(broken)
		notify := newNotifier(env)
		for {
			node, err := overlayd.New(cfg)
			if err != nil {
				return err
			}
			err = runNode(cmd.Context(), node, signals, cfg.Logger, notify)
			switch {
			case errors.Is(err, overlayd.ErrCloned):
				cfg.Logger.Warn("starting again with a new identity", "reason", err.Error())
			case errors.Is(err, overlayd.ErrUnderlayChanged):
				cfg.Logger.Warn("starting again with the new address", "reason", err.Error())
			default:
				return err
			}
		}
	}
	return cmd
}

// gcPercent is GOGC for the daemon, see package runtime.
const gcPercent = 30

// newLogger makes the daemon's log. Level and format were checked before.
func newLogger(w io.Writer, level, format string) *slog.Logger {
	var l slog.Level
	switch level {
	case "debug":
		l = slog.LevelDebug
	case "warn":
		l = slog.LevelWarn
	case "error":
		l = slog.LevelError
	}
	opts := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// errSecondSignal is the end of a stop that somebody was too impatient for.
var errSecondSignal = errors.New("killed by a second signal: what is left behind is removed by \"overlayd cleanup\" or the next start")

// impatientAfter is how long a stop may take before a second signal ends it: more
// than it ever should.
var impatientAfter = 3 * time.Second

// node is what running a node needs of an overlayd.Node.
type node interface {
	Start(ctx context.Context) error
	Ready() <-chan struct{}
	Wait() error
	Stop() error
	Status() overlayd.Status
	Events(ctx context.Context) <-chan overlayd.Event
}

// runNode runs a node until a signal, until "overlayd leave", or until it
// stops by itself.
func runNode(ctx context.Context, node node, signals <-chan os.Signal, log *slog.Logger, notify *notifier) error {
	// Only report asks the node anything, so that signals are heard even when
	// the node is stuck.
	reporting, stopReporting := context.WithCancel(ctx)
	defer stopReporting()
	reported := make(chan struct{})
	events := node.Events(reporting)
	go func() {
		defer close(reported)
		report(reporting, node, events, log, notify)
	}()

	starting, cancelStart := context.WithCancel(ctx)
	defer cancelStart()
	notify.send("STATUS=starting")
	ended := make(chan error, 1)
	go func() {
		if err := node.Start(starting); err != nil {
			_ = node.Stop() // Start has cleaned up; what matters is why it failed
			ended <- err
			return
		}
		log.Info("started", "version", overlayd.BuildVersion())
		ended <- node.Wait()
	}()

	select {
	case err := <-ended:
		if !errors.Is(err, overlayd.ErrCloned) && !errors.Is(err, overlayd.ErrUnderlayChanged) {
			notify.send("STOPPING=1")
		}
		stopReporting()
		<-reported
		return err
	case sig := <-signals:
		log.Info("stopping", "signal", sig.String())
		notify.send("STOPPING=1\nSTATUS=stopping")
	}
	cancelStart()
	stopReporting()
	stopped := make(chan error, 1)
	go func() {
		err := node.Stop()
		<-ended // a start that was called off, or a stop that was asked for, is no news
		<-reported
		stopped <- err
	}()
	// Some programs send the signal twice, to the process and to its group: what
	// comes while a stop may well be under way is no impatience.
	patience := time.NewTimer(impatientAfter)
	defer patience.Stop()
	impatient := signals
	select {
	case err := <-stopped:
		return err
	case <-patience.C:
	}
	for len(impatient) > 0 {
		<-impatient
	}
	select {
	case err := <-stopped:
		return err
	case <-impatient:
		return errSecondSignal
	}
}

// report logs the node's events and keeps the service manager informed.
func report(ctx context.Context, node node, events <-chan overlayd.Event, log *slog.Logger, notify *notifier) {
	ready := node.Ready()
	watchdog := notify.watchdog()
	defer watchdog.Stop()
	for {
		select {
		case e, open := <-events:
			if !open {
				events = nil
				continue
			}
			logEvent(log, e)
			notify.send("STATUS=" + summary(node.Status()))
		case <-ready:
			ready = nil
			notify.send("READY=1\nSTATUS=" + summary(node.Status()))
		case <-watchdog.C:
			node.Status() // a node that is stuck does not come back from here
			notify.send("WATCHDOG=1")
		case <-ctx.Done():
			return
		}
	}
}

func logEvent(log *slog.Logger, e overlayd.Event) {
	var attrs []any
	if e.Peer != "" || e.PeerID != "" {
		attrs = append(attrs, "peer", e.Peer, "id", e.PeerID)
	}
	if e.Path != "" {
		attrs = append(attrs, "path", e.Path)
	}
	if e.Prefix.IsValid() {
		attrs = append(attrs, "prefix", e.Prefix.String())
	}
	if e.Reason != "" {
		attrs = append(attrs, "reason", e.Reason)
	}
	if e.Missed > 0 {
		attrs = append(attrs, "missed", e.Missed)
	}
	level := slog.LevelInfo
	if e.Kind == overlayd.EventWarning || e.Kind == overlayd.EventLeaseLost {
		level = slog.LevelWarn
	}
	log.Log(context.Background(), level, string(e.Kind), attrs...)
}

// summary is a node's state in a few words.
func summary(s overlayd.Status) string {
	up := 0
	for _, p := range s.Peers {
		if p.Path != overlayd.PathNone {
			up++
		}
	}
	subnets := "no subnet yet"
	if len(s.Node.Subnets) > 0 {
		subnets = joinPrefixes(s.Node.Subnets)
	}
	return fmt.Sprintf("%s, %d of %d peers reachable", subnets, up, len(s.Peers))
}
