package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/overlayd/overlayd"
)

// minCapture is the least that overlayd.CaptureConfig bounds a file to.
const minCapture = 2000

// capturePaths are what --path takes.
func capturePaths() []string {
	return []string{"userspace", overlayd.PathUserspaceUDP, overlayd.PathUserspaceVXLAN}
}

func newCaptureCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "capture [--peer PEER|ADDR] [--path PATH] -w FILE.pcapng",
		Short: "Write packets, inner and outer, to a file for Wireshark",
		Long: `Writes inner packets and the datagrams that carry them to a file that Wireshark
reads, until SIGINT, or until the file has the size of --max-size. What overlayd
drops has the reason in a comment (frame.comment). Forwarding does not wait for it:
what cannot be written in time is left out, and counted in the file. What takes a
path of the kernel does not pass overlayd: capture that on the kernel's interfaces.`,
		Args: exactly(),
	}
	cmd.DisableFlagsInUseLine = true
	dial := addRunDir(cmd, env)
	var cfg overlayd.CaptureConfig
	var file, size string
	cmd.Flags().StringVar(&cfg.Peer, "peer", "", "only packets of this `PEER`: a name, an id or an overlay address")
	cmd.Flags().StringVar(&cfg.Path, "path", "", "only packets that take this `PATH`: "+strings.Join(capturePaths(), ", "))
	cmd.Flags().StringVarP(&file, "write", "w", "", "the `FILE`, which is replaced; - is the standard output")
	cmd.Flags().StringVar(&size, "max-size", "1G", "end at this `SIZE`, in bytes or with K, M or G")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if file == "" {
			return usagef("no file is given: use -w FILE.pcapng")
		}
		if cfg.Path != "" && !slices.Contains(capturePaths(), cfg.Path) {
			return usagef("--path: %q is not one of %s", cfg.Path, strings.Join(capturePaths(), ", "))
		}
		var err error
		if cfg.MaxBytes, err = parseSize(size); err != nil {
			return usagef("--max-size: %w", err)
		}
		if cfg.MaxBytes < minCapture {
			return usagef("--max-size: %s is too small: give at least %d bytes", size, minCapture)
		}
		client, err := dial()
		if err != nil {
			return err
		}
		ctx, cancel := interruptible(cmd)
		defer cancel()
		return captureTo(ctx, client, cfg, file, cmd.OutOrStdout())
	}
	return cmd
}

// capturer is what capture asks of a running node.
type capturer interface {
	Capture(ctx context.Context, cfg overlayd.CaptureConfig, w io.Writer) error
}

// captureTo captures into a file. One that was not begun, since the node has refused,
// is not made or emptied.
func captureTo(ctx context.Context, node capturer, cfg overlayd.CaptureConfig, file string, stdout io.Writer) (err error) {
	out := &captureFile{name: file}
	if file == "-" {
		out.w = stdout
	}
	defer func() {
		if out.f != nil {
			err = errors.Join(err, out.f.Close())
		}
	}()
	return node.Capture(ctx, cfg, out)
}

// captureFile makes its file when there is something to write.
type captureFile struct {
	name string
	f    *os.File
	w    io.Writer
}

func (c *captureFile) Write(b []byte) (int, error) {
	if c.w == nil {
		f, err := os.OpenFile(c.name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return 0, err
		}
		c.f, c.w = f, f
	}
	return c.w.Write(b)
}

// parseSize reads a number of bytes, such as 1500, 64K or 2G.
func parseSize(s string) (int64, error) {
	number, shift := s, 0
	for i, unit := range []string{"K", "M", "G"} {
		if n, ok := strings.CutSuffix(strings.ToUpper(s), unit); ok {
			number, shift = n, 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 1 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is not a size such as 64M", s)
	}
	return n << shift, nil
}
