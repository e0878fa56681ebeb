// Package kernel is the only room of overlayd that reaches netlink and
// nftables: underlay discovery, the TUN device's addresses and routes, the
// search for whatever in this host would keep packets from the overlay.
//
// What the package puts into the kernel is marked, and it changes or removes
// nothing that does not carry the mark:
//
//   - routes and policy rules carry [RouteProtocol];
//   - the TUN device and the VXLAN devices carry the alias [DeviceAlias];
//   - addresses are /32 or /128 with IFA_F_NOPREFIXROUTE, and are looked for
//     on those devices only;
//   - the guard of the kernel paths is an nftables table of its own, inet
//     "overlayd-" and the device's name; masquerading is another, with "/nat" behind.
//
// The one exception is [Kernel.DropBridgeAddrs], which is told of a bridge by whoever made it.
//
// Other people's firewall and policy rules are read, never written, but for accept rules
// in iptables' FORWARD and Docker's DOCKER-USER chain, which carry a comment, "overlayd-"
// and the device's name.
//
// # Network namespaces
//
// A [Kernel] belongs to the network namespace of the thread that called
// [Open], for good: netlink sockets stay in the namespace in which they were
// made, and what is read from /proc, which shows the namespace of the reading
// thread, is read by a thread that was moved there.
package kernel

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Errors of this package, to be compared with errors.Is.
var (
	// ErrPermission: this process may not change the network. The text names
	// the capability and the ways to get it.
	ErrPermission = errors.New("CAP_NET_ADMIN is missing: run as root, set " +
		"AmbientCapabilities=CAP_NET_ADMIN in the systemd unit, or start the container with --cap-add NET_ADMIN")
	// ErrClosed: the Kernel was closed.
	ErrClosed = errors.New("kernel: closed")
	// ErrNoInterface: no network interface has that name.
	ErrNoInterface = errors.New("no such network interface")
	// ErrNoAddress: no usable address where one is needed.
	ErrNoAddress = errors.New("no usable address")
	// ErrNotTUN: the device exists, but is no TUN device, so it is not ours.
	ErrNotTUN = errors.New("not a TUN device")
	// ErrHeld: a process that lives has the device.
	ErrHeld = errors.New("a running daemon holds it")
	// ErrRouteConflict: another program has a route where ours should be.
	ErrRouteConflict = errors.New("route conflict")
)

// Config is what Open needs. Its zero value is usable.
type Config struct {
	// Logger gets what is worth a line but no error. Nil discards it.
	Logger *slog.Logger
}

// Kernel is an open connection to one network namespace. Its methods may be
// called by any goroutine; they run one at a time.
type Kernel struct {
	log *slog.Logger

	mu      sync.Mutex // serializes every operation: most read first and then write
	h       *netlink.Handle
	ns      int // the namespace's file descriptor; -1 if /proc does not tell
	closed  bool
	guard   *guardState        // what SetGuard has made; nil: nothing
	masq    *masqueradeState   // what SetMasquerade has made; nil: nothing
	forward *forwardRulesState // what SetForwardRules has done; nil: nothing
}

// Open connects to the network namespace of the calling thread: a caller that
// has moved its thread into another namespace must have locked its goroutine to
// it. The error is ErrPermission if the process lacks CAP_NET_ADMIN there.
func Open(cfg Config) (*Kernel, error) {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	// The socket and the descriptor have to be of the same namespace.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("kernel: opening a netlink socket: %w", err)
	}
	if err := probePermission(h); err != nil {
		h.Close()
		return nil, err
	}
	ns, err := unix.Open(threadNamespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		ns = -1
	}
	return &Kernel{log: log, h: h, ns: ns}, nil
}

// Close ends the connection and changes nothing in the kernel. A second call
// does nothing.
func (k *Kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil
	}
	k.closed = true
	k.h.Close()
	if k.ns >= 0 {
		unix.Close(k.ns)
	}
	return nil
}

// lock starts an operation; unless it fails, the caller unlocks k.mu. A closed
// Handle must not be used at all: it would open sockets in whatever namespace
// the calling thread happens to be in.
func (k *Kernel) lock() error {
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return ErrClosed
	}
	return nil
}

// probePermission asks the kernel itself, because CAP_NET_ADMIN counts in the
// user namespace that owns the network namespace: rtnetlink_rcv_msg
// (linux/net/core/rtnetlink.c) answers EPERM to every request but the getting
// ones, before it looks at what is asked,
//
//	if (kind != RTNL_KIND_GET && !netlink_net_capable(skb, CAP_NET_ADMIN))
//		return -EPERM;
//
// and a request about interface -1 is about none, so it changes nothing.
func probePermission(h *netlink.Handle) error {
	nobody := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: -1}}
	if err := h.LinkSetMTU(nobody, 1500); errors.Is(err, unix.EPERM) {
		return fmt.Errorf("kernel: %w", ErrPermission)
	}
	return nil
}

// dump repeats a netlink dump that was interrupted by a change of what is
// dumped (NLM_F_DUMP_INTR), which may have missed entries.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for try := 0; ; try++ {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == 9 {
			return all, err
		}
	}
}
