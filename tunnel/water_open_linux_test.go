package tunnel_test

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/tunnel"
)

// Names in use are refused, whoever uses them, and what they stand for stays
// as it is.
func TestWaterNameInUse(t *testing.T) {
	enterNetNS(t)
	persistent := makePersistent(t, tunName("p"))
	defer persistent()
	mine := openTUN(t, "m", 1500)
	before := len(tunFDs(t))
	for _, name := range []string{"lo", tunName("p"), mine.Name()} {
		dev, err := tunnel.OpenWater(name, 1500)
		if dev != nil || !errors.Is(err, tunnel.ErrNameInUse) {
			t.Errorf("OpenWater(%s) = %v, %v; want ErrNameInUse", name, dev, err)
			continue
		}
		wantOneLine(t, err)
		if !linkExists(name) {
			t.Errorf("%s is gone", name)
		}
	}
	if after := len(tunFDs(t)); after != before {
		t.Errorf("%d descriptors of %s before, %d after refusals", before, "/dev/net/tun", after)
	}
}

// makePersistent makes a TUN that outlives its descriptor; the result ends it.
func makePersistent(t *testing.T, name string) func() {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	check(t, err)
	r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	check(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, r))
	check(t, unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
	return func() { deleteLink(t, name) }
}

// tunFDs lists this process's descriptors of /dev/net/tun with their flags.
func tunFDs(t *testing.T) map[string]int64 {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	fds := map[string]int64{}
	for _, e := range dir {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err != nil || to != "/dev/net/tun" {
			continue
		}
		info, err := os.ReadFile("/proc/self/fdinfo/" + e.Name())
		check(t, err)
		for line := range strings.Lines(string(info)) {
			if v, ok := strings.CutPrefix(line, "flags:"); ok {
				flags, err := strconv.ParseInt(strings.TrimSpace(v), 8, 64)
				check(t, err)
				fds[e.Name()] = flags
			}
		}
	}
	return fds
}

// A program that the process starts must not keep the interface alive.
func TestWaterCloseOnExec(t *testing.T) {
	enterNetNS(t)
	openTUN(t, "x", 1500)
	fds := tunFDs(t)
	if len(fds) != 1 {
		t.Errorf("%d descriptors of /dev/net/tun are open, want 1", len(fds))
	}
	for fd, flags := range fds {
		if flags&unix.O_CLOEXEC == 0 {
			t.Errorf("descriptor %s has flags %#o, without O_CLOEXEC", fd, flags)
		}
	}
}

// Without the privilege the error says which one; nothing is left open.
func TestWaterPermission(t *testing.T) {
	enterNetNS(t)
	before := len(tunFDs(t))
	dropCapability(t, unix.CAP_NET_ADMIN)
	dev, err := tunnel.OpenWater(tunName("q"), 1500)
	if dev != nil || !errors.Is(err, tunnel.ErrPermission) {
		t.Fatalf("OpenWater = %v, %v; want ErrPermission", dev, err)
	}
	wantOneLine(t, err)
	if !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("%q does not name the privilege", err)
	}
	if after := len(tunFDs(t)); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// dropCapability takes an effective capability from the calling thread only.
func dropCapability(t *testing.T, capability int) {
	t.Helper()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	check(t, unix.Capget(&hdr, &data[0]))
	data[capability/32].Effective &^= 1 << (capability % 32)
	check(t, unix.Capset(&hdr, &data[0]))
}

// What stands for the device, in a mount namespace of the test's own.
func TestWaterNoTUN(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(t *testing.T)
		want error
	}{
		{"missing", func(t *testing.T) {}, tunnel.ErrNoTUN},
		{"a file", func(t *testing.T) { check(t, os.WriteFile("/dev/net/tun", nil, 0o600)) }, tunnel.ErrNoTUN},
		{"another device", func(t *testing.T) { // null: 1, 3
			check(t, unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
		}, tunnel.ErrNoTUN},
		{"no driver", func(t *testing.T) { // major 60 is for experiments
			check(t, unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o600, int(unix.Mkdev(60, 200))))
		}, tunnel.ErrNoTUN},
		{"not readable", func(t *testing.T) {
			check(t, unix.Mknod("/dev/net/tun", unix.S_IFCHR, int(unix.Mkdev(10, 200))))
			dropCapability(t, unix.CAP_DAC_OVERRIDE)
		}, tunnel.ErrPermission},
	} {
		t.Run(c.name, func(t *testing.T) {
			enterNetNS(t)
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				t.Skipf("needs to make a mount namespace: %v", err)
			}
			check(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
			check(t, unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, ""))
			c.make(t)
			dev, err := tunnel.OpenWater(tunName("n"), 1500)
			if dev != nil || !errors.Is(err, c.want) {
				t.Fatalf("OpenWater = %v, %v; want %v", dev, err, c.want)
			}
			wantOneLine(t, err)
		})
	}
}
