// Command flood measures what a flood of junk from a stranger leaves of a TCP stream
// through overlayd, beside what is left where the host's kernel drops the same junk.
//
//	make bench-flood
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/bench/system"
	"github.com/overlayd/overlayd/internal/kernel/lab"
)

func main() {
	load.Roles["flood"] = flood
	var err error
	if len(os.Args) > 1 && os.Args[1] == load.Command {
		err = load.Play(os.Args[2:])
	} else {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		err = run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/flood:", err)
		os.Exit(1)
	}
}

// target is an overlay with a stranger on its underlay.
type target struct {
	*system.System
	stranger *lab.Host
}

func run(ctx context.Context) (err error) {
	var (
		binary = flag.String("overlayd", "bin/overlayd", "the daemon")
		args   = flag.String("args", "", "more arguments for the daemons")
		rounds = flag.Int("rounds", 3, "how often each kind of junk is tried")
		length = flag.Duration("time", 300*time.Millisecond, "how long each measurement takes")
		only   = flag.String("only", "", "no junk but this, separated by commas")
	)
	flag.Parse()
	if *rounds < 1 || *length <= 0 || flag.NArg() > 0 {
		return errors.New("usage: flood [flags]; see -h")
	}
	kinds := slices.DeleteFunc(slices.Clone(junks), func(j junk) bool {
		return *only != "" && !slices.Contains(strings.Split(*only, ","), j.name)
	})
	if len(kinds) == 0 {
		return fmt.Errorf("no junk is called %q", *only)
	}
	if *binary, err = filepath.Abs(*binary); err != nil {
		return err
	}
	s, err := system.Open(ctx, "userspace-udp", system.Config{Overlayd: *binary, Args: strings.Fields(*args)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	t := &target{System: s}
	if t.stranger, err = s.Stranger(); err != nil {
		return err
	}
	return measureFlood(ctx, os.Stdout, t, *binary, kinds, *rounds, *length)
}
