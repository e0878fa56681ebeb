package kernel

import (
	"fmt"
	"net/netip"
	"slices"
)

// The codes of findings. They are stable: scripts may compare them.
const (
	// CodeForwarding4 and CodeForwarding6: the host forwards no IPv4 or IPv6
	// packets, so that nothing passes between containers and the overlay.
	CodeForwarding4 = "ipv4-forwarding-off"
	CodeForwarding6 = "ipv6-forwarding-off"
	// CodeForwardPolicy: a firewall chain on the forward hook drops what no rule accepts.
	CodeForwardPolicy = "forward-policy-drop"
	// CodeForwardRule: a rule on the forward hook drops or rejects everything that no
	// rule in front of it accepts.
	CodeForwardRule = "forward-rule-drop"
	// CodeLegacyTables: a firewall in legacy iptables, which was not read.
	CodeLegacyTables = "legacy-iptables-unread"
	// CodeStrictRPFilter: strict reverse-path filtering on our device or the underlay.
	CodeStrictRPFilter = "rp-filter-strict"
	// CodeCoveringRoute: addresses of the overlay go by another route than ours.
	CodeCoveringRoute = "covering-route"
	// CodePolicyRule: a policy rule sends addresses of the overlay to another table.
	CodePolicyRule = "policy-rule"
)

// Finding is one thing outside of overlayd that keeps packets from the overlay.
type Finding struct {
	// Code is one of the Code constants.
	Code string
	// Text is one line: what it is and its cure.
	Text string
}

// DiagnoseConfig says what to diagnose.
type DiagnoseConfig struct {
	// Device is the TUN device's name.
	Device string
	// Underlay is the name of the underlay interface; empty if not known.
	Underlay string
	// Networks are the overlay networks: only their families are looked at.
	Networks []netip.Prefix
	// Own are this node's subnets. An interface with an address in them is
	// taken for the containers' bridge.
	Own []netip.Prefix
	// World tells that containers also are to reach beyond the overlay, and their
	// answers them.
	World bool
}

// Diagnose looks for what eats the overlay's packets outside of overlayd:
// forwarding switched off, a firewall that drops what it does not know,
// strict reverse-path filtering, other routes and policy rules. Routes are
// looked at for those networks that have their route from SetRoutes.
//
// It only reads. What it may not read, or what this kernel does not have, is
// not reported. After Close it finds nothing.
func (k *Kernel) Diagnose(cfg DiagnoseConfig) []Finding {
	if k.lock() != nil {
		return nil
	}
	defer k.mu.Unlock()

	var found []Finding
	bridges := k.bridges(cfg)
	found = append(found, k.diagnoseForwarding(cfg)...)
	found = append(found, k.diagnoseFirewall(cfg, bridges)...)
	found = append(found, k.diagnoseRPFilter(cfg)...)
	found = append(found, k.diagnoseRoutes(cfg, bridges)...)
	return found
}

// bridge is an interface behind which containers are, with its address there.
type bridge struct {
	name  string
	index int
	addr  netip.Addr
}

// bridges finds the interfaces, other than the TUN and the VXLAN devices, with an
// address in one of our subnets. The caller holds k.mu.
func (k *Kernel) bridges(cfg DiagnoseConfig) []bridge {
	links, err := k.links()
	if err != nil {
		return nil
	}
	addrs, err := k.addrs(nil)
	if err != nil {
		return nil
	}
	var found []bridge
	for _, a := range addrs {
		p, name := addrPrefix(a), linkName(links, a.LinkIndex)
		if p.IsValid() && !ofNode(links[a.LinkIndex], cfg.Device) && insideAny(single(p.Addr()), cfg.Own) {
			found = append(found, bridge{name, a.LinkIndex, p.Addr()})
		}
	}
	return found
}

// Inside names the interfaces behind which containers are: those other than a node's
// own devices that have an address in its subnets.
func (k *Kernel) Inside(device string, own []netip.Prefix) (names []string) {
	if k.lock() != nil {
		return nil
	}
	defer k.mu.Unlock()
	v4, v6 := VXLANNames(device)
	for _, b := range k.bridges(DiagnoseConfig{Device: device, Own: own}) {
		if !slices.Contains([]string{"lo", device, v4, v6}, b.name) && !slices.Contains(names, b.name) {
			names = append(names, b.name)
		}
	}
	slices.Sort(names)
	return names
}

// diagnoseForwarding looks at the forwarding switches. The caller holds k.mu.
func (k *Kernel) diagnoseForwarding(cfg DiagnoseConfig) []Finding {
	var found []Finding
	has4, has6 := families(cfg.Networks)
	if has4 {
		if s, off := k.forwarding4Off(cfg.Device); off {
			found = append(found, Finding{CodeForwarding4, fmt.Sprintf(
				"IPv4 forwarding is off (%s=0), so no container reaches the overlay: sysctl -w %s=1", s, s)})
		}
	}
	if has6 {
		on, ok := k.sysctlGet(sysctlForward6)
		force, _ := k.sysctlGet(sysctlForce6Dev(cfg.Device))
		if ok && on == 0 && force == 0 {
			text := fmt.Sprintf("IPv6 forwarding is off (%s=0), so no container reaches the overlay: sysctl -w %s=1", sysctlForward6, sysctlForward6)
			if cfg.Underlay != "" {
				// A forwarding host ignores router advertisements unless told otherwise.
				text += fmt.Sprintf(" (and %s=2 first, if %s gets its address or default route from router advertisements)",
					sysctl("ipv6/conf/"+cfg.Underlay+"/accept_ra"), cfg.Underlay)
			}
			found = append(found, Finding{CodeForwarding6, text})
		}
	}
	return found
}

// forwarding4Off returns the switch that keeps IPv4 packets which arrive by
// device from being forwarded: IN_DEV_FORWARD is the incoming device's
// (ip_route_input_slow in linux/net/ipv4/route.c), ip_forward sets them all. The
// caller holds k.mu.
func (k *Kernel) forwarding4Off(device string) (sysctl, bool) {
	if on, ok := k.sysctlGet(sysctlForward4); ok && on == 0 {
		return sysctlForward4, true
	}
	if on, ok := k.sysctlGet(sysctlForward4Dev(device)); ok && on == 0 {
		return sysctlForward4Dev(device), true
	}
	return "", false
}

// diagnoseRPFilter looks for strict reverse-path filtering, which IPv4 alone
// has as a sysctl. The caller holds k.mu.
func (k *Kernel) diagnoseRPFilter(cfg DiagnoseConfig) []Finding {
	var found []Finding
	if has4, _ := families(cfg.Networks); !has4 {
		return nil
	}
	v4, v6 := VXLANNames(cfg.Device)
	for _, dev := range []string{cfg.Device, cfg.Underlay, v4, v6} { // what is not there has no filter
		if dev == "" {
			continue
		}
		if v, ok := k.rpFilter(dev); ok && v == rpStrict {
			found = append(found, Finding{CodeStrictRPFilter, fmt.Sprintf(
				"strict reverse-path filtering on %s drops packets whose answer would leave by another interface: sysctl -w %s=%d",
				dev, sysctlRPDev(dev), rpLoose)})
		}
	}
	return found
}

// families tells which address families the networks have.
func families(networks []netip.Prefix) (has4, has6 bool) {
	for _, n := range networks {
		has4 = has4 || n.Addr().Is4()
		has6 = has6 || n.Addr().Is6()
	}
	return has4, has6
}
