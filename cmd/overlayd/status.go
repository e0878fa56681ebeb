package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd"
)

func newStatusCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show this node, its peers, their paths and why",
		Long: `Shows this node, its peers, the path to each and the reason for it. With --watch
it does so every second until Ctrl-C: on a terminal as one picture, elsewhere as
one line per second, with --json as one document per line.`,
		Args: exactly(),
	}
	dial := addRunDir(cmd, env)
	asJSON := cmd.Flags().Bool("json", false, "print JSON (schema "+overlayd.StatusSchema+")")
	watch := cmd.Flags().Bool("watch", false, "repeat every second until Ctrl-C")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := dial()
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if *watch {
			ctx, cancel := interruptible(cmd)
			defer cancel()
			return watchStatus(ctx, out, client.Status, *asJSON, isTerminal(out))
		}
		s, err := ask(cmd.Context(), client.Status)
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(out, s)
		}
		return writeStatus(out, s, time.Now())
	}
	return cmd
}

// watchInterval is the time between two pictures of --watch.
const watchInterval = time.Second

// clearScreen moves the cursor home and clears what is below it (ECMA-48 CUP,
// ED), which flickers less than clearing first.
const clearScreen = "\x1b[H\x1b[J"

func watchStatus(ctx context.Context, w io.Writer, status func(context.Context) (overlayd.Status, error), asJSON, terminal bool) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		s, err := ask(ctx, status)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		var b bytes.Buffer
		switch {
		case asJSON:
			err = json.NewEncoder(&b).Encode(s)
		case terminal:
			b.WriteString(clearScreen)
			err = writeStatus(&b, s, time.Now())
		default:
			fmt.Fprintf(&b, "%s %s\n", time.Now().Format(time.TimeOnly), watchLine(s))
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(b.Bytes()); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// watchLine is a status on one line.
func watchLine(s overlayd.Status) string {
	parts := []string{printable(s.Node.Name) + ": " + summary(s)}
	for _, p := range s.Peers {
		part := printable(p.Name) + " " + p.Path
		switch {
		case p.Path == overlayd.PathNone && p.PathReason != "":
			part += " (" + printable(p.PathReason) + ")"
		case p.RTTUS > 0:
			part += " " + microseconds(p.RTTUS)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}

// writeStatus writes a status for people.
func writeStatus(w io.Writer, s overlayd.Status, now time.Time) error {
	var b bytes.Buffer
	n := s.Node
	tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	fmt.Fprintf(tw, "node\t%s\t%s\n", printable(n.Name), n.ID)
	fmt.Fprintf(tw, "version\t%s\n", printable(n.Version))
	fmt.Fprintf(tw, "subnets\t%s\n", orNone(joinPrefixes(n.Subnets)))
	fmt.Fprintf(tw, "endpoints\t%s\n", orNone(strings.Join(n.Endpoints, ", ")))
	fmt.Fprintf(tw, "encap\t%s\n", encapLine(n))
	fmt.Fprintf(tw, "drops\t%s\n", dropsLine(s.Drops))
	for i, warning := range n.Warnings {
		label := "warnings"
		if i > 0 {
			label = ""
		}
		fmt.Fprintf(tw, "%s\t%s\n", label, printable(warning))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	b.WriteByte('\n')
	if err := writePeers(&b, s.Peers, now); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

func encapLine(n overlayd.NodeStatus) string {
	line := fmt.Sprintf("%s, MTU %d, fast path %s", n.Encap, n.MTU, n.FastPath)
	if n.Encap == "vxlan" {
		line += fmt.Sprintf(", VNI %d", n.VNI)
	}
	return line
}

// writePeers writes a table of peers.
func writePeers(w io.Writer, peers []overlayd.PeerStatus, now time.Time) error {
	if len(peers) == 0 {
		_, err := fmt.Fprintln(w, "no peers")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "PEER\tSTATE\tSUBNETS\tENDPOINT\tPATH\tFOR\tPROOF\tRTT\tTX\tRX\tWHY")
	for _, p := range peers {
		proof, rtt, since := "never", "-", "-"
		if p.LastProofMS != nil {
			proof = age(time.Duration(*p.LastProofMS)*time.Millisecond) + " ago"
		}
		if p.RTTUS > 0 {
			rtt = microseconds(p.RTTUS)
		}
		if !p.PathSince.IsZero() {
			since = age(now.Sub(p.PathSince))
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
			printable(p.Name), p.State, orNone(joinPrefixes(p.Subnets)), orNone(p.Endpoint), p.Path, since, proof, rtt,
			bytesText(p.TxBytes), bytesText(p.RxBytes), printable(p.PathReason))
	}
	return tw.Flush()
}

// printable replaces what could move a terminal's cursor: names and reasons
// of peers come out of gossip.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

func joinPrefixes(list []netip.Prefix) string {
	var texts []string
	for _, p := range list {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, ",")
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return printable(s)
}

// age writes a duration in its one or two largest units.
func age(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}

func microseconds(us int64) string {
	return fmt.Sprintf("%.3fms", float64(us)/1000)
}

// bytesText writes a number of bytes with a binary unit (IEC 80000-13).
func bytesText(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	f, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		if f /= 1024; f < 1024 {
			break
		}
	}
	return fmt.Sprintf("%.1f%s", f, unit)
}

// isTerminal tells whether w is a terminal: something with a window size or
// not, but with a line discipline.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
