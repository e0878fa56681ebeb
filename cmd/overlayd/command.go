package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/overlayd/overlayd"
)

// The exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2 // flags, config file, values that can never work
)

// usageError is an error of the person who typed the command or wrote the
// config file: exit code 2.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// run is the whole program: it returns the exit code. env has the form of
// os.Environ.
func run(args []string, stdout, stderr io.Writer, env []string) int {
	root := newRootCommand(env)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	addCompletion(root)
	understood := false
	root.PersistentPreRun = func(*cobra.Command, []string) { understood = true }
	err := root.ExecuteContext(context.Background())
	if err == nil {
		return exitDone
	}
	fmt.Fprintf(stderr, "overlayd: %s\n", oneLine(err))
	var usage *usageError
	if !understood || errors.As(err, &usage) || errors.Is(err, overlayd.ErrConfig) {
		return exitUsage
	}
	return exitFailed
}

// oneLine is the text of err on one line and without the program's name,
// which errors of package overlayd may carry.
func oneLine(err error) string {
	var lines []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.TrimPrefix(strings.Join(lines, "; "), "overlayd: ")
}

func newRootCommand(env []string) *cobra.Command {
	root := &cobra.Command{
		Use:   "overlayd",
		Short: "An overlay network between hosts, without a store",
		Long: `overlayd gives every host a subnet of one overlay network and carries packets
between the hosts inside UDP. Subnets are agreed on by gossip: there is no store
to run.

A setting of "overlayd run" is a flag, an OVERLAYD_* variable (--udp-port is
OVERLAYD_UDP_PORT) or a key of the config file (udp_port); the first of these
wins. Exit codes: 0 done, 1 failed, 2 wrong usage.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
	}
	// Not cobra's own --version: its template would be the one use of text/template, and
	// with that, which finds methods by their names, the linker keeps every method of
	// everything, 4 MB of them.
	version := root.Flags().BoolP("version", "v", false, "version for overlayd")
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if *version {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), versionLine())
			return err
		}
		return needCommand(cmd, args)
	}
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(newHelpCommand())
	root.AddCommand(
		newRunCommand(env),
		newStatusCommand(env),
		newPeersCommand(env),
		newRoutesCommand(env),
		newDropsCommand(env),
		newLeaseCommand(env),
		newKeyCommand(env),
		newPingCommand(env),
		newPathCommand(env),
		newCaptureCommand(env),
		newReloadCommand(env),
		newLeaveCommand(env),
		newCleanupCommand(env),
		newConfigCommand(env),
		newVersionCommand(),
		newDemoCommand(),
	)
	return root
}

// addCompletion adds cobra's completion command, but one that does not succeed
// without a shell to write for. The output of root must be set.
func addCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Args, cmd.RunE = cobra.ArbitraryArgs, needCommand
		}
	}
}

// flagError is what becomes of pflag's errors.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
		written := "--" + unknown.GetSpecifiedName()
		if like := didYouMean(written, names); like != "" && unknown.GetSpecifiedShortnames() == "" {
			return usagef("unknown flag %s%s", written, like)
		}
	}
	return usagef("%w: %s", err, see(cmd))
}

// see says where a command is explained.
func see(cmd *cobra.Command) string { return fmt.Sprintf("see %q", cmd.CommandPath()+" --help") }

// newHelpCommand replaces cobra's, which calls an unknown command a success.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Explain a command",
		RunE: func(cmd *cobra.Command, args []string) error {
			about := cmd.Root()
			for i, name := range args {
				next, _, err := about.Find(args[i : i+1])
				if err != nil || next == about {
					return needCommand(about, []string{name})
				}
				about = next
			}
			about.InitDefaultHelpFlag()
			about.InitDefaultVersionFlag()
			return about.Help()
		},
	}
}

// needCommand is run when a command that only has subcommands gets none, or
// one that does not exist.
func needCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("a command is missing: %s", see(cmd))
	}
	cmd.SuggestionsMinimumDistance = 2
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		return usagef("unknown command %q: did you mean %q?", args[0], strings.TrimPrefix(cmd.CommandPath()+" "+like[0], "overlayd "))
	}
	return usagef("unknown command %q: %s", args[0], see(cmd))
}

// exactly checks that a command has one argument for each of the names.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("%s is missing: %s", names[len(args)], see(cmd))
		case len(args) > len(names):
			return usagef("unexpected argument %q: %s", args[len(names)], see(cmd))
		}
		return nil
	}
}

// interruptible returns a context that ends at Ctrl-C or SIGTERM, for commands
// that wait.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
}
