package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd"
)

// leaveTimeout bounds leaving: good-bye has to spread through the gossip.
const leaveTimeout = 40 * time.Second

func newLeaveCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Release this node's subnet for others and stop it",
		Long: `Releases this node's subnet, so that another node may take it, says good-bye to
the peers and stops the daemon. A plain stop (SIGTERM) keeps the subnet.`,
		Args: exactly(),
	}
	dial := addRunDir(cmd, env)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := dial()
		if err != nil {
			return err
		}
		s, err := ask(cmd.Context(), client.Status)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), leaveTimeout)
		defer cancel()
		if err := client.Leave(ctx); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s has left and stopped; released: %s\n", printable(s.Node.Name), orNone(joinPrefixes(s.Node.Subnets)))
		return err
	}
	return cmd
}

func newCleanupCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove what a daemon that is gone has left behind",
		Long: `Removes device, routes, sockets and files that a daemon left behind when it was
killed, and prints what it removed. Identity and lease stay. Refuses while a
daemon runs. Needs CAP_NET_ADMIN.`,
		Args: exactly(),
	}
	list := named(flagRunDir, flagSubnetFile, flagDevice)
	addSettings(cmd.Flags(), list)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v, err := resolve(cmd.Flags(), env, list, false)
		if err != nil {
			return err
		}
		removed, err := overlayd.Cleanup(overlayd.CleanupConfig{
			RunDir:     v.text(flagRunDir),
			SubnetFile: subnetFile(v),
			Device:     v.text(flagDevice),
		})
		out := cmd.OutOrStdout()
		for _, what := range removed {
			fmt.Fprintf(out, "removed %s\n", what)
		}
		if err == nil && len(removed) == 0 {
			_, err = fmt.Fprintln(out, "nothing to remove")
		}
		return err
	}
	return cmd
}
