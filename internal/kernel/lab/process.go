package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a program that runs in a namespace, in a process group of its
// own. What it prints goes to a file.
type Process struct {
	ns   *Namespace
	name string
	cmd  *exec.Cmd
	log  string

	paused bool // by Pause, which one goroutine calls

	done chan struct{} // closed when the process has been waited for
	err  error         // what Wait returned; valid when done is closed
}

// StartOptions say how a process is started.
type StartOptions struct {
	// Name is what the process is called in messages, and its log file is
	// called: <name>.log in the namespace's directory. A second process of the
	// same name adds to the same file. Empty: the base name of the program.
	Name string
	// Outlive lets the process go on when this process dies or keeps the lab.
	// Without it, it is killed with this process, however that ends.
	Outlive bool
}

// Start starts cmd in the namespace. Its Stdout and Stderr must be nil; both go
// to the log file. It gets a process group, so that a Ctrl-C in the terminal
// does not reach it, and is killed by the lab's Close.
func (n *Namespace) Start(cmd *exec.Cmd, opt StartOptions) (*Process, error) {
	if cmd.Stdout != nil || cmd.Stderr != nil {
		return nil, errors.New("lab: start: output goes to the log file")
	}
	if opt.Name == "" {
		opt.Name = filepath.Base(cmd.Path)
	}
	l := n.lab
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, ErrClosed
	}
	p := &Process{ns: n, name: opt.Name, cmd: cmd, log: filepath.Join(n.Dir(), opt.Name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	defer out.Close() // the child has its own descriptor
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(cmd.Environ(), markVariable+"="+n.lab.prefix)
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if !opt.Outlive {
		cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	}
	if l.launcher == nil {
		l.launcher = newLauncher()
	}
	if err := l.launcher.start(n, cmd); err != nil {
		return nil, fmt.Errorf("lab: %s: start %s: %w", n.short, opt.Name, err)
	}
	l.procs = append(l.procs, p)
	l.log.Debug("process started", "host", n.short, "name", p.name, "pid", cmd.Process.Pid)
	// Joined by whoever waits for done; Close and Stop do. A kept lab's
	// processes are left to themselves.
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Name is the process's name.
func (p *Process) Name() string { return p.name }

// Namespace is where the process runs.
func (p *Process) Namespace() *Namespace { return p.ns }

// PID is the process id, which is also that of its process group.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns nil while the process runs and after it has ended with exit code
// 0, else an *exec.ExitError or what went wrong.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Running tells whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal to the process itself; os.ErrProcessDone if it has
// ended.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Pause stops the process, as SIGSTOP does, and returns when none of its threads
// runs any more; Resume lets it go on. os.ErrProcessDone if it has ended.
func (p *Process) Pause() error {
	if err := p.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	// The signal is only pending when kill(2) returns: a thread that waits for a
	// processor runs on before it sees it.
	for {
		var stopped unix.Siginfo
		err := unix.Waitid(unix.P_PID, p.PID(), &stopped, unix.WSTOPPED|unix.WNOHANG, nil)
		if err == nil && (stopped.Signo != 0 || p.paused) { // a stop is reported once
			p.paused = true
			return nil
		}
		if err != nil && !errors.Is(err, unix.ECHILD) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lab: pause %s: %w", p.name, err)
		}
		select {
		case <-p.done:
			return os.ErrProcessDone
		case <-time.After(time.Millisecond):
		}
	}
}

// Resume lets a paused process go on.
func (p *Process) Resume() error {
	p.paused = false
	return p.Signal(unix.SIGCONT)
}

// Stop sends SIGTERM and waits for the process. When ctx ends first it kills
// the process group and returns the context's error. Otherwise it returns how
// the process ended, as Err does.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("lab: stop %s: %w", p.name, err)
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		p.kill()
		<-p.done
		return fmt.Errorf("lab: %s on %s did not stop: %w", p.name, p.ns.short, context.Cause(ctx))
	}
}

// Kill kills the process group, as a crash would, and waits for the process.
func (p *Process) Kill() {
	p.kill()
	<-p.done
}

func (p *Process) kill() {
	// While the process is not waited for, its id cannot mean another one.
	// Processes that it left behind are found by the lab's mark.
	if p.Running() {
		_ = unix.Kill(-p.PID(), unix.SIGKILL)
	}
}

// LogFile is the file that the output goes to.
func (p *Process) LogFile() string { return p.log }

// tailBytes bounds what Tail reads.
const tailBytes = 256 << 10

// Tail returns the last lines of the output, at most n.
func (p *Process) Tail(n int) (string, error) {
	f, err := os.Open(p.log)
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	b := make([]byte, min(info.Size(), tailBytes))
	if _, err := f.ReadAt(b, info.Size()-int64(len(b))); err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	lines := bytes.SplitAfter(bytes.TrimRight(b, "\n"), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], nil)), nil
}

// Output runs cmd in the namespace to its end and returns what it printed on
// stdout and stderr together, with the error of its exit. It is killed when ctx
// ends.
func (n *Namespace) Output(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	opt := StartOptions{Name: fmt.Sprintf("%s-%d", filepath.Base(cmd.Path), n.lab.serial.Add(1))}
	p, err := n.Start(cmd, opt)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		p.kill()
		select {
		case <-p.done:
		case <-time.After(killGrace):
			return nil, fmt.Errorf("lab: %s does not die", p.name)
		}
		return nil, fmt.Errorf("lab: %s on %s: %w", p.name, n.short, context.Cause(ctx))
	}
	out, err := os.ReadFile(p.log)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return out, p.err
}
