package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/bench/report"
)

// options are what is asked for.
type options struct {
	overlayd string // the daemon, an absolute path
	args     []string
	out      string // a directory
	paths    []string
	rounds   int
	length   time.Duration
	own      bool   // traffic by our own programs, also where iperf3 is installed
	install  bool   // contenders that are not here are installed
	json     string // where the report goes beside out; "-": standard output, in place of the table
	flanneld string
	etcd     string
	stdout   io.Writer // the table
	stderr   io.Writer // what happens
}

func parseOptions(args []string) (*options, error) {
	o := &options{flanneld: os.Getenv("FLANNELD"), etcd: os.Getenv("ETCD"), stdout: os.Stdout, stderr: os.Stderr}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.overlayd, "overlayd", "bin/overlayd", "the daemon")
	more := f.String("args", "", "more arguments for overlayd")
	f.StringVar(&o.out, "out", "bench/out", "directory for report.json, report.html and the programs that are installed")
	paths := f.String("paths", "", "measure these paths, separated by commas (default all): "+strings.Join(report.Names, ", "))
	f.IntVar(&o.rounds, "rounds", 5, "how often each path is measured")
	f.DurationVar(&o.length, "time", time.Second, "how long each measurement takes")
	f.BoolVar(&o.own, "own-load", false, "make the traffic by programs of this one, also where iperf3 is installed")
	quick := f.Bool("quick", false, "2 rounds of 0.2 s, own load, nothing is installed")
	f.StringVar(&o.json, "json", "", "write the report to this file as well; -: to standard output, in place of the table")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	o.install = true
	if *quick {
		o.own, o.install = true, false
		set := map[string]bool{}
		f.Visit(func(f *flag.Flag) { set[f.Name] = true })
		if !set["rounds"] {
			o.rounds = 2
		}
		if !set["time"] {
			o.length = 200 * time.Millisecond
		}
	}
	o.args, o.paths = strings.Fields(*more), report.Names
	if *paths != "" {
		o.paths = strings.Split(*paths, ",")
	}
	for _, p := range o.paths {
		if !slices.Contains(report.Names, p) {
			return nil, fmt.Errorf("no path is called %q; there are %s", p, strings.Join(report.Names, ", "))
		}
	}
	slices.SortFunc(o.paths, func(a, b string) int { return slices.Index(report.Names, a) - slices.Index(report.Names, b) })
	o.paths = slices.Compact(o.paths)
	switch {
	case f.NArg() > 0:
		return nil, fmt.Errorf("%q is no command; see -h", f.Arg(0))
	case o.rounds < 1:
		return nil, errors.New("--rounds: at least 1")
	case o.length < 50*time.Millisecond:
		return nil, errors.New("--time: at least 50ms")
	}
	for _, p := range []*string{&o.overlayd, &o.out} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return nil, err
		}
		*p = abs
	}
	if _, err := os.Stat(o.overlayd); err != nil {
		return nil, fmt.Errorf("--overlayd: %w (make build)", err)
	}
	return o, nil
}
