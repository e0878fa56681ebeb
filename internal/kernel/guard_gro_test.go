package kernel_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// writeSysfs writes to files below /sys/class/net as a namespace has them: sysfs
// shows the devices of the namespace in which it was mounted.
func writeSysfs(n *lab.Namespace, files map[string]string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- func() error {
			ns, err := os.Open(n.Path())
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return os.NewSyscallError("setns", err)
			}
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return os.NewSyscallError("unshare", err)
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return os.NewSyscallError("mount", err)
			}
			if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
				return os.NewSyscallError("mount", err)
			}
			for name, value := range files {
				if err := os.WriteFile(filepath.Join("/sys/class/net", name), []byte(value), 0); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	return <-done
}

// setGRO is ethtool -K dev gro on.
func (g *guarded) setGRO(dev string) {
	g.Helper()
	g.ok(g.hosts[0].Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var req struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}
		copy(req.name[:], dev)
		req.data = unsafe.Pointer(&[2]uint32{unix.ETHTOOL_SGRO, 1})
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
			return errno
		}
		return nil
	}))
}

// A peer's packets are not joined with those that another one sends in its name.
func TestGuardJoinedPackets(t *testing.T) {
	g := newGuarded(t)
	g.guard.Peers = append(g.guard.Peers, guardPeer(3))
	g.set()
	// Long enough for all that is sent at once, as on a busy interface.
	if err := writeSysfs(g.hosts[0].Namespace, map[string]string{
		"overlay0-v4/gro_flush_timeout": "20000000", "overlay0-v4/napi_defer_hard_irqs": "5",
	}); err != nil {
		t.Skipf("sysfs: %v", err)
	}
	raw, err := g.ears[true].SyscallConn()
	g.ok(err)
	g.ok(raw.Control(func(fd uintptr) { g.ok(unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1)) }))
	var frames [][]byte
	const n = 10
	for i := range n {
		for from, text := range []string{2: "good", 3: "evil"} {
			if text != "" {
				packet := datagram(vtep(2, true), fmt.Sprint(text, i))
				frames = append(frames, g.onWire(toPort(g.underlay(from, true), g.underlay(1, true), 4789, inVXLAN(packet))))
			}
		}
	}
	stands := func(want bool) {
		g.Helper()
		if got, err := g.k.CheckGuard(); err != nil || got != want {
			t.Errorf("the guard stands: %v, %v, want %v", got, err, want)
		}
	}

	stands(true)
	g.dropped("guard_vxlan_source", n, func() {
		g.inject(2, frames...)
		for i := range n {
			g.heard(true, fmt.Sprintf("good%d", i))
		}
	})

	// That it is an attack, which is seen to be possible and made impossible.
	g.setGRO("overlay0-v4")
	stands(false)
	fooled := ""
	labtest.Eventually(t, 5*time.Second, func() error {
		text, ok := g.listen(g.ears[true])
		if fooled += text; !ok || !strings.Contains(fooled, "evil") {
			g.inject(2, frames...)
			return fmt.Errorf("heard %q", fooled)
		}
		return nil
	})
	t.Logf("heard with receive offload: %q", fooled)
	g.set()
	stands(true)
}
