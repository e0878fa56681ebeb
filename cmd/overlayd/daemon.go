package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd"
)

// answerTimeout is how long a running node may take for an answer that it has
// ready.
const answerTimeout = 5 * time.Second

// addRunDir gives a command that talks to a running node its --run-dir and
// returns how to reach that node.
func addRunDir(cmd *cobra.Command, env []string) func() (*overlayd.Client, error) {
	list := named(flagRunDir)
	list[0].help = "run directory of the node to talk to"
	addSettings(cmd.Flags(), list)
	return func() (*overlayd.Client, error) {
		v, err := resolve(cmd.Flags(), env, list, false)
		if err != nil {
			return nil, err
		}
		client, err := overlayd.Dial(v.text(flagRunDir))
		return client, explainDial(v.text(flagRunDir), err)
	}
}

// explainDial says what to do about a node that cannot be reached.
func explainDial(runDir string, err error) error {
	switch {
	case errors.Is(err, overlayd.ErrNotRunning):
		return fmt.Errorf("%w: start one with \"overlayd run\", or name its run directory with --run-dir", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: be root%s", err, orGroup(filepath.Join(runDir, "overlayd.sock")))
	}
	return err
}

// orGroup names the group that may use the socket, where it can be told and is
// not root's own.
func orGroup(socket string) string {
	fi, err := os.Stat(socket)
	if err != nil {
		return " or a member of the socket's group"
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Gid == 0 {
		return ""
	}
	gid := strconv.FormatUint(uint64(st.Gid), 10)
	if g, err := user.LookupGroupId(gid); err == nil {
		return fmt.Sprintf(" or a member of group %s", g.Name)
	}
	return fmt.Sprintf(" or a member of group %s", gid)
}

// printJSON writes a document, indented.
func printJSON(w io.Writer, doc any) error {
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// ask gives a question to a running node its time limit.
func ask[T any](ctx context.Context, question func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return question(ctx)
}
