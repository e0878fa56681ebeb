package load

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// Program is a process that plays a role with a socket.
type Program struct {
	*lab.Process
	ctx context.Context
}

// serial tells the programs' output files apart.
var serial atomic.Uint64

// Start starts a process for a role in a namespace, with a socket that is this program's
// no longer, and something to read, if input is not nil.
func Start(ctx context.Context, ns *lab.Namespace, role string, length time.Duration, fd int, input io.Reader) (*Program, error) {
	f := os.NewFile(uintptr(fd), role)
	defer f.Close()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, Command, role, length.String())
	cmd.ExtraFiles, cmd.Stdin = []*os.File{f}, input
	// A goroutine that waits in a raw system call looks like one that runs for too
	// long, and would be interrupted every 10 ms.
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	p, err := ns.Start(cmd, lab.StartOptions{Name: fmt.Sprintf("%s-%d", role, serial.Add(1))})
	return &Program{p, ctx}, err
}

// Result waits for the process, but not for longer than its context, and returns the
// numbers that it printed.
func (p *Program) Result() (numbers []int64, err error) {
	select {
	case <-p.Done():
	case <-p.ctx.Done():
		p.Kill()
		return nil, context.Cause(p.ctx)
	}
	out, err := os.ReadFile(p.LogFile())
	if err == nil && p.Err() != nil {
		err = fmt.Errorf("%w: %s", p.Err(), out)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.Name(), err)
	}
	for _, s := range strings.Fields(string(out)) {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Name(), err)
		}
		numbers = append(numbers, n)
	}
	if len(numbers) == 0 {
		return nil, fmt.Errorf("%s printed nothing", p.Name())
	}
	return numbers, nil
}
