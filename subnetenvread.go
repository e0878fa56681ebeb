package overlayd

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// ReadSubnetEnv reads what WriteSubnetEnv, or flannel, wrote to path. While the
// node holds no subnet there is no file, and errors.Is(err, fs.ErrNotExist)
// holds. Keys that it does not know are ignored; a file without a subnet or
// without an MTU is an error.
//
// The Subnets of the result are prefixes, as WriteSubnetEnv takes them; the
// bridge's address in each is the one after the first.
func ReadSubnetEnv(path string) (SubnetEnv, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return SubnetEnv{}, fmt.Errorf("subnet file: %w", err)
	}
	e, err := decodeSubnetEnv(b)
	if err != nil {
		return SubnetEnv{}, fmt.Errorf("subnet file %s: %w", path, err)
	}
	return e, nil
}

func decodeSubnetEnv(b []byte) (SubnetEnv, error) {
	keys := map[string]string{}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return SubnetEnv{}, fmt.Errorf("line %q is not KEY=VALUE", line)
		}
		keys[key] = value
	}
	if err := sc.Err(); err != nil {
		return SubnetEnv{}, err
	}
	var e SubnetEnv
	for _, family := range []struct {
		is4 bool
		key string
	}{{true, "FLANNEL_"}, {false, "FLANNEL_IPV6_"}} {
		network, err := prefixOf(keys, family.key+"NETWORK", family.is4)
		if err != nil {
			return SubnetEnv{}, err
		}
		bridge, err := prefixOf(keys, family.key+"SUBNET", family.is4)
		if err != nil {
			return SubnetEnv{}, err
		}
		if network.IsValid() {
			e.Networks = append(e.Networks, network.Masked())
		}
		if !bridge.IsValid() {
			continue
		}
		subnet := bridge.Masked()
		if bridge.Addr() != subnet.Addr().Next() {
			return SubnetEnv{}, fmt.Errorf("%sSUBNET: %s is not the address after the first of %s", family.key, bridge.Addr(), subnet)
		}
		e.Subnets = append(e.Subnets, subnet)
	}
	if len(e.Subnets) == 0 {
		return SubnetEnv{}, fmt.Errorf("it has neither FLANNEL_SUBNET nor FLANNEL_IPV6_SUBNET")
	}
	var err error
	if e.MTU, err = strconv.Atoi(keys["FLANNEL_MTU"]); err != nil || e.MTU <= 0 {
		return SubnetEnv{}, fmt.Errorf("FLANNEL_MTU: %q is no MTU", keys["FLANNEL_MTU"])
	}
	if masq, ok := keys["FLANNEL_IPMASQ"]; ok {
		if e.IPMasq, err = strconv.ParseBool(masq); err != nil {
			return SubnetEnv{}, fmt.Errorf("FLANNEL_IPMASQ: %q is not true or false", masq)
		}
	}
	return e, nil
}

// prefixOf is the prefix of a key, the zero Prefix if the key is not there.
func prefixOf(keys map[string]string, key string, is4 bool) (netip.Prefix, error) {
	text, ok := keys[key]
	if !ok {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%s: %w", key, err)
	case p.Addr().Is4() != is4:
		return netip.Prefix{}, fmt.Errorf("%s: %s is of the other address family", key, p)
	}
	return p, nil
}
