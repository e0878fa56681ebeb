package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/overlayd/overlayd"
)

const staticPeerForm = "write name=N,endpoint=ADDR[:PORT],subnet=PREFIX[,vtep-mac=MAC]"

// parseStaticPeer reads one static peer. Its subnet may be given several times, once
// for each of its prefixes.
func parseStaticPeer(text string) (p overlayd.StaticPeer, err error) {
	seen := map[string]bool{}
	for _, part := range strings.Split(text, ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || value == "" {
			return p, fmt.Errorf("%q is not KEY=VALUE: %s", part, staticPeerForm)
		}
		if seen[key] && key != "subnet" {
			return p, fmt.Errorf("%q gives %s twice", text, key)
		}
		seen[key] = true
		switch key {
		case "name":
			p.Name = value
		case "endpoint":
			if p.Endpoint, err = parseEndpoint(value); err != nil {
				return p, err
			}
		case "subnet":
			s, err := parsePrefix(value)
			if err != nil {
				return p, err
			}
			p.Subnets = append(p.Subnets, s)
		case "vtep-mac":
			mac, err := net.ParseMAC(value)
			if err != nil || len(mac) != len(p.VTEPMAC) || [6]byte(mac) == [6]byte{} {
				return p, fmt.Errorf("vtep-mac %q is not a MAC address, such as 02:42:ac:11:00:02", value)
			}
			p.VTEPMAC = [6]byte(mac)
		default:
			return p, fmt.Errorf("%q is not one of name, endpoint, subnet, vtep-mac: %s", key, staticPeerForm)
		}
	}
	for _, key := range []string{"name", "endpoint", "subnet"} {
		if !seen[key] {
			return p, fmt.Errorf("%q has no %s: %s", text, key, staticPeerForm)
		}
	}
	return p, nil
}

// parseEndpoint reads ADDR or ADDR:PORT, with the address of IPv6 in brackets if
// there is a port. Port 0 stands for none.
func parseEndpoint(s string) (netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil && ap.Port() != 0 {
		return ap, nil
	}
	if a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil {
		return netip.AddrPortFrom(a, 0), nil
	}
	return netip.AddrPort{}, fmt.Errorf("endpoint %q is not ADDR or ADDR:PORT, such as 192.0.2.7, 192.0.2.7:4789 or [2001:db8::7]:4789", s)
}
