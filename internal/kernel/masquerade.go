package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ErrNoMasquerade: containers do not reach the world by their host's address, because
// nftables is not there, or refuses the rules, or this process lacks the right. The
// text says which.
var ErrNoMasquerade = errors.New("no masquerading")

// Masquerade is what hides a node's containers behind the host's address when they
// reach beyond the overlay: a table of nftables.
//
// Its chain sees the first packet of each connection only. What it leaves alone goes on
// as it is by whatever path, also when the path changes in the middle: the kernel
// forgets a connection with its output device only where it was masqueraded
// (nf_nat_oif_changed in linux/net/netfilter/nf_nat_core.c).
type Masquerade struct {
	// Device is the TUN's name; the table is inet "overlayd-"+Device+"/nat".
	Device string
	// Own are this node's subnets, whose addresses are hidden.
	Own []netip.Prefix
	// Networks are the overlay's: what goes there is never rewritten.
	Networks []netip.Prefix
	// Ports are the UDP ports of overlay data, Peers those of peers that have others. What
	// goes there is left alone, so that a container cannot send to a peer in its host's
	// name. A peer says itself where it is: it takes no more than its own addresses out.
	Ports []uint16
	Peers []netip.AddrPort
}

// natTable is the name of the table for a device. No device has a slash in its name, so
// it is no other device's guard.
func natTable(device string) string { return guardTable(device) + "/nat" }

// neverMasqueraded are destinations that no address of a host's helps with: multicast
// groups, to which the answers would come to the group, and IPv6 link-local addresses,
// which are not routed. IPv4's are left out on purpose: at 169.254.169.254 clouds have
// their metadata service, which knows the host alone.
var neverMasqueraded = []netip.Prefix{
	netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("ff00::/8"), netip.MustParsePrefix("fe80::/10"),
}

// SetMasquerade makes the table for m, in one transaction: at every moment either the
// one before or this one stands, and connections that exist go on as they began, but for
// those that began while none stood and have not found a way back. A table that stands
// already for the same m is left alone.
//
// The error is ErrNoMasquerade, and what stood before stands as it was.
func (k *Kernel) SetMasquerade(m Masquerade) error {
	if err := k.lock(); err != nil {
		return err
	}
	defer k.mu.Unlock()
	err := m.check()
	if err == nil {
		err = k.inNamespace(func() error { return k.setMasquerade(&m) })
	}
	if err != nil {
		return fmt.Errorf("kernel: %w: %w", ErrNoMasquerade, masqueradeCause(err))
	}
	return nil
}

// masqueradeCause says in plain words what an error of nftables means.
func masqueradeCause(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w; unless another program holds the table for itself", ErrPermission)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("this kernel's nftables lacks something that masquerading needs (CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, CONFIG_NFT_MASQ; Linux 5.2 or later): %w", err)
	}
	return err
}

// setMasquerade does what SetMasquerade says, in the namespace. The caller holds k.mu.
func (k *Kernel) setMasquerade(m *Masquerade) error {
	c, err := openNF()
	if err != nil {
		return err
	}
	defer c.close()
	st := masqueradeState{tableState: tableState{name: natTable(m.Device)}, fixed: fmt.Sprintf("%+v", *m)}
	if old := k.masq; old != nil && old.fixed == st.fixed {
		if stands, err := old.stands(c); err == nil && stands {
			return nil
		}
	}
	chains, err := chainMessages(st.name, []tableChain{m.chain()})
	if err != nil {
		return err
	}
	if err := st.replace(c, append(emptyTable(st.name), chains...)); err != nil {
		return err
	}
	k.masq = &st
	if err := forgetUntranslated(m); err != nil {
		k.log.Debug("what containers have begun without masquerading goes on so", "err", err)
	}
	return nil
}

// masqueradeState is what SetMasquerade has put into the kernel. Kernel.mu guards it.
type masqueradeState struct {
	tableState
	fixed string // the Masquerade, to be compared
}

func (m *Masquerade) check() error {
	if !isIfName(m.Device) {
		return fmt.Errorf("%q is no name of an interface", m.Device)
	}
	if len(m.Networks) == 0 {
		return errors.New("no overlay network is known, so that everything would be rewritten")
	}
	if slices.Contains(m.Ports, 0) {
		return errors.New("a port is 0")
	}
	for _, p := range slices.Concat(m.Networks, m.Own) {
		if why := badPrefix(p); why != "" {
			return fmt.Errorf("network %v: %s", p, why)
		}
	}
	return nil
}

// chain is the one chain of the table. It stands where everybody has source NAT, and
// ends with an accept, so that somebody else's chain there still has its say about what
// this one leaves alone.
//
// A peer's own underlay address lies beyond the overlay, as any other host: a container
// reaches it by its host's address, and the answer comes back to that. So it works, as
// with flannel, where the underlay drops sources that it does not know. (Without
// masquerading the peer's host answers by the overlay.) What a peer's host has begun is
// an answer here, and stays as it is.
func (m *Masquerade) chain() tableChain {
	c := tableChain{name: "postrouting", kind: nftables.ChainTypeNAT,
		hook: nftables.ChainHookPostrouting, priority: *nftables.ChainPriorityNATSource}
	v4, v6 := VXLANNames(m.Device)
	// By lo goes what the host says to itself, which may be from its address in Own.
	for _, dev := range []string{"lo", m.Device, v4, v6} {
		c.rules = append(c.rules, rule(named(expr.MetaKeyOIFNAME, dev), accepted()))
	}
	for _, p := range slices.Concat(m.Networks, neverMasqueraded) {
		c.rules = append(c.rules, rule(family(p.Addr()), within(offDest(p.Addr()), p), accepted()))
	}
	for _, port := range m.Ports {
		c.rules = append(c.rules, rule(toPort(port), accepted()))
	}
	for _, p := range m.Peers {
		a := p.Addr().Unmap()
		if badPeerAddr(a) != "" || p.Port() == 0 {
			continue // nothing is sent there
		}
		c.rules = append(c.rules, rule(family(a), within(offDest(a), single(a)), toPort(p.Port()), accepted()))
	}
	for _, p := range m.Own {
		// Random ports, as flannel has them: two connections that begin at once may else
		// choose the same one, and one of them loses a packet.
		c.rules = append(c.rules, rule(family(p.Addr()), within(offSource(p.Addr()), p), []expr.Any{&expr.Masq{FullyRandom: true}}))
	}
	return c
}

// toPort matches UDP to a port.
func toPort(port uint16) []expr.Any {
	return rule(meta(expr.MetaKeyL4PROTO, reg), compare(expr.CmpOpEq, []byte{unix.IPPROTO_UDP}),
		load(expr.PayloadBaseTransportHeader, offUDPDest, 2, reg), compare(expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, port)))
}

// CheckMasquerade tells whether the table stands as SetMasquerade has left it, with
// nothing missing, changed or added. It is false if SetMasquerade was not called. It
// costs one request as long as nobody has changed anything in nftables.
func (k *Kernel) CheckMasquerade() (stands bool, err error) {
	if err := k.lock(); err != nil {
		return false, err
	}
	defer k.mu.Unlock()
	if k.masq == nil {
		return false, nil
	}
	err = k.inNamespace(func() error {
		c, err := openNF()
		if err != nil {
			return err
		}
		defer c.close()
		stands, err = k.masq.stands(c)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("kernel: looking at the masquerade: %w", masqueradeCause(err))
	}
	return stands, nil
}

// RemoveMasquerade removes the table for a device, whoever has made it, and returns what
// was removed, in words. It is no error if there is none, or no nftables. Connections
// that were masqueraded pause until it is back, unless somebody else has NAT on this
// host: with the last chain of it goes the translating (nf_nat_unregister_fn in
// linux/net/netfilter/nf_nat_core.c).
func (k *Kernel) RemoveMasquerade(device string) (removed []string, err error) {
	if err := k.lock(); err != nil {
		return nil, err
	}
	defer k.mu.Unlock()
	return k.removeMasquerade(device)
}

// removeMasquerade does what RemoveMasquerade says. The caller holds k.mu.
func (k *Kernel) removeMasquerade(device string) (removed []string, err error) {
	found, err := k.removeTable(natTable(device))
	if found {
		removed = append(removed, "nftables table inet "+natTable(device))
	}
	if err != nil {
		return removed, fmt.Errorf("kernel: removing the masquerade for %s: %w", device, err)
	}
	if k.masq != nil && k.masq.name == natTable(device) {
		k.masq = nil
	}
	return removed, nil
}
