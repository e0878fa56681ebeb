package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// janitorCommand makes the program the one that cleans up after another.
const janitorCommand = "janitor"

// done tells the janitor that nothing is left to do.
const done = "done"

// hireJanitor starts a process that waits until this one is gone, however it ends, and
// removes the namespaces that it leaves. Its other processes die with it by themselves,
// and so do its programs in the kernel. Close lets the janitor go.
func hireJanitor() (io.Closer, error) {
	if os.Getenv("MAKELEVEL") != "" {
		// Killed with make, and not left to go on.
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
			return nil, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command(self, janitorCommand, strconv.Itoa(os.Getpid()))
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a signal for us is none for it
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, fmt.Errorf("janitor: %w", err)
	}
	return closer(func() error {
		_, err := io.WriteString(w, done)
		return errors.Join(err, w.Close(), cmd.Wait())
	}), nil
}

type closer func() error

func (c closer) Close() error { return c() }

// clean waits for the end of its input, which a process holds that is given by its id, and
// then, unless that has said that it is done, for the end of the process, and removes what
// it has left.
func clean(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: bench janitor PID")
	}
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	said, err := io.ReadAll(os.Stdin)
	if err != nil || string(said) == done {
		return err
	}
	// Its files are closed one after the other: the labs' locks may come later.
	for ended := []unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}; ended[0].Revents == 0; {
		if _, err := unix.Poll(ended, -1); err != nil && err != unix.EINTR {
			return err
		}
	}
	left, err := lab.Leftovers()
	for _, l := range left {
		if strings.HasPrefix(l.Prefix, fmt.Sprintf("ovl%d-", pid)) && !l.Kept {
			err = errors.Join(err, lab.Remove(l.Prefix))
		}
	}
	return err
}
