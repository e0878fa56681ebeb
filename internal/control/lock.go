package control

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Lock is the exclusive right to a run directory.
type Lock struct {
	dir  string
	file *os.File
	once sync.Once
	err  error
}

// Acquire takes the lock of a run directory, which it makes (mode 0755) if it
// does not exist. It does not wait: when another process, or another node of
// this process, holds the lock, the error wraps ErrRunning.
func Acquire(runDir string) (*Lock, error) {
	if err := makeRunDir(runDir); err != nil {
		return nil, err
	}
	path := filepath.Join(runDir, LockName)
	for {
		// 0600: flock needs only a descriptor, so whoever may open the file
		// could keep the daemon from starting.
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("run directory %s cannot be used: %w", runDir, err)
		}
		if err := flock(f); err != nil {
			defer f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, runningError(runDir, f)
			}
			return nil, fmt.Errorf("run directory %s cannot be locked: %w", runDir, err)
		}
		// Release removes the file before it lets go of it, so a lock on a file
		// that is no longer there is a lock on nothing.
		if !sameFile(f, path) {
			f.Close()
			continue
		}
		if err := writePID(f); err != nil {
			f.Close()
			return nil, fmt.Errorf("run directory %s cannot be used: %w", runDir, err)
		}
		return &Lock{dir: runDir, file: f}, nil
	}
}

// Dir is the run directory.
func (l *Lock) Dir() string { return l.dir }

// Release removes the lock file and gives the lock up. It may be called more
// than once.
func (l *Lock) Release() error {
	l.once.Do(func() {
		l.err = errors.Join(ignoreNotExist(os.Remove(l.file.Name())), l.file.Close())
	})
	return l.err
}

// makeRunDir makes the directory with a mode that the umask does not narrow:
// members of the socket's group must get through it.
func makeRunDir(dir string) error {
	if fi, err := os.Stat(dir); err == nil {
		if !fi.IsDir() {
			return fmt.Errorf("run directory %s is not a directory: choose another one with --run-dir", dir)
		}
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("run directory %s cannot be made: %w: run as root, which the TUN device needs as well (CAP_NET_ADMIN), or choose a writable directory with --run-dir", dir, err)
		}
		return fmt.Errorf("run directory %s cannot be made: %w: choose another one with --run-dir", dir, err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("run directory %s cannot be made: %w", dir, err)
	}
	return nil
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EINTR {
			return err
		}
	}
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	return err
}

// runningError names the holder of the lock if the file tells it, which it
// does not for the moment between taking the lock and writing the id.
func runningError(dir string, f *os.File) error {
	b, _ := io.ReadAll(io.LimitReader(f, 32))
	if pid, err := strconv.Atoi(string(bytes.TrimSpace(b))); err == nil && pid > 0 {
		return fmt.Errorf("%w with run directory %s (process %d)", ErrRunning, dir, pid)
	}
	return fmt.Errorf("%w with run directory %s", ErrRunning, dir)
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
