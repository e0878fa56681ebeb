package count

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind is what a descriptor is.
type Kind string

const (
	TUN   Kind = "tun"   // a queue of a TUN device
	UDP   Kind = "udp"   // a UDP socket
	Other Kind = "other" // anything else
)

// KindOf tells what a descriptor of a process is, as long as that lives.
func KindOf(pid, fd int) Kind {
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
	if err != nil {
		return Other
	}
	if strings.HasPrefix(name, "/dev/net/tun") {
		return TUN
	}
	inode, socket := strings.CutPrefix(name, "socket:[")
	if !socket {
		return Other
	}
	inode = strings.TrimSuffix(inode, "]")
	for _, table := range []string{"udp", "udp6"} {
		// /proc/net/udp (proc_net_udp(5)): the inode is the tenth field.
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		for line := range bytes.Lines(b) {
			if f := bytes.Fields(line); len(f) > 9 && string(f[9]) == inode {
				return UDP
			}
		}
	}
	return Other
}

// callNames are the system calls that such programs make most.
var callNames = map[int]string{
	unix.SYS_READ: "read", unix.SYS_READV: "readv", unix.SYS_RECVFROM: "recvfrom", unix.SYS_RECVMSG: "recvmsg", unix.SYS_RECVMMSG: "recvmmsg",
	unix.SYS_WRITE: "write", unix.SYS_WRITEV: "writev", unix.SYS_SENDTO: "sendto", unix.SYS_SENDMSG: "sendmsg", unix.SYS_SENDMMSG: "sendmmsg",
	unix.SYS_FUTEX: "futex", unix.SYS_EPOLL_PWAIT: "epoll_pwait", unix.SYS_PPOLL: "ppoll", unix.SYS_NANOSLEEP: "nanosleep",
	unix.SYS_CLOCK_NANOSLEEP: "clock_nanosleep", unix.SYS_SCHED_YIELD: "sched_yield", unix.SYS_MADVISE: "madvise", unix.SYS_TGKILL: "tgkill",
	unix.SYS_GETPID: "getpid", unix.SYS_RT_SIGRETURN: "rt_sigreturn", unix.SYS_PSELECT6: "pselect6", unix.SYS_EPOLL_CTL: "epoll_ctl",
	unix.SYS_RESTART_SYSCALL: "restart_syscall", unix.SYS_IOCTL: "ioctl", unix.SYS_GETSOCKOPT: "getsockopt", unix.SYS_SETSOCKOPT: "setsockopt",
}

// CallName is the name of a system call.
func CallName(nr int) string {
	if name := callNames[nr]; name != "" {
		return name
	}
	return fmt.Sprintf("call %d", nr)
}
