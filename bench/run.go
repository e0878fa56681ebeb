package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/overlayd/overlayd/bench/count"
	"github.com/overlayd/overlayd/bench/load"
	"github.com/overlayd/overlayd/bench/report"
	"github.com/overlayd/overlayd/bench/system"
)

// traffic is what makes TCP and UDP: iperf3, or our own programs.
type traffic struct {
	name string
	tcp  func(context.Context, *system.System, int, time.Duration) (load.Transferred, error)
	udp  func(context.Context, *system.System, int, time.Duration) (float64, error)
}

func chooseTraffic(own bool) traffic {
	if i := load.NewIperf(); i != nil && !own {
		return traffic{i.Version(), i.TCP, i.UDP}
	}
	return traffic{"own programs", load.TCP, load.UDP}
}

// subject is a path while it is measured.
type subject struct {
	*report.Path
	sys *system.System // nil: it does not run
}

// run measures, and writes the reports.
func run(ctx context.Context, o *options) (err error) {
	began := time.Now()
	say := progress(o.stderr, began)
	// The counters come first: where they are wrong nothing is measured.
	say("checking the counters on a known workload")
	off, err := count.SelfCheck(ctx)
	if err != nil {
		return err
	}
	t := chooseTraffic(o.own)
	rep := &report.Report{Schema: report.Schema, Host: describeHost(o, t.name)}
	rep.Host.SelfCheck = 100 * off
	for _, name := range o.paths {
		rep.Paths = append(rep.Paths, report.Path{Name: name, Samples: map[string][]float64{}, Spread: map[string]report.Spread{}})
	}
	subjects, err := open(ctx, o, rep, say)
	defer func() {
		for _, s := range subjects {
			if s.sys != nil {
				err = errors.Join(err, s.sys.Close())
			}
		}
	}()
	if err != nil {
		return err
	}
	for i := range o.rounds {
		say("round %d of %d", i+1, o.rounds)
		if err := measureRound(ctx, subjects, t, o.length, i, say); err != nil {
			return err
		}
	}
	for _, s := range subjects {
		if s.sys == nil {
			continue
		}
		say("counting %s", s.Name)
		if err := s.failed(ctx, say, countPath(ctx, s, o.length)); err != nil {
			return err
		}
	}
	for i := range rep.Paths {
		conclude(&rep.Paths[i])
	}
	for _, p := range rep.Paths {
		if rep.Host.Version == "" && isOurs(p.Name) {
			rep.Host.Version = p.Version
		}
	}
	rep.Host.TookSecs = time.Since(began).Round(time.Second).Seconds()
	if err := write(o, rep); err != nil {
		return err
	}
	say("%s and report.html are written", filepath.Join(o.out, "report.json"))
	for _, p := range rep.Paths {
		if !p.Ran && isOurs(p.Name) { // a contender may be missing, but not this
			err = errors.Join(err, fmt.Errorf("%s did not run: %s", p.Name, p.Reason))
		}
	}
	return err
}

// isOurs tells the paths that need nothing but this project and the kernel.
func isOurs(name string) bool {
	return slices.Index(report.Names, name) < slices.Index(report.Names, "wireguard-go")
}

// progress says what happens, with the time since the beginning.
func progress(w io.Writer, began time.Time) func(string, ...any) {
	var mu sync.Mutex
	return func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(w, "%4.0f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
}

// open builds all systems, some at a time. Those that it returns are to be closed, also
// when there is an error.
func open(ctx context.Context, o *options, rep *report.Report, say func(string, ...any)) ([]*subject, error) {
	cfg := system.Config{
		Overlayd: o.overlayd, Args: o.args, Tools: filepath.Join(o.out, "tools"), Install: o.install,
		Flanneld: o.flanneld, Etcd: o.etcd, Log: say,
	}
	var subjects []*subject
	var wg sync.WaitGroup
	turns := make(chan struct{}, 3)
	for i := range rep.Paths {
		s := &subject{Path: &rep.Paths[i]}
		subjects = append(subjects, s)
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			sys, err := system.Open(ctx, s.Name, cfg)
			if err != nil {
				s.Reason = oneLine(err)
				say("not run: %s", s.Reason)
				return
			}
			s.sys, s.Ran = sys, true
			s.MTU, s.Version, s.Detail, s.Encrypts = sys.MTU, sys.Version, sys.Detail, sys.Encrypts
			say("%s is up", s.Name)
		})
	}
	wg.Wait()
	return subjects, context.Cause(ctx)
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// failed takes note that a path could not be measured, and has it run no further. It
// returns the error that ends everything.
func (s *subject) failed(ctx context.Context, say func(string, ...any), err error) error {
	if err == nil || ctx.Err() != nil {
		return context.Cause(ctx)
	}
	why := oneLine(err)
	err = s.sys.Close()
	s.sys = nil
	*s.Path = report.Path{Name: s.Name, Reason: why, Version: s.Version, Detail: s.Detail, Encrypts: s.Encrypts}
	say("%s fails: %s", s.Name, why)
	return err
}

// figures are what is measured in each round, by their names in the report.
var figures = []struct {
	name    string
	measure func(ctx context.Context, s *subject, t traffic, length time.Duration) error
}{
	{"tcp_gbps", func(ctx context.Context, s *subject, t traffic, length time.Duration) error {
		worked, err := busy()
		if err != nil {
			return err
		}
		daemons := slices.Concat(s.sys.Daemons[0], s.sys.Daemons[1])
		own, err := ran(daemons)
		if err != nil {
			return err
		}
		came, err := t.tcp(ctx, s.sys, 1, length)
		if err != nil {
			return err
		}
		now, err := busy()
		if err != nil {
			return err
		}
		ownNow, err := ran(daemons)
		if err != nil {
			return err
		}
		gb := float64(came.Bytes) / 1e9
		s.add("tcp_gbps", came.Gbps)
		s.add("cpu_s_per_gb", (now-worked).Seconds()/gb)
		s.add("cpu_s_per_gb_daemon", (ownNow-own).Seconds()/gb)
		return nil
	}},
	{"tcp4_gbps", func(ctx context.Context, s *subject, t traffic, length time.Duration) error {
		came, err := t.tcp(ctx, s.sys, 4, length)
		s.add("tcp4_gbps", came.Gbps)
		return err
	}},
	{"udp64_kpps", func(ctx context.Context, s *subject, t traffic, length time.Duration) error {
		n, err := t.udp(ctx, s.sys, 64, length)
		s.add("udp64_kpps", n/1000)
		return err
	}},
	{"udp1400_gbps", func(ctx context.Context, s *subject, t traffic, length time.Duration) error {
		// Where the MTU is smaller it takes two fragments each, as it would anywhere.
		n, err := t.udp(ctx, s.sys, 1400, length)
		s.add("udp1400_gbps", n*1400*8/1e9)
		return err
	}},
	{"rtt_us_p50", func(ctx context.Context, s *subject, _ traffic, length time.Duration) error {
		p50, p99, err := load.PingPong(ctx, s.sys, length/2)
		s.add("rtt_us_p50", float64(p50)/1000)
		s.add("rtt_us_p99", float64(p99)/1000)
		return err
	}},
}

func (s *subject) add(name string, v float64) { s.Samples[name] = append(s.Samples[name], v) }

// measureRound measures everything once, one path after the other for each figure, so that
// what the machine does meanwhile is everybody's.
func measureRound(ctx context.Context, subjects []*subject, t traffic, length time.Duration, round int, say func(string, ...any)) error {
	for _, f := range figures {
		for i := range subjects {
			s := subjects[(i+round)%len(subjects)] // nobody is always the first
			if s.sys == nil {
				continue
			}
			err := f.measure(ctx, s, t, length)
			if err != nil {
				err = fmt.Errorf("%s: %w", f.name, err)
			}
			if err := s.failed(ctx, say, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// conclude makes medians of the samples.
func conclude(p *report.Path) {
	for name, to := range map[string]*float64{
		"tcp_gbps": &p.TCPGbps, "tcp4_gbps": &p.TCP4Gbps, "udp64_kpps": &p.UDP64Kpps, "udp1400_gbps": &p.UDP1400Gbps,
		"rtt_us_p50": &p.RTTP50us, "rtt_us_p99": &p.RTTP99us, "cpu_s_per_gb": &p.CPUSecsPerGB, "cpu_s_per_gb_daemon": &p.CPUSecsPerGBDaemon,
	} {
		if v := p.Samples[name]; len(v) > 0 {
			*to = report.Median(v)
			p.Spread[name] = report.SpreadOf(v)
		}
	}
}

// write writes the reports, and prints the table.
func write(o *options, rep *report.Report) error {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	for name, show := range map[string]func(*os.File) error{
		"report.json": func(f *os.File) error { return rep.Write(f) },
		"report.html": func(f *os.File) error { return rep.HTML(f) },
		"report.md":   func(f *os.File) error { return rep.Markdown(f) },
	} {
		if err := writeFile(filepath.Join(o.out, name), show); err != nil {
			return err
		}
	}
	switch o.json {
	case "":
	case "-":
		return rep.Write(o.stdout)
	default:
		if err := writeFile(o.json, func(f *os.File) error { return rep.Write(f) }); err != nil {
			return err
		}
	}
	return rep.Table(o.stdout)
}

func writeFile(name string, show func(*os.File) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(show(f), f.Close())
}
