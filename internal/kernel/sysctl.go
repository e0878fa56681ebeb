package kernel

import (
	"os"
	"strconv"
	"strings"
)

// sysctl is the name of a network sysctl as its path below /proc/sys/net, so
// that a device name with a dot in it stays one part.
type sysctl string

// String returns the name that sysctl(8) takes, which writes a dot inside a
// part as a slash.
func (s sysctl) String() string {
	parts := strings.Split(string(s), "/")
	for i, p := range parts {
		parts[i] = strings.ReplaceAll(p, ".", "/")
	}
	return "net." + strings.Join(parts, ".")
}

func (s sysctl) path() string { return "/proc/sys/net/" + string(s) }

// The sysctls that decide about forwarding and reverse-path filtering
// (linux/Documentation/networking/ip-sysctl.rst).
const (
	// ip_forward is conf/all/forwarding of IPv4: writing it sets every device's.
	sysctlForward4 sysctl = "ipv4/ip_forward"
	// ip6_forward (linux/net/ipv6/ip6_output.c) looks at this one alone, and
	// since Linux 6.17 at the incoming device's force_forwarding.
	sysctlForward6 sysctl = "ipv6/conf/all/forwarding"
	sysctlRPAll    sysctl = "ipv4/conf/all/rp_filter"
)

func sysctlForward4Dev(dev string) sysctl { return sysctl("ipv4/conf/" + dev + "/forwarding") }
func sysctlForce6Dev(dev string) sysctl   { return sysctl("ipv6/conf/" + dev + "/force_forwarding") }
func sysctlRPDev(dev string) sysctl       { return sysctl("ipv4/conf/" + dev + "/rp_filter") }
func sysctlAcceptLocal(dev string) sysctl { return sysctl("ipv4/conf/" + dev + "/accept_local") }
func sysctlNoIPv6Dev(dev string) sysctl   { return sysctl("ipv6/conf/" + dev + "/disable_ipv6") }

// The values of rp_filter, RFC 3704 sections 2.2 and 2.4. The one in effect is
// the larger of conf/all and the device's: IN_DEV_RPFILTER is
// IN_DEV_MAXCONF((in_dev), RP_FILTER) (linux/include/linux/inetdevice.h). So
// a device with the loose value, the largest, is loose whatever conf/all says.
const (
	rpStrict = 1
	rpLoose  = 2
)

// sysctlGet reads a number; ok is false when it cannot be read, for whatever
// reason. The caller holds k.mu.
func (k *Kernel) sysctlGet(s sysctl) (value int, ok bool) {
	b, err := k.readProc(s.path())
	if err != nil {
		return 0, false
	}
	value, err = strconv.Atoi(strings.TrimSpace(string(b)))
	return value, err == nil
}

// sysctlSet writes a number. CAP_NET_ADMIN is enough (net_ctl_permissions in
// linux/net/sysctl_net.c), but /proc/sys is read-only in most containers. The
// caller holds k.mu.
func (k *Kernel) sysctlSet(s sysctl, value int) error {
	return k.inNamespace(func() error {
		return os.WriteFile(s.path(), []byte(strconv.Itoa(value)), 0)
	})
}

// rpFilter returns the reverse-path filter in effect on dev. The caller holds
// k.mu.
func (k *Kernel) rpFilter(dev string) (value int, ok bool) {
	all, ok1 := k.sysctlGet(sysctlRPAll)
	own, ok2 := k.sysctlGet(sysctlRPDev(dev))
	return max(all, own), ok1 && ok2
}
