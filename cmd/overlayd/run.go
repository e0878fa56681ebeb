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
	"sync"
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
once. SIGHUP has it read its files anew, see "overlayd reload". The log goes to
standard error. Needs CAP_NET_ADMIN and /dev/net/tun.

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
		read := func() (daemonConfig, error) { return readDaemonConfig(cmd.Flags(), env, list) }
		start, err := read()
		if err != nil {
			return err
		}
		// The packet loops keep their places in Go's scheduler while they wait for the
		// next packet, if there are more than they need.
		start.node.Queues = overlayd.DefaultQueues()
		if procs := 3*start.node.Queues + 1; runtime.GOMAXPROCS(0) < procs && os.Getenv("GOMAXPROCS") == "" {
			runtime.GOMAXPROCS(procs)
		}
		// Nothing on the packet path allocates, so collecting often costs little, and the
		// memory that would wait for it stays the host's.
		if os.Getenv("GOGC") == "" {
			debug.SetGCPercent(gcPercent)
		}
		// A crash, or the watchdog's SIGABRT, is to look like one: Go ends it with exit code
		// 2, which here means wrong usage, after which nobody starts us again.
		debug.SetTraceback("crash")
		level := new(slog.LevelVar)
		level.Set(start.logLevel)
		log := newLogger(cmd.ErrOrStderr(), level, start.logFormat)
		signals := make(chan os.Signal, 2)
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
		defer signal.Stop(signals)
		hangups := make(chan os.Signal, 1) // also one that comes too soon is heard
		signal.Notify(hangups, syscall.SIGHUP)
		defer signal.Stop(hangups)
		// A reader of our log that goes away must not take the node with it.
		broken := make(chan os.Signal, 1)
		signal.Notify(broken, syscall.SIGPIPE)
		defer signal.Stop(broken)
		notify := newNotifier(env)
		r := &reloader{read: read, log: log, level: level, notify: notify, now: start}
		for {
			node, err := overlayd.New(r.config())
			if err != nil {
				return err
			}
			r.use(node)
			err = runNode(cmd.Context(), node, signals, hangups, r.reload, log, notify)
			switch {
			case errors.Is(err, overlayd.ErrCloned):
				log.Warn("starting again with a new identity", "reason", err.Error())
			case errors.Is(err, overlayd.ErrUnderlayChanged):
				log.Warn("starting again with the new address", "reason", err.Error())
			default:
				return err
			}
		}
	}
	return cmd
}

// gcPercent is GOGC for the daemon, see package runtime.
const gcPercent = 30

// logLevel is what a level is called; it was checked before.
func logLevel(text string) slog.Level {
	switch text {
	case "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// newLogger makes the daemon's log. The format was checked before.
func newLogger(w io.Writer, level slog.Leveler, format string) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
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
	Reload(cfg overlayd.Config) ([]string, error)
}

// reloadFunc reloads a node's settings, and tells of it itself.
type reloadFunc func(context.Context) ([]string, error)

// runNode runs a node until a signal, until "overlayd leave", or until it
// stops by itself. Each of hangups has it reload.
func runNode(ctx context.Context, node node, signals, hangups <-chan os.Signal, reload reloadFunc, log *slog.Logger, notify *notifier) error {
	// Only report and obey ask the node anything, so that signals are heard even
	// when the node is stuck.
	reporting, stopReporting := context.WithCancel(ctx)
	defer stopReporting()
	reported := make(chan struct{})
	events := node.Events(reporting)
	started := make(chan struct{})
	go func() {
		defer close(reported)
		var obeying sync.WaitGroup
		obeying.Go(func() { obey(reporting, started, hangups, reload) })
		report(reporting, node, events, log, notify)
		obeying.Wait()
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
		close(started)
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

// obey reloads when it is told to, once the node has started. What comes before that
// waits.
func obey(ctx context.Context, started <-chan struct{}, hangups <-chan os.Signal, reload reloadFunc) {
	select {
	case <-started:
	case <-ctx.Done():
		return
	}
	for {
		select {
		case <-hangups:
			_, _ = reload(ctx) // it is logged
		case <-ctx.Done():
			return
		}
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

// summary is a node's state in a few words. A peer that has said good-bye is missed by
// nobody.
func summary(s overlayd.Status) string {
	up, all := 0, 0
	for _, p := range s.Peers {
		if p.Path != overlayd.PathNone {
			up++
		}
		if p.State != "left" {
			all++
		}
	}
	subnets := "no subnet yet"
	if len(s.Node.Subnets) > 0 {
		subnets = joinPrefixes(s.Node.Subnets)
	}
	return fmt.Sprintf("%s, %d of %d peers reachable", subnets, up, all)
}
