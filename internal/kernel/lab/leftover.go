package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// baseDir holds, for each lab, a lock file <prefix>.lock and a directory
// <prefix>. It is made when needed and removed with the last lab.
const baseDir = "/run/overlayd-lab"

// markVariable is set to the lab's prefix in the environment of every process
// that a lab starts. Children inherit it, so the processes of a dead lab can be
// told from others that happen to be in its namespaces, such as a shell.
//
// It does not begin with OVERLAYD_, which the daemon keeps for its settings.
const markVariable = "OVLAB_PREFIX"

// keptFile is in the directory of a lab that was left up on purpose.
const keptFile = "kept"

// killGrace is how long killMarked waits for processes to be gone.
const killGrace = 5 * time.Second

// Leftover is a lab that no running process holds.
type Leftover struct {
	// Prefix is the lab's; [Remove] takes it.
	Prefix string
	// Kept tells that the lab was left up on purpose, by Keep.
	Kept bool
}

// Leftovers lists the labs of this machine that no running process holds.
func Leftovers() ([]Leftover, error) {
	paths, err := filepath.Glob(filepath.Join(baseDir, "ovl*.lock"))
	if err != nil {
		return nil, fmt.Errorf("lab: leftovers: %w", err)
	}
	var out []Leftover
	for _, path := range paths {
		prefix := strings.TrimSuffix(filepath.Base(path), ".lock")
		lock, err := lockPrefix(prefix)
		if errors.Is(err, ErrInUse) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		_, statErr := os.Stat(filepath.Join(baseDir, prefix, keptFile))
		out = append(out, Leftover{Prefix: prefix, Kept: statErr == nil})
		lock.Close()
	}
	return out, nil
}

// Remove removes what is left of the lab with the given prefix: its processes,
// namespaces and directory. It fails with [ErrInUse] and touches nothing if the
// process that made the lab lives and has not let go of it, and with
// fs.ErrNotExist if there is no such lab.
func Remove(prefix string) error {
	if !strings.HasPrefix(prefix, "ovl") || strings.ContainsAny(prefix, "/.") {
		return fmt.Errorf("lab: %q is not the prefix of a lab", prefix)
	}
	if err := Supported(); err != nil {
		return err
	}
	lock, err := lockPrefix(prefix)
	if err != nil {
		return err
	}
	errs := []error{killMarked(prefix)}
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("lab: %w", err))
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix+"-") {
			errs = append(errs, unnameNamespace(e.Name()))
		}
	}
	errs = append(errs, os.RemoveAll(filepath.Join(baseDir, prefix)), dropPrefix(prefix, lock))
	return errors.Join(errs...)
}

// claimPrefix finds a prefix that no lab has, and locks it.
func claimPrefix(name string) (string, *os.File, error) {
	for i := 1; ; i++ {
		prefix := fmt.Sprintf("ovl%d-%s", os.Getpid(), name)
		if i > 1 {
			prefix += strconv.Itoa(i)
		}
		if err := os.MkdirAll(baseDir, 0o755); err != nil {
			return "", nil, fmt.Errorf("lab: %w", err)
		}
		f, err := os.OpenFile(lockPath(prefix), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		switch {
		case errors.Is(err, fs.ErrExist):
			continue // ours, or a leftover of a process with the same id
		case errors.Is(err, fs.ErrNotExist):
			i-- // another process has just removed the empty base directory
			continue
		case err != nil:
			return "", nil, fmt.Errorf("lab: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && stillThere(f, prefix) {
			return prefix, f, nil
		}
		// Somebody took the new file for a leftover before it was locked.
		f.Close()
	}
}

// lockPrefix takes over the lock of a lab that nobody holds.
func lockPrefix(prefix string) (*os.File, error) {
	f, err := os.OpenFile(lockPath(prefix), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("lab: no lab %q: %w", prefix, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: %s", ErrInUse, prefix)
	}
	if !stillThere(f, prefix) {
		f.Close()
		return nil, fmt.Errorf("lab: no lab %q: %w", prefix, fs.ErrNotExist)
	}
	return f, nil
}

// dropPrefix removes the lock file while the lock is held, and then the lock.
func dropPrefix(prefix string, lock *os.File) error {
	err := os.Remove(lockPath(prefix))
	lock.Close()
	os.Remove(baseDir) // fails, as it should, while other labs are there
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

// stillThere tells whether the locked file is the one that the path names.
func stillThere(f *os.File, prefix string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(lockPath(prefix))
	return err == nil && os.SameFile(a, b)
}

func lockPath(prefix string) string { return filepath.Join(baseDir, prefix+".lock") }

func markKept(prefix string) error {
	return os.WriteFile(filepath.Join(baseDir, prefix, keptFile), nil, 0o644)
}

// killMarked kills the processes that carry the lab's mark and waits until they
// are gone.
func killMarked(prefix string) error {
	deadline := time.Now().Add(killGrace)
	for {
		// Again and again, because a process may have had a child meanwhile.
		found, err := killRound(prefix, deadline)
		if err != nil || !found {
			return err
		}
	}
}

// killRound kills every marked process that it sees and tells whether there
// was one.
func killRound(prefix string, deadline time.Time) (found bool, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return false, fmt.Errorf("lab: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// The descriptor pins the process: its number cannot come to mean
		// another one between the look at its mark and the signal.
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // ended meanwhile
		}
		if isMarked(pid, prefix) {
			found = true
			err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			if err == nil {
				err = awaitExit(fd, deadline)
			}
			if err != nil && !errors.Is(err, unix.ESRCH) {
				unix.Close(fd)
				return true, fmt.Errorf("lab: kill process %d of %s: %w", pid, prefix, err)
			}
		}
		unix.Close(fd)
	}
	return found, nil
}

// isMarked tells whether a process carries the lab's mark. One that has ended
// but was not waited for has no environment any more, and is not marked.
func isMarked(pid int, prefix string) bool {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false
	}
	want := []byte(markVariable + "=" + prefix)
	for _, v := range bytes.Split(env, []byte{0}) {
		if bytes.Equal(v, want) {
			return true
		}
	}
	return false
}

// awaitExit waits for the process of a pidfd, which becomes readable when it
// ends.
func awaitExit(pidfd int, deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return errors.New("it does not die")
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if err != nil && err != unix.EINTR {
			return err
		}
		if n > 0 {
			return nil
		}
	}
}
