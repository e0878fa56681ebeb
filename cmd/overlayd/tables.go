package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd"
)

func newPeersCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "Show the peers and the paths to them",
		Args:  exactly(),
	}
	dial := addRunDir(cmd, env)
	asJSON := cmd.Flags().Bool("json", false, "print JSON (schema "+overlayd.PeersSchema+")")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := dial()
		if err != nil {
			return err
		}
		p, err := ask(cmd.Context(), client.Peers)
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), p)
		}
		return writePeers(cmd.OutOrStdout(), p.Peers, time.Now())
	}
	return cmd
}

func newDropsCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "drops",
		Short: "Show how many packets were dropped, by reason",
		Args:  exactly(),
	}
	dial := addRunDir(cmd, env)
	asJSON := cmd.Flags().Bool("json", false, "print JSON (schema "+overlayd.DropsSchema+")")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := dial()
		if err != nil {
			return err
		}
		d, err := ask(cmd.Context(), client.Drops)
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), d)
		}
		return writeDrops(cmd.OutOrStdout(), d.Drops)
	}
	return cmd
}

func newRoutesCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "routes [get ADDR]",
		Short: "Show which peer each prefix goes to, or where one address goes",
		Long: `Shows the forwarding table: which peer each prefix goes to, by which path and
why. "routes get ADDR" shows the one entry that a packet to ADDR takes.`,
	}
	dial := addRunDir(cmd, env)
	asJSON := cmd.Flags().Bool("json", false, "print JSON (schema "+overlayd.RoutesSchema+")")
	var addr netip.Addr
	cmd.Args = func(cmd *cobra.Command, args []string) (err error) {
		if len(args) == 0 {
			return nil
		}
		if args[0] != "get" {
			return usagef("unexpected argument %q: did you mean \"routes get ADDR\"?", args[0])
		}
		if err := exactly("get", "ADDR")(cmd, args); err != nil {
			return err
		}
		addr, err = parseAddr(args[1])
		if err != nil {
			return usagef("%w", err)
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := dial()
		if err != nil {
			return err
		}
		r, err := ask(cmd.Context(), func(ctx context.Context) (overlayd.Routes, error) {
			if !addr.IsValid() {
				return client.Routes(ctx)
			}
			route, err := client.Lookup(ctx, addr)
			return overlayd.Routes{Schema: overlayd.RoutesSchema, Routes: []overlayd.RouteStatus{route}}, err
		})
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), r)
		}
		return writeRoutes(cmd.OutOrStdout(), r.Routes)
	}
	return cmd
}

func writeRoutes(w io.Writer, routes []overlayd.RouteStatus) error {
	if len(routes) == 0 {
		_, err := fmt.Fprintln(w, "no routes")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "PREFIX\tPEER\tENDPOINT\tPATH\tWHY")
	for _, r := range routes {
		endpoint := r.Endpoint
		if endpoint == "" {
			endpoint = "-"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", r.Prefix, printable(r.Peer), printable(endpoint), r.Path, printable(r.Reason))
	}
	return tw.Flush()
}

func writeDrops(w io.Writer, drops map[string]uint64) error {
	if len(drops) == 0 {
		_, err := fmt.Fprintln(w, "no drops")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "REASON\tPACKETS")
	for _, reason := range slices.Sorted(maps.Keys(drops)) {
		fmt.Fprintf(tw, "%s\t%d\n", printable(reason), drops[reason])
	}
	return tw.Flush()
}

// dropsLine lists the reasons that have dropped anything.
func dropsLine(drops map[string]uint64) string {
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(drops)) {
		if drops[reason] > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", printable(reason), drops[reason]))
		}
	}
	return orNone(strings.Join(parts, ", "))
}
