package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// notifier tells the service manager how the daemon does (sd_notify(3)). The
// zero value has nobody to tell.
type notifier struct {
	socket   string        // NOTIFY_SOCKET: a path, or '@' and an abstract name
	interval time.Duration // between signs of life, 0 if none are wanted
}

// newNotifier reads NOTIFY_SOCKET and, if it is meant for this process,
// WATCHDOG_USEC (sd_watchdog_enabled(3)).
func newNotifier(env []string) *notifier {
	get := func(name string) string {
		for _, e := range env {
			if v, ok := strings.CutPrefix(e, name+"="); ok {
				return v
			}
		}
		return ""
	}
	n := &notifier{}
	if s := get("NOTIFY_SOCKET"); strings.HasPrefix(s, "/") || strings.HasPrefix(s, "@") {
		n.socket = s
	}
	pid := get("WATCHDOG_PID")
	usec, err := strconv.ParseInt(get("WATCHDOG_USEC"), 10, 64)
	if err == nil && usec > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		// Half the time limit, as sd_watchdog_enabled(3) recommends.
		n.interval = time.Duration(usec) * time.Microsecond / 2
	}
	return n
}

// send sends "NAME=value" lines. Nothing depends on whether they arrive, so a
// manager that does not listen is no error.
func (n *notifier) send(lines string) {
	if n.socket == "" {
		return
	}
	// net takes a leading '@' for an abstract socket itself.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = conn.Write([]byte(lines))
}

// reloading tells that the settings of a node are read anew; what it returns tells that
// this is over. Of a node that is not ready yet nothing is told, or it would seem to be.
func (n *notifier) reloading(node node) (over func()) {
	select {
	case <-node.Ready():
	default:
		return func() {}
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return func() {}
	}
	n.send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
	return func() { n.send("READY=1\nSTATUS=" + summary(node.Status())) }
}

// watchdog ticks when a sign of life is due: never, unless one is wanted. The
// caller stops it.
func (n *notifier) watchdog() *time.Ticker {
	if n.socket == "" || n.interval <= 0 {
		t := time.NewTicker(time.Hour)
		t.Stop()
		return t
	}
	return time.NewTicker(n.interval)
}
