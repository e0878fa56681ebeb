package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd"
)

func newLeaseCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lease",
		Short: "Show who has claimed which subnet, and end claims of the dead",
		Args:  cobra.ArbitraryArgs,
		RunE:  needCommand,
	}
	cmd.AddCommand(newLeaseListCommand(env), newLeaseEvictCommand(env))
	return cmd
}

func newLeaseListCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List every claim on a subnet, and why it wins or loses",
		Long: `Lists every claim on a subnet that this node knows of: its owner, its state, for
how long it has been held, and why it wins or loses. A claim of a node that is
gone stays its own: the subnet waits for it to come back, until it is evicted, or
a new node finds no other free after the lease time (24 h).`,
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

// evictTimeout bounds an eviction, which has to spread through the gossip.
const evictTimeout = 40 * time.Second

func newLeaseEvictCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "evict PREFIX",
		Short: "Free the subnet of a node that is gone for good",
		Long: `Ends the claim of a node that is gone on its subnet, so that another node may
lease it. The owner is given some seconds to object; one that is there keeps its
subnet. One that comes back later gets another.`,
		Args: exactly("PREFIX"),
	}
	dial := addRunDir(cmd, env)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		prefix, err := netip.ParsePrefix(args[0])
		if err != nil {
			return usagef("%q is not a subnet such as 100.96.1.0/24", args[0])
		}
		if prefix.Masked() != prefix {
			return usagef("%v has host bits set: did you mean %v?", prefix, prefix.Masked())
		}
		client, err := dial()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), evictTimeout)
		defer cancel()
		if err := client.Evict(ctx, prefix); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%v is free\n", prefix)
		return err
	}
	return cmd
}

func writeLeases(w io.Writer, leases []overlayd.LeaseStatus, now time.Time) error {
	if len(leases) == 0 {
		_, err := fmt.Fprintln(w, "no leases")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "PREFIX\tOWNER\tOWNER STATE\tSTATE\tCLASS\tHELD FOR\tRENEWED\tWINS\tWHY")
	for _, l := range leases {
		owner, held, renewed, wins := l.Owner, "-", "-", "no"
		if owner == "" {
			owner = l.OwnerID
		}
		if l.HeldSince != nil {
			held = age(now.Sub(*l.HeldSince))
		}
		if l.Renewed != nil {
			renewed = age(now.Sub(*l.Renewed)) + " ago"
		}
		if l.Wins {
			wins = "yes"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.Prefix, printable(owner), printable(l.OwnerState), l.State, l.Class, held, renewed, wins, printable(l.Why))
	}
	return tw.Flush()
}
