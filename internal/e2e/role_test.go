package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

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
	roleQueues      = "queues"       // a node of the library with more queues than processors; see runQueues
)

// asRole makes a command that runs overlayd in a role.
func asRole(role string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], append([]string{overlayd}, args...)...)
	cmd.Env = append(daemonEnv(), roleVariable+"="+role)
	if role != roleNoNetAdmin && role != roleQueues {
		// Go makes the mounts of the new mount namespace private.
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	}
	return cmd
}

// playRole returns only if something fails.
func playRole(role string, args []string) error {
	var err error
	switch role {
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
