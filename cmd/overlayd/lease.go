package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd"
)

func newLeaseCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lease",
		Short: "Show who has claimed which subnet",
		Args:  cobra.ArbitraryArgs,
		RunE:  needCommand,
	}
	cmd.AddCommand(newLeaseListCommand(env))
	return cmd
}

func newLeaseListCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List every claim on a subnet, and why it wins or loses",
		Long: `Lists every claim on a subnet that this node knows of: its owner, its state, for
how long it has been held, and why it wins or loses. A claim of a node that is
gone stays its own: the subnet waits for it to come back.`,
		Args: exactly(),
	}
	dial := addRunDir(cmd, env)
	asJSON := cmd.Flags().Bool("json", false, "print JSON (schema "+overlayd.LeasesSchema+")")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := dial()
		if err != nil {
			return err
		}
		l, err := ask(cmd.Context(), client.Leases)
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), l)
		}
		return writeLeases(cmd.OutOrStdout(), l.Leases, time.Now())
	}
	return cmd
}

func writeLeases(w io.Writer, leases []overlayd.LeaseStatus, now time.Time) error {
	if len(leases) == 0 {
		_, err := fmt.Fprintln(w, "no leases")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "PREFIX\tOWNER\tOWNER STATE\tSTATE\tCLASS\tHELD FOR\tWINS\tWHY")
	for _, l := range leases {
		owner, held, wins := l.Owner, "-", "no"
		if owner == "" {
			owner = l.OwnerID
		}
		if l.HeldSince != nil {
			held = age(now.Sub(*l.HeldSince))
		}
		if l.Wins {
			wins = "yes"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.Prefix, printable(owner), printable(l.OwnerState), l.State, l.Class, held, wins, printable(l.Why))
	}
	return tw.Flush()
}
