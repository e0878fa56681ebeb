package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/overlayd/overlayd"
)

// reloadTimeout bounds a reload that somebody waits for.
const reloadTimeout = 15 * time.Second

func newReloadCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Have a running node read its settings anew",
		Long: `Has a running node read its config file and its key file anew, as SIGHUP does, and
prints what has changed. Flags and variables are as they were when it started. Log
level, seeds, static peers, allowed sources, fast path and keys change while it
runs, and nothing is lost on the way. Where anything else is different it is
refused by its name, and where a file is faulty it is said why: then nothing has
changed, and the exit code is 1.`,
		Args: exactly(),
	}
	dial := addRunDir(cmd, env)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := dial()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), reloadTimeout)
		defer cancel()
		changed, err := client.Reload(ctx)
		if err != nil {
			return err
		}
		text := "nothing has changed"
		if len(changed) > 0 {
			text = "reloaded: " + printable(strings.Join(changed, ", "))
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
		return err
	}
	return cmd
}

// daemonConfig is all that the daemon is told.
type daemonConfig struct {
	node      overlayd.Config // without a Logger
	logLevel  slog.Level
	logFormat string
	keyFile   string
}

// readDaemonConfig reads it from the flags, the variables and the files.
func readDaemonConfig(fs *pflag.FlagSet, env []string, list []*setting) (daemonConfig, error) {
	v, err := resolve(fs, env, list, true)
	if err != nil {
		return daemonConfig{}, err
	}
	cfg, err := nodeConfig(v)
	return daemonConfig{cfg, logLevel(v.text("log-level")), v.text("log-format"), v.text("key-file")}, err
}

// reloader has a running node take up what has changed in the settings.
type reloader struct {
	read   func() (daemonConfig, error)
	log    *slog.Logger
	level  *slog.LevelVar
	notify *notifier

	mu   sync.Mutex // one at a time
	node node       // nil before there is one

	// kept guards what changes under a node's hand: it must not wait for a reload, which
	// waits for the node.
	kept   sync.Mutex
	now    daemonConfig
	writes int // of the key file by us
}

// config is what a node is to be made of. A key that was changed meanwhile is in it.
func (r *reloader) config() overlayd.Config {
	r.kept.Lock()
	defer r.kept.Unlock()
	cfg := r.now.node
	cfg.Logger, cfg.OnReload = r.log, r.reload
	if cfg.OnKeys != nil {
		cfg.OnKeys = r.keepKeys
	}
	return cfg
}

// keepKeys writes keys that were changed in the running node where it would read them.
func (r *reloader) keepKeys(keys [][]byte) error {
	r.kept.Lock()
	defer r.kept.Unlock()
	r.now.node.Keys = keys
	r.writes++
	return r.now.node.OnKeys(keys)
}

// use names the node that is running.
func (r *reloader) use(n node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.node = n
}

// reload reads the settings and hands them to the node. It logs how that went, and
// tells the service manager.
func (r *reloader) reload(context.Context) (changed []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.notify.reloading(r.node)()
	next, changed, err := r.take()
	if err != nil {
		r.log.Error("not reloaded: all stays as it was", "error", oneLine(err))
		return nil, err
	}
	was := r.level.Level()
	if was != next.logLevel {
		changed = append(changed, "--log-level")
	}
	r.level.Set(min(was, next.logLevel)) // what follows is of interest by either
	if len(changed) == 0 {
		r.log.Info("reloaded: nothing has changed")
	} else {
		r.log.Info("reloaded", "changed", strings.Join(changed, ", "))
	}
	r.level.Set(next.logLevel)
	return changed, nil
}

// take reads the settings and has the node take them; again if somebody has changed the
// keys with "overlayd key" meanwhile, so that the key file has the last word.
func (r *reloader) take() (next daemonConfig, changed []string, err error) {
	for {
		r.kept.Lock()
		writes := r.writes
		r.kept.Unlock()
		if next, err = r.read(); err != nil {
			return next, nil, err
		}
		more, err := r.hand(next)
		if err != nil {
			return next, nil, err
		}
		for _, name := range more {
			if !slices.Contains(changed, name) {
				changed = append(changed, name)
			}
		}
		r.kept.Lock()
		same := writes == r.writes
		r.kept.Unlock()
		if same {
			return next, changed, nil
		}
	}
}

// hand has the node take new settings.
func (r *reloader) hand(next daemonConfig) (changed []string, err error) {
	r.kept.Lock()
	was := r.now
	r.kept.Unlock()
	if next.logFormat != was.logFormat {
		return nil, fmt.Errorf("--log-format %w", overlayd.ErrNeedsRestart)
	}
	next.node.Queues = was.node.Queues // which nobody has set, but follows the processors
	if changed, err = r.node.Reload(next.node); err != nil {
		return nil, err
	}
	if next.keyFile != was.keyFile && !slices.Contains(changed, "--key-file") {
		changed = append(changed, "--key-file")
	}
	r.kept.Lock()
	r.now = next
	r.kept.Unlock()
	return changed, nil
}
