package lab

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// SubnetEnv is a subnet.env file as a container runtime reads it.
type SubnetEnv struct {
	Network4, Network6 netip.Prefix // FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK
	// Subnet4 and Subnet6 are FLANNEL_SUBNET and FLANNEL_IPV6_SUBNET: the
	// bridge's address with the length of the subnet.
	Subnet4, Subnet6 netip.Prefix
	MTU              int  // FLANNEL_MTU
	IPMasq           bool // FLANNEL_IPMASQ
}

// Subnets returns the bridge's addresses, IPv4 first, those that are there.
func (e SubnetEnv) Subnets() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range []netip.Prefix{e.Subnet4, e.Subnet6} {
		if p.IsValid() {
			out = append(out, p)
		}
	}
	return out
}

// ReadSubnetEnv reads a subnet.env file. The error is fs.ErrNotExist while
// there is none.
func ReadSubnetEnv(path string) (SubnetEnv, error) {
	f, err := os.Open(path)
	if err != nil {
		return SubnetEnv{}, fmt.Errorf("lab: %w", err)
	}
	defer f.Close()
	var e SubnetEnv
	prefixes := map[string]*netip.Prefix{
		"FLANNEL_NETWORK":      &e.Network4,
		"FLANNEL_SUBNET":       &e.Subnet4,
		"FLANNEL_IPV6_NETWORK": &e.Network6,
		"FLANNEL_IPV6_SUBNET":  &e.Subnet6,
	}
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return SubnetEnv{}, fmt.Errorf("lab: %s: line %q is not KEY=VALUE", path, line)
		}
		switch p := prefixes[key]; {
		case p != nil:
			*p, err = netip.ParsePrefix(value)
		case key == "FLANNEL_MTU":
			e.MTU, err = strconv.Atoi(value)
		case key == "FLANNEL_IPMASQ":
			e.IPMasq, err = strconv.ParseBool(value)
		}
		if err != nil {
			return SubnetEnv{}, fmt.Errorf("lab: %s: %s: %w", path, key, err)
		}
	}
	if err := sc.Err(); err != nil {
		return SubnetEnv{}, fmt.Errorf("lab: %w", err)
	}
	return e, nil
}
