package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 keeps named network namespaces (NETNS_RUN_DIR in
// iproute2's include/namespace.h).
const netnsDir = "/run/netns"

// Namespace is one network namespace of a lab: a host's, a container's or a
// switch's.
type Namespace struct {
	lab   *Lab
	short string   // the name within the lab
	name  string   // the name under /run/netns
	file  *os.File // the namespace; the descriptor that setns takes
	nl    *netlink.Handle
}

// baseSysctls are set in every namespace. Duplicate address detection would
// keep every new IPv6 address unusable for a second.
var baseSysctls = map[string]string{
	"net/ipv6/conf/all/accept_dad":     "0",
	"net/ipv6/conf/default/accept_dad": "0",
	"net/ipv6/conf/all/accept_ra":      "0",
	"net/ipv6/conf/default/accept_ra":  "0",
}

func newNamespace(l *Lab, short string, sysctls map[string]string) (*Namespace, error) {
	ns := &Namespace{lab: l, short: short, name: l.prefix + "-" + short}
	if err := prepareNetnsDir(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(ns.Dir(), 0o755); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if err := nameNamespace(ns.name); err != nil {
		return nil, err
	}
	err := ns.open(sysctls)
	if err != nil {
		ns.closeHandles()
		return nil, errors.Join(err, unnameNamespace(ns.name))
	}
	return ns, nil
}

// open takes hold of the namespace that has just been made, and sets it up.
func (n *Namespace) open(sysctls map[string]string) error {
	var err error
	if n.file, err = os.Open(n.Path()); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return n.Do(func() error {
		// The handle's socket stays in the namespace it was made in.
		if n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("lab: %s: netlink: %w", n.short, err)
		}
		for _, m := range []map[string]string{baseSysctls, sysctls} {
			for key, value := range m {
				if err := writeSysctl(key, value); err != nil {
					return err
				}
			}
		}
		return n.setUp("lo")
	})
}

// Name is the short name within the lab.
func (n *Namespace) Name() string { return n.short }

// FullName is the name that "ip netns" knows.
func (n *Namespace) FullName() string { return n.name }

// Path is the file that stands for the namespace.
func (n *Namespace) Path() string { return filepath.Join(netnsDir, n.name) }

// Dir is a directory for files of this namespace, gone after the lab's Close.
func (n *Namespace) Dir() string { return filepath.Join(n.lab.dir, n.short) }

// String returns the short name.
func (n *Namespace) String() string { return n.short }

// Do runs fn in the namespace, on a thread of its own, and returns what it
// returned; a panic, or a runtime.Goexit as testing.T.FailNow makes it, is
// passed on to the caller. Sockets that fn makes stay in the namespace and may
// be used by everybody afterwards. Goroutines that fn starts run elsewhere.
func (n *Namespace) Do(fn func() error) error {
	type outcome struct {
		err    error
		panic  any
		goexit bool
	}
	out := make(chan outcome, 1)
	go func() {
		runtime.LockOSThread()
		home, err := enter(n.file)
		if err != nil {
			runtime.UnlockOSThread() // setns is all or nothing
			out <- outcome{err: fmt.Errorf("lab: enter %s: %w", n.short, err)}
			return
		}
		o := outcome{goexit: true}
		defer func() {
			if o.goexit {
				if p := recover(); p != nil {
					o = outcome{panic: p}
				}
			}
			// A thread that is not known to be back home is not given back: the
			// runtime ends it with this goroutine.
			if back(home) == nil {
				runtime.UnlockOSThread()
			}
			out <- o
		}()
		err = fn()
		o = outcome{err: err}
	}()
	o := <-out
	if o.panic != nil {
		panic(o.panic)
	}
	if o.goexit {
		runtime.Goexit()
	}
	return o.err
}

// enter moves the calling thread into a namespace and returns the one it was
// in. The caller has locked the thread.
func enter(target *os.File) (home *os.File, err error) {
	home, err = os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		home.Close()
		return nil, err
	}
	return home, nil
}

// back moves the calling thread to where it came from.
func back(home *os.File) error {
	err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)
	home.Close()
	return err
}

// Sysctl sets a kernel parameter of the namespace, given as a path below
// /proc/sys, for example "net/ipv4/conf/all/rp_filter".
func (n *Namespace) Sysctl(key, value string) error {
	return n.Do(func() error { return writeSysctl(key, value) })
}

// writeSysctl writes to /proc/sys, whose net part shows the namespace of the
// calling thread.
func writeSysctl(key, value string) error {
	err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(key, "net/ipv6/") {
		return nil // a kernel without IPv6
	}
	if err != nil {
		return fmt.Errorf("lab: sysctl: %w", err)
	}
	return nil
}

// setUp sets a link of the namespace up.
func (n *Namespace) setUp(link string) error {
	l, err := n.nl.LinkByName(link)
	if err != nil {
		return fmt.Errorf("lab: %s: link %s: %w", n.short, link, err)
	}
	if err := n.nl.LinkSetUp(l); err != nil {
		return fmt.Errorf("lab: %s: set %s up: %w", n.short, link, err)
	}
	return nil
}

// SetUp sets an interface of the namespace up, or down.
func (n *Namespace) SetUp(iface string, up bool) error {
	if up {
		return n.setUp(iface)
	}
	l, err := n.nl.LinkByName(iface)
	if err != nil {
		return fmt.Errorf("lab: %s: link %s: %w", n.short, iface, err)
	}
	if err := n.nl.LinkSetDown(l); err != nil {
		return fmt.Errorf("lab: %s: set %s down: %w", n.short, iface, err)
	}
	return nil
}

// nft runs a transaction of nftables in the namespace.
func (n *Namespace) nft(fn func(c *nftables.Conn) error) error {
	return n.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("lab: %s: nftables: %w", n.short, err)
		}
		if err := fn(c); err != nil {
			return fmt.Errorf("lab: %s: nftables: %w", n.short, err)
		}
		return nil
	})
}

func (n *Namespace) closeHandles() {
	if n.nl != nil {
		n.nl.Close()
	}
	if n.file != nil {
		n.file.Close()
	}
}

// prepareNetnsDir makes /run/netns a shared mount, as "ip netns add" does
// (netns_add in iproute2's ip/ipnetns.c): a namespace that is removed here is
// then gone in every mount namespace that sees the directory. The directory
// stays when the lab is gone, as iproute2's does.
func prepareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	dir, err := os.Open(netnsDir)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer dir.Close()
	// Two processes must not both mount the directory onto itself.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lab: lock %s: %w", netnsDir, err)
	}
	err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err := unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("lab: bind %s: %w", netnsDir, err)
		}
		err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("lab: share %s: %w", netnsDir, err)
	}
	return nil
}

// nameNamespace makes a network namespace and binds it to its name.
func nameNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	f.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			home.Close()
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		err = unix.Mount("/proc/thread-self/ns/net", path, "none", unix.MS_BIND, "")
		if back(home) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		os.Remove(path)
		return fmt.Errorf("lab: make namespace %s: %w", name, err)
	}
	return nil
}

// unnameNamespace takes the name from a namespace. The kernel removes it, and
// every interface in it, when no process and no socket is left inside.
func unnameNamespace(name string) error {
	path := filepath.Join(netnsDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("lab: remove namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lab: remove namespace %s: %w", name, err)
	}
	return nil
}
