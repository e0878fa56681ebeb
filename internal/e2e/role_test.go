package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// roleVariable makes the test binary prepare its process in some way and then
// become the program that its arguments name.
const roleVariable = "E2E_ROLE"

// The roles.
const (
	roleNoTUN       = "no-tun"       // /dev/net is empty
	roleBrokenTUN   = "broken-tun"   // /dev/net/tun is another device
	roleNoNetAdmin  = "no-net-admin" // root without CAP_NET_ADMIN, as in most containers
	roleReadOnlyDir = "read-only"    // the directory of the last argument is mounted read-only
	roleNoNFTables  = "no-nftables"  // a kernel without nftables
	roleDocs        = "docs"         // the system's own directories are those of a host of the lab; see docsHome
	roleQueues      = "queues"       // a node of the library with more queues than processors; see runQueues
)

// asRole makes a command that runs overlayd in a role.
func asRole(role string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], append([]string{overlayd}, args...)...)
	cmd.Env = append(daemonEnv(), roleVariable+"="+role)
	if role != roleNoNetAdmin && role != roleNoNFTables && role != roleQueues {
		// Go makes the mounts of the new mount namespace private.
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	}
	return cmd
}

// playRole returns only if something fails.
func playRole(role string, args []string) error {
	var err error
	switch role {
	case roleDocs:
		err = docsHome(args[0])
		args = args[1:]
	case roleQueues:
		err = runQueues(args[1:])
	case roleNoTUN:
		err = unix.Mount("none", "/dev/net", "tmpfs", 0, "")
	case roleBrokenTUN:
		err = unix.Mount("/dev/null", "/dev/net/tun", "none", unix.MS_BIND, "")
	case roleReadOnlyDir:
		dir := args[len(args)-1]
		if err = unix.Mount(dir, dir, "none", unix.MS_BIND, ""); err == nil {
			err = unix.Mount("none", dir, "none", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
	case roleNoNFTables:
		err = refuseNetfilter()
	case roleNoNetAdmin:
		// Root gets what is in the bounding set when it executes a program
		// (capabilities(7)).
		err = unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_NET_ADMIN, 0, 0, 0)
	default:
		err = fmt.Errorf("unknown role")
	}
	if err != nil {
		return fmt.Errorf("role %s: %w", role, err)
	}
	os.Unsetenv(roleVariable)
	return fmt.Errorf("role %s: exec: %w", role, unix.Exec(args[0], args, os.Environ()))
}

// refuseNetfilter has the kernel answer as one without nfnetlink when this process, or
// what it becomes, asks for a socket of it: by a seccomp filter (seccomp(2)).
func refuseNetfilter() error {
	// What a filter sees is a struct seccomp_data (linux/include/uapi/linux/seccomp.h):
	// the number of the call, the architecture, the instruction pointer, six arguments.
	const nr, family, protocol = 0, 16, 16 + 2*8
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	// other jumps to the end, which allows, unless the value is k.
	other := func(k uint32, end uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: end}
	}
	filter := []unix.SockFilter{
		load(nr), other(unix.SYS_SOCKET, 5),
		load(family), other(unix.AF_NETLINK, 3),
		load(protocol), other(unix.NETLINK_NETFILTER, 1),
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// All threads: which of them executes the program is Go's choice.
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return errno
	}
	return nil
}
