// Command bench measures what carries packets between containers, side by side: no overlay,
// the kernel's VXLAN, overlayd on each of its paths, and other systems. For each it counts
// how often a byte crosses between user and kernel, and what calls, processor time,
// throughput and latency come of that.
//
//	make bench                        # everything; bench/out/report.json and report.html
//	make bench-quick                  # in two minutes
//	make bench BENCHFLAGS='--paths userspace-udp,kernel-vxlan --rounds 9'
//	bin/overlayd-bench compare OLD.json NEW.json
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/overlayd/overlayd/bench/count"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/bench/report"
)

func main() {
	if err := dispatch(os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Exit(1)
	}
}

func dispatch(args []string) error {
	command := ""
	if len(args) > 0 {
		command = args[0]
	}
	switch command {
	case load.Command:
		return load.Play(args[1:])
	case count.KnownCommand:
		return count.Known()
	case janitorCommand:
		return clean(args[1:])
	case "compare":
		return compare(os.Stdout, args[1:])
	}
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	janitor, err := hireJanitor()
	if err != nil {
		return err
	}
	defer janitor.Close()
	return run(ctx, o)
}

// compare prints what has become better or worse between two reports.
func compare(w io.Writer, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: bench compare OLD.json NEW.json")
	}
	var reports [2]*report.Report
	for i, name := range args {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		reports[i], err = report.Read(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	worse, err := report.PrintComparison(w, report.Compare(reports[0], reports[1]))
	if err == nil && worse > 0 {
		err = fmt.Errorf("%d figures are worse", worse)
	}
	return err
}
