package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what fits into sun_path together with its final zero
// (unix(7), struct sockaddr_un).
const maxSocketPath = 107

// stageName is the private directory in which the socket is made.
const stageName = ".overlayd.sock"

// withShortPath calls use with a path to the file name in dir that fits into
// a socket address, if need be one through a descriptor of the directory.
func withShortPath(dir, name string, use func(path string) error) error {
	path := filepath.Join(dir, name)
	if len(path) <= maxSocketPath {
		return use(path)
	}
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	return use(fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name))
}

// listen makes the socket of a run directory whose lock the caller holds.
//
// The socket appears under its name with mode 0660 already set: it is bound in
// a directory that nobody else can enter and then renamed. The umask, which
// would do the same, belongs to the whole process.
func listen(dir string) (*net.UnixListener, error) {
	if err := removeStale(dir); err != nil {
		return nil, err
	}
	stage := filepath.Join(dir, stageName)
	if err := os.RemoveAll(stage); err != nil {
		return nil, err
	}
	if err := os.Mkdir(stage, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(stage)

	var ln *net.UnixListener
	err := withShortPath(stage, "s", func(path string) (err error) {
		ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false) // it would remove the path that it was bound to
	bound := filepath.Join(stage, "s")
	err = os.Chmod(bound, 0o660)
	if err == nil {
		err = os.Rename(bound, filepath.Join(dir, SocketName))
	}
	if err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// removeStale removes what a dead node has left. The lock says that the node
// is dead; that nobody answers is asked all the same, for a lock file can be
// removed by hand.
func removeStale(dir string) error {
	path := filepath.Join(dir, SocketName)
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is in the way: it is not a socket", path)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := dial(ctx, dir)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%w with run directory %s: its socket answers", ErrRunning, dir)
	}
	if !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: cannot tell whether its socket is in use: %w", path, err)
	}
	return ignoreNotExist(os.Remove(path))
}

// dial connects to the socket of a run directory.
func dial(ctx context.Context, dir string) (conn net.Conn, err error) {
	err = withShortPath(dir, SocketName, func(path string) (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "unix", path)
		return err
	})
	return conn, err
}
