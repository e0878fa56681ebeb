package main

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd"
)

// The stock plugins, and the bridge that they make. Its name is not the bridge
// plugin's default, cni0, which other networks of the host may use already.
const (
	bridgePlugin = "bridge"
	ipamPlugin   = "host-local"
	bridgeName   = "cni-overlay0"
)

// delegateConfig is the configuration for the delegate, without the version,
// which depends on what the delegate speaks. What the configuration has under
// "delegate" wins over what is made here.
//
// It is what flannel's plugin makes, with these differences: addresses of both
// families; default routes by way of the bridge; no masquerading, which would
// hide containers from each other; and forceAddress, since a node that had to
// take another subnet would find a bridge with the old address, which the bridge
// plugin refuses otherwise.
func delegateConfig(c *config, env overlayd.SubnetEnv) object {
	d := object{"type": bridgePlugin, "mtu": env.MTU}
	if t, ok := c.delegate["type"]; !ok || t == bridgePlugin {
		d["bridge"] = bridgeName
		d["isGateway"] = true
		d["forceAddress"] = true
		d["hairpinMode"] = true
		d["ipMasq"] = false
	}
	maps.Copy(d, c.delegate)
	ipam, _ := c.delegate["ipam"].(object)
	d["ipam"] = ipamConfig(ipam, env)
	maps.Copy(d, c.passed)
	d["name"] = c.name
	return d
}

// ipamConfig completes the delegate's ipam. Another plugin than host-local gets
// what is written and nothing else.
func ipamConfig(given object, env overlayd.SubnetEnv) object {
	ipam := object{"type": ipamPlugin}
	maps.Copy(ipam, given)
	if ipam["type"] != ipamPlugin {
		return ipam
	}
	_, hasRanges := ipam["ranges"]
	_, hasSubnet := ipam["subnet"] // of host-local's older form
	ours := !hasRanges && !hasSubnet
	if ours {
		var ranges []any
		for _, s := range env.Subnets {
			ranges = append(ranges, []any{object{"subnet": s.String(), "gateway": gateway(s)}})
		}
		ipam["ranges"] = ranges
	}
	if _, ok := ipam["routes"]; !ok {
		ipam["routes"] = routes(env, ours)
	}
	return ipam
}

// routes are those of a container. The overlay has routes of its own beside the
// default ones, so that they remain when the container's default route is another
// network's. withGateway names the gateway: the bridge plugin would find it by
// itself, but its CHECK looks for the route as it is written here.
func routes(env overlayd.SubnetEnv, withGateway bool) []any {
	list := []any{}
	for _, s := range env.Subnets {
		everything := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if s.Addr().Is4() {
			everything = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		for _, dst := range append(slices.Clone(env.Networks), everything) {
			if dst.Addr().Is4() != s.Addr().Is4() {
				continue
			}
			route := object{"dst": dst.String()}
			if withGateway {
				route["gw"] = gateway(s)
			}
			list = append(list, route)
		}
	}
	return list
}

// gateway is the bridge's address in a subnet, the one that subnet.env has.
func gateway(subnet netip.Prefix) string { return subnet.Addr().Next().String() }
