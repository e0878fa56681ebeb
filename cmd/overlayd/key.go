package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd"
)

func newKeyCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make and change the keys of a cluster",
		Long: `Makes keys and changes those of a running node. To give a cluster another key
without a gap, go over all nodes three times: "key add" on each, then "key use"
on each, then "key remove" of the old one on each. A node that was started with
--key-file keeps the change there for its next start.`,
		Args: cobra.ArbitraryArgs,
		RunE: needCommand,
	}
	cmd.AddCommand(newKeyGenerateCommand(), newKeyListCommand(env), newKeyAddCommand(env),
		newKeyChangeCommand(env, "use", "Send with an installed key", (*overlayd.Client).UseKey),
		newKeyChangeCommand(env, "remove", "Remove an installed key", (*overlayd.Client).RemoveKey))
	return cmd
}

func newKeyGenerateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "generate",
		Short: "Print a new key",
		Long: `Prints a new key of 256 random bits in base64, as a line for a key file:

  (umask 077; overlayd key generate > /etc/overlayd.key)`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			key := make([]byte, 32)
			rand.Read(key) // never fails (crypto/rand)
			_, err := fmt.Fprintln(cmd.OutOrStdout(), base64.StdEncoding.EncodeToString(key))
			return err
		},
	}
}

func newKeyListCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the installed keys by their ids",
		Args:  exactly(),
	}
	dial := addRunDir(cmd, env)
	asJSON := cmd.Flags().Bool("json", false, "print JSON (schema "+overlayd.KeysSchema+")")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := dial()
		if err != nil {
			return err
		}
		k, err := ask(cmd.Context(), client.Keys)
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(cmd.OutOrStdout(), k)
		}
		return writeKeys(cmd.OutOrStdout(), k.Keys)
	}
	return cmd
}

func writeKeys(w io.Writer, keys []overlayd.KeyStatus) error {
	if len(keys) == 0 {
		_, err := fmt.Fprintln(w, "no keys: gossip is not encrypted")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "ID\tBITS\tUSE")
	for _, k := range keys {
		use := "accepted"
		if k.Sending {
			use = "accepted, used for sending"
		}
		fmt.Fprintf(tw, "%s\t%d\t%s\n", printable(k.ID), k.Bits, use)
	}
	return tw.Flush()
}

func newKeyAddCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add FILE|-",
		Short: "Accept the keys of a key file, too",
		Long: `Installs the keys of a key file ("-": of standard input) beside those that the
node has. A key is never an argument, where others could see it.`,
		Args: exactly("FILE"),
	}
	dial := addRunDir(cmd, env)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var keys [][]byte
		var err error
		if args[0] == "-" {
			keys, err = parseKeys("standard input", io.LimitReader(cmd.InOrStdin(), maxKeyFile))
		} else {
			keys, err = readKeyFile(args[0])
		}
		if err != nil {
			return err
		}
		client, err := dial()
		if err != nil {
			return err
		}
		for _, k := range keys {
			if err := client.AddKey(cmd.Context(), k); err != nil {
				return err
			}
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is accepted\n", overlayd.KeyID(k)); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

// keyChange is what a command does to the key with an id.
type keyChange func(c *overlayd.Client, ctx context.Context, id string) error

// newKeyChangeCommand makes a command that does one thing to one key.
func newKeyChangeCommand(env []string, name, short string, change keyChange) *cobra.Command {
	cmd := &cobra.Command{
		Use:   name + " ID",
		Short: short,
		Long:  short + ", given by its id or the beginning of it; see \"overlayd key list\".",
		Args:  exactly("ID"),
	}
	dial := addRunDir(cmd, env)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		client, err := dial()
		if err != nil {
			return err
		}
		return change(client, cmd.Context(), args[0])
	}
	return cmd
}

// keepKeys returns a function that writes a node's keys to its key file, as a
// whole or not at all.
func keepKeys(path string) func([][]byte) error {
	return func(keys [][]byte) error {
		f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp*") // mode 0600
		if err != nil {
			return err
		}
		defer os.Remove(f.Name()) // fails, as it should, once it is renamed
		_, err = f.WriteString("# The first key is used for sending, all are accepted. Written by overlayd.\n")
		for _, k := range keys {
			if err == nil {
				_, err = fmt.Fprintf(f, "%s # %s\n", base64.StdEncoding.EncodeToString(k), overlayd.KeyID(k))
			}
		}
		if err == nil {
			err = f.Sync()
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			err = os.Rename(f.Name(), path)
		}
		return err
	}
}
