package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Inject sends frames by an Ethernet interface, one after the other and again from the
// first, count in all, whatever the host's own kernel would have to say about them.
func (n *Namespace) Inject(iface string, frames [][]byte, count int) error {
	link, err := n.nl.LinkByName(iface)
	if err != nil || len(frames) == 0 {
		return fmt.Errorf("lab: %s: inject %d frames by %s: %w", n.short, len(frames), iface, err)
	}
	return n.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}
		for i := 0; i < count; {
			switch err := unix.Sendto(fd, frames[i%len(frames)], 0, to); {
			case err == nil:
				i++
			case errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN):
				runtime.Gosched()
			default:
				return fmt.Errorf("lab: %s: inject by %s: %w", n.short, iface, err)
			}
		}
		return nil
	})
}

// MAC is an interface's own.
func (n *Namespace) MAC(iface string) (mac net.HardwareAddr, err error) {
	err = n.Do(func() error {
		i, err := net.InterfaceByName(iface)
		if err != nil {
			return fmt.Errorf("lab: %s: %s: %w", n.short, iface, err)
		}
		mac = i.HardwareAddr
		return nil
	})
	return mac, err
}

// natTable holds a chain that translates addresses.
const natTable = "lab_nat"

// Masquerade has the host put its own address into what it forwards to hosts in some
// networks, as container engines do.
func (h *Host) Masquerade(to ...netip.Prefix) error {
	return h.nft(func(c *nftables.Conn) error {
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: natTable})
		ch := c.AddChain(&nftables.Chain{
			Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		for _, p := range to {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: append(matchAddr(t.Family, p, 16, 24), &expr.Masq{})})
		}
		return c.Flush()
	})
}
