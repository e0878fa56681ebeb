package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd"
)

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), versionLine())
			return err
		},
	}
}

func versionLine() string {
	return fmt.Sprintf("overlayd %s %s/%s %s", overlayd.BuildVersion(), runtime.GOOS, runtime.GOARCH, runtime.Version())
}
