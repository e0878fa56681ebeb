// Command path measures what the userspace path costs, with either encap, and what a
// hand-off to the kernel's VXLAN gives back, beside one that is made by hand in the same run: container to container,
// over the same kind of bridges and veths, one after the other in every round.
//
//	make bench-path
//	make bench-path BENCHFLAGS=-flood   # what a flood of junk does to TCP
//
// Only the ratios mean something: both systems share this machine's processors
// with the programs that send and receive.
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
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == roleCommand {
		if err := playRole(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench/path:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench/path:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	var (
		binary  = flag.String("overlayd", "bin/overlayd", "the daemon")
		args    = flag.String("args", "", "more arguments for the daemons")
		rounds  = flag.Int("rounds", 0, "how often each system is measured (default 5, with -flood 3)")
		length  = flag.Duration("time", 0, "how long each measurement takes (default 2s, with -flood 300ms)")
		only    = flag.String("only", "", "measure nothing but these, separated by commas")
		which   = flag.String("systems", "", "measure none but these, separated by commas: kernelvxlan, overlaydudp, overlaydvxlan, handoff")
		calls   = flag.Bool("calls", true, "count system calls, with eBPF")
		flooded = flag.Bool("flood", false, "measure nothing but what a flood of junk does to TCP")
	)
	flag.Parse()
	if *rounds == 0 {
		*rounds = 5
		if *flooded {
			*rounds = 3
		}
	}
	if *length == 0 {
		*length = 2 * time.Second
		if *flooded {
			*length = 300 * time.Millisecond
		}
	}
	if *rounds < 1 || *length < 0 || flag.NArg() > 0 {
		return errors.New("usage: path [flags]; see -h")
	}
	if *binary, err = filepath.Abs(*binary); err != nil {
		return err
	}
	var systems []*system
	defer func() {
		for _, s := range systems {
			err = errors.Join(err, s.close())
		}
	}()
	if *flooded {
		*which = "overlaydudp"
	}
	overlayd := func(name, base, path string, more ...string) func() (*system, error) {
		return func() (*system, error) {
			s, err := openOverlayd(ctx, name, *binary, slices.Concat(strings.Fields(*args), more)...)
			if s != nil {
				s.base, s.path = base, path
			}
			return s, err
		}
	}
	opens := []struct {
		name string
		open func() (*system, error)
	}{
		{"kernelvxlan", openVXLAN},
		{"overlaydudp", overlayd("overlaydudp", "kernelvxlan", "userspace-udp", "--fast-path", "off")},
		{"overlaydvxlan", overlayd("overlaydvxlan", "overlaydudp", "userspace-vxlan", "--fast-path", "off", "--encap", "vxlan")},
		{"handoff", overlayd("handoff", "kernelvxlan", "kernel-vxlan", "--fast-path", "kernel-vxlan")},
	}
	for _, o := range opens {
		if *which != "" && !slices.Contains(strings.Split(*which, ","), o.name) {
			continue
		}
		s, err := o.open()
		if s != nil {
			systems = append(systems, s)
		}
		if err != nil {
			return err
		}
		if err := s.awaitReach(ctx); err != nil {
			return err
		}
	}
	if len(systems) == 0 {
		return fmt.Errorf("no system is called %q", *which)
	}
	wanted := func(name string) bool {
		return *only == "" || slices.Contains(strings.Split(*only, ","), name)
	}
	chosen := slices.DeleteFunc(slices.Clone(measurements), func(m measurement) bool { return !wanted(m.name) })
	kinds := slices.DeleteFunc(slices.Clone(junks), func(j junk) bool { return !wanted(j.name) })
	if *flooded && len(kinds) == 0 || !*flooded && len(chosen) == 0 {
		return fmt.Errorf("no measurement is called %q", *only)
	}
	if *flooded {
		return measureFlood(ctx, os.Stdout, systems[0], *binary, kinds, *rounds, *length)
	}
	t := newTable(systems, chosen)
	for round := range *rounds {
		for _, m := range chosen {
			for i := range systems {
				// Neither is always the first.
				s := (i + round) % len(systems)
				v, err := m.measure(ctx, systems[s], *length)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", systems[s].name, m.name, err)
				}
				t.add(s, m, v)
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d done\n", round+1, *rounds)
	}
	t.print(os.Stdout)
	if *calls {
		for _, s := range systems {
			if s.name == "overlaydudp" {
				return countCalls(ctx, os.Stdout, s, *length)
			}
		}
	}
	return nil
}
