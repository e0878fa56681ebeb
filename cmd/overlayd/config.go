package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/overlayd/overlayd"
)

func newConfigCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Work with config files",
		Args:  cobra.ArbitraryArgs,
		RunE:  needCommand,
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "check FILE",
		Short: "Check a config file",
		Long: `Checks what "overlayd run --config FILE" would check before it touches the
system, OVERLAYD_* variables included. Prints "FILE: ok", or one line that says
what is wrong.`,
		Args: exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkConfig(args[0], env); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: ok\n", args[0])
			return err
		},
	})
	return cmd
}

func checkConfig(file string, env []string) error {
	list := settings()
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	addSettings(fs, list)
	if err := fs.Set(flagConfig, file); err != nil {
		return err
	}
	v, err := resolve(fs, env, list, true)
	if err != nil {
		return err
	}
	cfg, err := nodeConfig(v)
	if err != nil {
		return err
	}
	// New does nothing but check.
	if _, err := overlayd.New(cfg); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}
