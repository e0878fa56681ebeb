package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/bench/report"
	"github.com/overlayd/overlayd/internal/kernel/lab"
)

func describeHost(o *options, load string) report.Host {
	h := report.Host{
		Date: time.Now().UTC().Truncate(time.Second), Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), Go: runtime.Version(),
		Load: load, Rounds: o.rounds, Seconds: o.length.Seconds(), CPU: "unknown",
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			h.CPU = strings.TrimSpace(value)
			break
		}
	}
	return h
}

// userHZ is in how many ticks a second /proc/stat counts: USER_HZ in
// linux/include/asm-generic/param.h.
const userHZ = 100

// busy is the time that the machine's processors have worked, since it began.
func busy() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	// cpu user nice system idle iowait irq softirq steal (proc_stat(5))
	line, _, _ := bytes.Cut(b, []byte("\n"))
	f := strings.Fields(string(line))
	if len(f) < 8 || f[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var ticks uint64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseUint(f[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / userHZ, nil
}

// ran is the time that the threads of processes have run: the first field of schedstat
// (linux/Documentation/scheduler/sched-stats.rst).
func ran(processes []*lab.Process) (total time.Duration, err error) {
	for _, p := range processes {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.PID()))
		if err != nil || len(tasks) == 0 {
			return 0, fmt.Errorf("%s has no threads: %w", p.Name(), err)
		}
		for _, task := range tasks {
			b, err := os.ReadFile(task)
			if err != nil {
				continue // it has ended
			}
			first, _, _ := strings.Cut(string(b), " ")
			n, err := strconv.ParseInt(first, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", task, err)
			}
			total += time.Duration(n)
		}
	}
	return total, nil
}

// resident is the memory of processes in MiB: VmRSS (proc_pid_status(5)).
func resident(processes []*lab.Process) (mib float64, err error) {
	for _, p := range processes {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
				kib, err := strconv.ParseFloat(f[1], 64)
				if err != nil {
					return 0, err
				}
				mib += kib / 1024
			}
		}
	}
	return mib, nil
}
