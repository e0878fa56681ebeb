package count

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// ErrWrong: the counters are off on a known workload, so that nothing they say counts.
var ErrWrong = errors.New("the counters are wrong")

// tolerance is how far off they may be.
const tolerance = 0.01

// SelfCheck counts a process that does what is known beforehand, in a namespace of its own,
// and returns by how much the counters are off at the most, as a part of what is right. The
// error is ErrWrong if that is more than a hundredth.
func SelfCheck(ctx context.Context) (off float64, err error) {
	l, err := lab.New(lab.Config{Name: "selfcheck"})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	h, err := l.Host("known")
	if err != nil {
		return 0, err
	}
	// Nothing but the known packets shall leave by the device.
	if err := h.Sysctl("net/ipv6/conf/default/disable_ipv6", "1"); err != nil {
		return 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	in, feed, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	defer feed.Close()
	out, told, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer out.Close()
	cmd := exec.Command(self, KnownCommand)
	cmd.Stdin, cmd.ExtraFiles = in, []*os.File{told}
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	p, err := h.Start(cmd, lab.StartOptions{Name: "known"})
	told.Close()
	if err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		tail, _ := p.Tail(3)
		return 0, fmt.Errorf("the known workload does not begin: %v: %s", errors.Join(lines.Err(), p.Err()), tail)
	}
	c, err := New()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.Watch(p.PID()); err != nil {
		return 0, err
	}
	before, err := c.Read()
	if err != nil {
		return 0, err
	}
	if err := p.Signal(syscall.SIGUSR1); err != nil {
		return 0, err
	}
	var e Expected
	if !lines.Scan() {
		tail, _ := p.Tail(3)
		return 0, fmt.Errorf("the known workload fails: %v: %s", errors.Join(lines.Err(), p.Err()), tail)
	}
	if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
		return 0, err
	}
	after, err := c.Read()
	if err != nil {
		return 0, err
	}
	return e.compare(after.Since(before).Processes[p.PID()])
}

// compare tells by how much got is off.
func (e *Expected) compare(got Process) (off float64, err error) {
	for _, c := range []struct {
		what      string
		got, want uint64
	}{
		{"times written to a pipe", got.Files[e.PipeIn].FromUser.Times, e.Pipe.FromUser.Times},
		{"bytes written to a pipe", got.Files[e.PipeIn].FromUser.Bytes, e.Pipe.FromUser.Bytes},
		{"times read from a pipe", got.Files[e.PipeOut].ToUser.Times, e.Pipe.ToUser.Times},
		{"bytes read from a pipe", got.Files[e.PipeOut].ToUser.Bytes, e.Pipe.ToUser.Bytes},
		{"messages sent, many in a call", got.Files[e.PairIn].FromUser.Times, e.Pair.FromUser.Times},
		{"bytes sent, many messages in a call", got.Files[e.PairIn].FromUser.Bytes, e.Pair.FromUser.Bytes},
		{"messages received, many in a call", got.Files[e.PairOut].ToUser.Times, e.Pair.ToUser.Times},
		{"bytes received, many messages in a call", got.Files[e.PairOut].ToUser.Bytes, e.Pair.ToUser.Bytes},
		{"packets read from a TUN device", got.Files[e.TUNFile].ToUser.Times, e.TUN.ToUser.Times},
		{"bytes read from a TUN device", got.Files[e.TUNFile].ToUser.Bytes, e.TUN.ToUser.Bytes},
		{"packets written to a TUN device", got.Files[e.TUNFile].FromUser.Times, e.TUN.FromUser.Times},
		{"bytes written to a TUN device", got.Files[e.TUNFile].FromUser.Bytes, e.TUN.FromUser.Bytes},
		{"packets that the kernel has copied", got.CopiedTimes, e.Copied.Times + e.Pair.ToUser.Times},
		{"calls of sendmmsg", got.Calls[unix.SYS_SENDMMSG], pairCalls},
		{"calls of getppid", got.Calls[unix.SYS_GETPPID], e.Getppid},
	} {
		part := math.Abs(float64(c.got)-float64(c.want)) / float64(c.want)
		if off = max(off, part); part > tolerance {
			err = errors.Join(err, fmt.Errorf("%w: %s: %d, want %d", ErrWrong, c.what, c.got, c.want))
		}
	}
	return off, err
}
