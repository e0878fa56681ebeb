// Package lab builds small networks out of Linux network namespaces: hosts,
// switches, routers and containers, links to cut, packets to count, traffic to
// send, and processes that run inside. Tests and the demo stand on it.
//
// Everything is done through netlink, nftables and plain system calls, so no
// other program has to be installed. Nothing is made in the namespace of the
// caller: every interface is born in the namespace it belongs to.
//
//	container            container          namespace ovl<pid>-<lab>-<container>
//	   eth0                 eth0
//	    |                    |              veth pairs
//	    +------- br0 --------+              namespace ovl<pid>-<lab>-<host>
//	             eth0
//	              |                         veth pair
//	           <host>                       namespace ovl<pid>-<lab>-<switch>
//	              br0
//
// # Names and leftovers
//
// All namespaces of a lab are named under /run/netns, where "ip netns exec"
// finds them, and share a prefix that carries the process id. A lab also has a
// directory below /run/overlayd-lab for the state of the processes it runs,
// and a file lock beside it that lives as long as the process does: that is how
// [Remove] tells a lab that a killed process left from one that is in use.
package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Errors that callers may want to tell apart.
var (
	// ErrPrivilege means that the process may not make network namespaces.
	ErrPrivilege = errors.New("lab: needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW)")
	// ErrClosed means that the lab has been closed.
	ErrClosed = errors.New("lab: closed")
	// ErrInUse means that the lab belongs to a process that lives.
	ErrInUse = errors.New("lab: in use by a running process")
)

// Config describes a lab. Its zero value is good.
type Config struct {
	// Name is part of the names of the namespaces, so that a person can tell
	// labs apart: lower-case letters and digits, at most 32. A number is added if
	// this process has a lab of that name already. Empty: "lab".
	Name string
	// Logger gets a line for everything that is made or removed, at debug level.
	// Nil: nothing is logged.
	Logger *slog.Logger
}

// Lab is a set of namespaces and what is in them. Its methods, and those of
// everything it makes, may be called by several goroutines at once.
type Lab struct {
	prefix string
	dir    string
	log    *slog.Logger
	lock   *os.File
	serial atomic.Uint64 // numbers things that need different names

	mu       sync.Mutex
	closed   bool
	spaces   map[string]*Namespace // by short name
	order    []*Namespace
	switches []*Switch
	procs    []*Process
	captures []*Capture
	launcher *launcher // nil until the first process is started
	closing  sync.Once
	closeErr error
}

// nameRule is what the name of a host, switch or container looks like;
// labNameRule has no dash, so that no lab's prefix begins with another's.
var (
	nameRule    = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)
	labNameRule = regexp.MustCompile(`^[a-z0-9]{1,32}$`)
)

// Supported returns nil if this process can run a lab, else ErrPrivilege.
func Supported() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("%w: capget: %w", ErrPrivilege, err)
	}
	const want = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
	if data[0].Effective&want != want {
		return ErrPrivilege
	}
	return nil
}

// New makes an empty lab. The caller must call Close, or Keep.
func New(cfg Config) (*Lab, error) {
	if err := Supported(); err != nil {
		return nil, err
	}
	if cfg.Name == "" {
		cfg.Name = "lab"
	}
	if !labNameRule.MatchString(cfg.Name) {
		return nil, fmt.Errorf("lab: name %q: want lower-case letters and digits, at most 32", cfg.Name)
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	prefix, lock, err := claimPrefix(cfg.Name)
	if err != nil {
		return nil, err
	}
	l := &Lab{
		prefix: prefix,
		dir:    filepath.Join(baseDir, prefix),
		log:    log.With("lab", prefix),
		lock:   lock,
		spaces: make(map[string]*Namespace),
	}
	if err := os.Mkdir(l.dir, 0o755); err != nil {
		return nil, errors.Join(fmt.Errorf("lab: %w", err), dropPrefix(prefix, lock))
	}
	return l, nil
}

// Prefix is what the names of all namespaces of the lab begin with, followed
// by a dash: ovl<pid>-<name>. [Remove] takes it.
func (l *Lab) Prefix() string { return l.prefix }

// Dir is a directory of the lab's own, gone after Close. Each host, switch and
// container has a directory in it, named like it, with the logs of its
// processes.
func (l *Lab) Dir() string { return l.dir }

// Processes returns all processes that were started, in order, also those that
// have ended.
func (l *Lab) Processes() []*Process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Process(nil), l.procs...)
}

// Close kills the processes of the lab, and removes its namespaces with all
// that is in them and its directory. It goes on when a step fails and returns
// all errors. Further calls return what the first returned.
func (l *Lab) Close() error {
	l.closing.Do(func() { l.closeErr = l.shut(false) })
	return l.closeErr
}

// Keep ends the lab for this process and leaves it up: processes, namespaces
// and directory stay until [Remove] is called with the lab's prefix. Close does
// nothing afterwards.
func (l *Lab) Keep() error {
	l.closing.Do(func() { l.closeErr = l.shut(true) })
	return l.closeErr
}

// shut ends the lab. The order matters: captures hold sockets in the
// namespaces, processes write into the directory, and the lock goes last, so
// that nobody takes a half-removed lab for a leftover.
func (l *Lab) shut(keep bool) error {
	l.mu.Lock()
	l.closed = true
	captures, procs, order, launcher := l.captures, l.procs, l.order, l.launcher
	l.mu.Unlock()

	var errs []error
	for _, c := range captures {
		c.Stop()
	}
	if !keep {
		for _, p := range procs {
			p.kill()
		}
		for _, p := range procs {
			<-p.done
		}
		errs = append(errs, killMarked(l.prefix))
	}
	if launcher != nil {
		launcher.stop()
	}
	for i := len(order) - 1; i >= 0; i-- {
		ns := order[i]
		ns.closeHandles()
		if !keep {
			errs = append(errs, unnameNamespace(ns.name))
			l.log.Debug("namespace removed", "name", ns.name)
		}
	}
	if keep {
		errs = append(errs, markKept(l.prefix), l.lock.Close())
	} else {
		errs = append(errs, os.RemoveAll(l.dir), dropPrefix(l.prefix, l.lock))
	}
	return errors.Join(errs...)
}

// add makes a namespace called name and enters it into the lab's books.
func (l *Lab) add(name string, sysctls map[string]string) (*Namespace, error) {
	if !nameRule.MatchString(name) {
		return nil, fmt.Errorf("lab: name %q: want lower-case letters, digits and dashes, at most 32", name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, ErrClosed
	}
	if l.spaces[name] != nil {
		return nil, fmt.Errorf("lab: there is a %q already", name)
	}
	ns, err := newNamespace(l, name, sysctls)
	if err != nil {
		return nil, err
	}
	l.spaces[name] = ns
	l.order = append(l.order, ns)
	l.log.Debug("namespace made", "name", ns.name)
	return ns, nil
}
