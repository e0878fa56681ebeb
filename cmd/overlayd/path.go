package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd"
)

// pathTimeout bounds a change of a path, which the node itself gives up after 5 s.
const pathTimeout = 10 * time.Second

func newPathCommand(env []string) *cobra.Command {
	wishes := []string{overlayd.PathAuto, overlayd.PathUserspace, overlayd.PathKernelVXLAN, overlayd.PathDirect}
	cmd := &cobra.Command{
		Use:   "path PEER|ADDR " + strings.Join(wishes, "|"),
		Short: "Keep a peer on one kind of path, or let the node choose",
		Long: `Keeps a peer, given by its name, its id or an overlay address that it owns, on one
kind of path. It ends when the peer's packets take that path. When that cannot be
had within five seconds it fails with the reason, and all stays as it was. A path
that dies is left all the same, and taken again once it works. With auto the node
chooses again; it keeps a path that works. The choice holds until the node stops.`,
		Args: exactly("PEER|ADDR", "PATH"),
	}
	dial := addRunDir(cmd, env)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(wishes, args[1]) {
			return usagef("%q is not one of %s", args[1], strings.Join(wishes, ", "))
		}
		if args[0] == "" {
			return usagef("PEER|ADDR is empty")
		}
		client, err := dial()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), pathTimeout)
		defer cancel()
		res, err := client.SetPath(ctx, args[0], args[1])
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "path to %s is %s: %s\n", printable(res.Peer), res.Path, printable(res.Reason))
		return err
	}
	return cmd
}
