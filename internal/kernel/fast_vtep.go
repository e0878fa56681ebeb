package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrDeviceConflict: a device that is not ours is where our VXLAN device
// should be, or has its UDP port.
var ErrDeviceConflict = errors.New("device conflict")

// vtepSuffixes make the names of the VXLAN devices out of the TUN's, by
// familyIndex.
var vtepSuffixes = [2]string{"-v4", "-v6"}

// VXLANNames returns the names of the VXLAN devices of the node whose TUN device
// is called device: the one over an IPv4 underlay, the one over IPv6.
func VXLANNames(device string) (v4, v6 string) { return vtepName(device, 0), vtepName(device, 1) }

// familyNames are the families by familyIndex.
var familyNames = [2]string{"IPv4", "IPv6"}

func vtepName(device string, family int) string { return device + vtepSuffixes[family] }

// familyIndex is 0 for IPv4 and 1 for IPv6.
func familyIndex(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// vtep is a VXLAN device of ours.
type vtep struct {
	name  string
	local netip.Addr // the endpoint; the zero Addr if there is none of the family
	index int        // 0 while there is no such device
	up    bool
	err   error // why it cannot be had or set up
	// strict: its reverse-path filter cannot be set.
	strict bool
}

// failure is err, but no error where no device is needed.
func (v *vtep) failure() error {
	if !v.local.IsValid() {
		return nil
	}
	return v.err
}

// isVTEP tells whether l is a VXLAN device that carries our alias.
func isVTEP(l netlink.Link) bool { return l.Type() == "vxlan" && l.Attrs().Alias == DeviceAlias }

// wantedVXLAN is what the device of a family must be.
func (f *Fast) wantedVXLAN(i int) vxlanAttrs {
	a := vxlanAttrs{vni: f.cfg.VNI, port: f.cfg.Port, local: f.vteps[i].local, tos: tosInherit, checksum: true}
	if a.local.Is4() {
		// Without it a router may fragment what is too long, and a probe of full
		// size would prove nothing. IPv6 routers never do.
		a.df = vxlanDFSet
	}
	return a
}

// ensureVTEP makes the device of a family what it must be, and returns what it
// had to do for that. v.err says why it cannot be had. The caller holds k.mu.
func (f *Fast) ensureVTEP(i int) (did []string) {
	v := &f.vteps[i]
	v.index, v.up, v.err = 0, false, nil
	l, err := f.k.readVXLAN(v.name, 0)
	if err != nil {
		v.err = err
		return nil
	}
	if !v.local.IsValid() {
		v.err = fmt.Errorf("this node has no %s endpoint: %w", familyNames[i], ErrNoAddress)
		if l != nil && l.ours() {
			// The endpoint is no more: so say the settings, not a peer's state.
			if err := f.k.deleteLink(l.index); err != nil {
				v.err = deviceError(v.name, "removing it", err)
				return nil
			}
			did = append(did, "removed the device "+v.name)
		}
		return did
	}
	if l != nil && !l.ours() && !f.halfMade(l, i) {
		v.err = fmt.Errorf("device %s: %w: overlayd has not made it: remove it (ip link del %s), or choose another --device",
			v.name, ErrDeviceConflict, v.name)
		return did
	}
	if l != nil && l.vxlan != f.wantedVXLAN(i) {
		if err := f.k.deleteLink(l.index); err != nil {
			v.err = deviceError(v.name, "removing it, because its settings have changed", err)
			return did
		}
		did = append(did, fmt.Sprintf("removed the device %s, which had other settings", v.name))
		l = nil
	}
	if l == nil {
		var found []string
		l, found = f.findRenamed(i)
		did = append(did, found...)
	}
	if l == nil {
		if err := f.makeVTEP(i); err != nil {
			v.err = err
			return did
		}
		did = append(did, "made the device "+v.name)
		if l, err = f.k.readVXLAN(v.name, 0); err == nil && l == nil {
			err = ErrNoInterface
		}
		if err != nil {
			v.err = deviceError(v.name, "reading it back", err)
			return did
		}
		if got := l.vxlan; got != f.wantedVXLAN(i) {
			v.err = fmt.Errorf("device %s: this kernel makes another VXLAN device than asked for (df set needs Linux 4.20)", v.name)
			return append(did, f.undo(l)...)
		}
	}
	v.index, v.up = l.index, l.up
	fixed, err := f.fixVTEP(i, l)
	v.err = err
	return append(did, fixed...)
}

// findRenamed looks for a device of ours that somebody has renamed, and names
// it back: while it is there, no other with its VNI and port can be made.
// The caller holds k.mu.
func (f *Fast) findRenamed(i int) (l *vxlanLink, did []string) {
	v := &f.vteps[i]
	links, err := f.k.links()
	if err != nil {
		return nil, nil
	}
	for index, link := range links {
		if !isVTEP(link) || link.Attrs().Name != f.vteps[1-i].name && ownerLives(link, links) {
			continue
		}
		l, err := f.k.readVXLAN("", index)
		if err != nil || l == nil || !l.ours() || l.vxlan != f.wantedVXLAN(i) {
			continue
		}
		if f.k.renameLink(index, v.name) != nil { // before Linux 6.2 none that is up can be renamed
			return nil, f.undo(l)
		}
		return l, []string{fmt.Sprintf("named the device %s %s again", l.name, v.name)}
	}
	return nil, nil
}

// vtepOwner is the name of the TUN device after which a VXLAN device is named; ok
// is false if its name is none that we give.
func vtepOwner(name string) (device string, ok bool) {
	for _, suffix := range vtepSuffixes {
		if device, ok := strings.CutSuffix(name, suffix); ok {
			return device, true
		}
	}
	return "", false
}

// ownerLives tells whether the daemon that has made the VXLAN device l lives:
// then the TUN that it is named after is there.
func ownerLives(l netlink.Link, links map[int]netlink.Link) bool {
	device, ok := vtepOwner(l.Attrs().Name)
	if !ok {
		return false
	}
	for _, tun := range links {
		if tun.Attrs().Name == device && isTUN(tun) && tun.Attrs().Alias == DeviceAlias {
			return true
		}
	}
	return false
}

// ofNode tells whether l is the TUN device called device, or a VXLAN device of ours
// that is named after it.
func ofNode(l netlink.Link, device string) bool {
	if l == nil || device == "" {
		return false
	}
	if l.Attrs().Name == device {
		return true
	}
	owner, ok := vtepOwner(l.Attrs().Name)
	return ok && owner == device && isVTEP(l)
}

// ownsDevice tells whether l is our VXLAN device of a family, also if somebody has
// renamed it.
func (f *Fast) ownsDevice(i int, l netlink.Link, links map[int]netlink.Link) bool {
	x, ok := l.(*netlink.Vxlan)
	if !ok || !isVTEP(l) {
		return false
	}
	local, _ := netip.AddrFromSlice(x.SrcAddr)
	same := x.VxlanId == int(f.cfg.VNI) && x.Port == int(f.cfg.Port) && local.Unmap() == f.vteps[i].local
	return x.Name == f.vteps[i].name || same && x.Name != f.vteps[1-i].name && !ownerLives(l, links)
}

// undo removes a device that cannot be used.
func (f *Fast) undo(l *vxlanLink) []string {
	if f.k.deleteLink(l.index) != nil {
		return nil
	}
	return []string{"removed the device " + l.name}
}

// halfMade tells whether l is a device of ours whose daemon was killed between
// making it and marking it: the kernel takes no alias for a device that it is
// about to make (rtnl_create_link in linux/net/core/rtnetlink.c). Nobody else
// would give it our VTEP's MAC.
func (f *Fast) halfMade(l *vxlanLink, i int) bool {
	return l.kind == "vxlan" && l.alias == "" && !l.up && l.mac == f.cfg.MAC && l.vxlan == f.wantedVXLAN(i)
}

// makeVTEP makes the device of a family, down. The caller holds k.mu.
func (f *Fast) makeVTEP(i int) error {
	v := &f.vteps[i]
	want := f.wantedVXLAN(i)
	req := []nl.NetlinkRequestData{
		nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.name)),
		nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(f.cfg.MTU))),
		// Said here, systemd-udevd leaves it alone (MACAddressPolicy in systemd.link(5)
		// goes by addr_assign_type).
		nl.NewRtAttr(unix.IFLA_ADDRESS, f.cfg.MAC[:]),
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_VXLAN_ID, nl.Uint32Attr(want.vni))
	data.AddRtAttr(nl.IFLA_VXLAN_PORT, nl.BEUint16Attr(want.port))
	local := nl.IFLA_VXLAN_LOCAL
	if want.local.Is6() {
		local = nl.IFLA_VXLAN_LOCAL6
	}
	data.AddRtAttr(local, want.local.AsSlice())
	data.AddRtAttr(nl.IFLA_VXLAN_LEARNING, nl.Uint8Attr(0))
	data.AddRtAttr(nl.IFLA_VXLAN_TOS, nl.Uint8Attr(want.tos))
	data.AddRtAttr(nl.IFLA_VXLAN_UDP_CSUM, nl.Uint8Attr(1))
	data.AddRtAttr(nl.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, nl.Uint8Attr(0))
	data.AddRtAttr(nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, nl.Uint8Attr(0))
	if want.df != 0 {
		data.AddRtAttr(iflaVXLANDF, nl.Uint8Attr(want.df))
	}
	_, err := f.k.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK, 0, append(req, info)...)
	switch {
	case errors.Is(err, unix.EEXIST):
		return f.inTheWay(i, fmt.Sprintf("there is another VXLAN device with VNI %d and UDP port %d", want.vni, want.port))
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("device %s: this kernel has no VXLAN (module vxlan): %w", v.name, err)
	case errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("device %s: this kernel has no IPv6: %w", v.name, err)
	case err != nil:
		return deviceError(v.name, "making it", err)
	}
	l, err := f.k.link(v.name)
	if err == nil {
		err = f.k.h.LinkSetAlias(l, DeviceAlias)
	}
	if err != nil {
		return deviceError(v.name, "setting its alias", err)
	}
	return nil
}

// inTheWay says which other VXLAN device is to blame for what, as far as that
// can be seen. The caller holds k.mu.
func (f *Fast) inTheWay(i int, what string) error {
	v := &f.vteps[i]
	who := ""
	if links, err := f.k.links(); err == nil {
		for _, l := range links {
			if x, ok := l.(*netlink.Vxlan); ok && x.Port == int(f.cfg.Port) && x.Name != v.name && x.Name != f.vteps[1-i].name {
				who = fmt.Sprintf(" (%s has the port)", x.Name)
			}
		}
	}
	return fmt.Errorf("device %s: %w: %s%s: remove it, or choose another --kernel-vxlan-port on all nodes", v.name, ErrDeviceConflict, what, who)
}

// fixVTEP sets those properties that can be set while the device exists. l is what
// it is now. The caller holds k.mu.
func (f *Fast) fixVTEP(i int, l *vxlanLink) (did []string, err error) {
	v, k := &f.vteps[i], f.k
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: l.index, Name: v.name}}
	fix := func(needed bool, what string, set func() error) {
		if !needed || err != nil {
			return
		}
		if err = set(); err != nil {
			err = deviceError(v.name, what, err)
			return
		}
		did = append(did, fmt.Sprintf("device %s: %s", v.name, what))
	}
	fix(l.alias != DeviceAlias, "setting its alias", func() error { return k.h.LinkSetAlias(link, DeviceAlias) })
	// A bridge's port takes no packets in for this host.
	fix(l.master != 0, "taking it out of a bridge", func() error { return k.h.LinkSetNoMaster(link) })
	// The MTU comes before IPv6, which the kernel takes from a device with a
	// small one.
	fix(l.mtu != f.cfg.MTU, fmt.Sprintf("setting its MTU to %d", f.cfg.MTU), func() error { return k.h.LinkSetMTU(link, f.cfg.MTU) })
	fix(l.mac != f.cfg.MAC, "setting its MAC to "+macString(f.cfg.MAC), func() error { return k.h.LinkSetHardwareAddr(link, f.cfg.MAC[:]) })
	var joining bool
	if err == nil {
		err = k.inNamespace(func() (err error) {
			joining, err = joins([]string{v.name})
			return err
		})
	}
	fix(joining, "switching its receive offload off", func() error {
		return k.inNamespace(func() error { return joinNothing([]string{v.name}) })
	})
	noIPv6, known := k.sysctlGet(sysctlNoIPv6Dev(v.name))
	off := f.cfg.IPv6 && (!known || noIPv6 != 0)
	// With the MTU, IPv6 may have come back just now, as it is by default.
	if wrong := known && l.genMode != in6AddrGenModeNone; err == nil && (off || wrong) {
		if err = k.prepareIPv6(link, f.cfg.IPv6); err == nil { // its errors name the device
			did = append(did, fmt.Sprintf("device %s: setting IPv6 up", v.name))
		}
	}
	if value, ok := k.sysctlGet(sysctlRPDev(v.name)); ok && value != rpLoose && !v.strict {
		// Where /proc/sys is read-only, loosen says so, once.
		k.loosen(v.name)
		value, _ = k.sysctlGet(sysctlRPDev(v.name))
		if v.strict = value != rpLoose; !v.strict {
			did = append(did, fmt.Sprintf("device %s: setting loose reverse-path filtering", v.name))
		}
	}
	if f.up == powerUnset || l.up == (f.up == powerUp) || err != nil {
		return did, err
	}
	if f.up == powerDown {
		fix(true, "setting it down", func() error { return k.h.LinkSetDown(link) })
		v.up = err != nil
		return did, err
	}
	// The device takes its UDP port when it is set up (vxlan_open in
	// linux/drivers/net/vxlan/vxlan_core.c).
	switch err := k.h.LinkSetUp(link); {
	case errors.Is(err, unix.EADDRINUSE):
		return did, f.inTheWay(i, fmt.Sprintf("another program, or another VXLAN device, has UDP port %d", f.cfg.Port))
	case err != nil:
		return did, deviceError(v.name, "setting it up", err)
	}
	v.up = true
	return append(did, fmt.Sprintf("device %s: setting it up", v.name)), nil
}

// usableMAC tells whether mac can be a single station's.
func usableMAC(mac [6]byte) bool { return mac != [6]byte{} && mac[0]&1 == 0 }

// macString spells a MAC as Linux does.
func macString(mac [6]byte) string { return net.HardwareAddr(mac[:]).String() }
