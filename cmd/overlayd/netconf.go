package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// readNetConf reads flannel's net-conf.json (flannel Documentation/configuration.md
// and backends.md) as settings. What overlayd cannot do as flannel does is refused,
// not ignored, unknown keys included, since flannel's own silence about those hides
// mistakes.
func readNetConf(path string) (values, error) {
	b, err := readBounded(path, maxConfigFile)
	if err != nil {
		return nil, usagef("net-conf: %w", err)
	}
	v, err := parseNetConf(path, b)
	if err != nil {
		return nil, usagef("%s: %w", path, err)
	}
	return v, nil
}

func parseNetConf(path string, b []byte) (values, error) {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	n := &netConf{path: path, v: values{}}
	top := map[string]any{
		"Network": &n.four.network, "SubnetLen": &n.four.length, "SubnetMin": &n.four.min, "SubnetMax": &n.four.max,
		"IPv6Network": &n.six.network, "IPv6SubnetLen": &n.six.length, "IPv6SubnetMin": &n.six.min, "IPv6SubnetMax": &n.six.max,
		"EnableIPv4": &n.four.enable, "EnableIPv6": &n.six.enable,
		"EnableNFTables": new(bool), // by what flannel makes its own rules
		"Backend":        &n.backend,
	}
	if err := fillFrom(doc, top); err != nil {
		return nil, err
	}
	if err := n.networks(); err != nil {
		return nil, err
	}
	if err := n.backendSettings(); err != nil {
		return nil, fmt.Errorf("%s: %w", "Backend", err)
	}
	return n.v, nil
}

// fillFrom decodes each key of a document into its place. flannel takes keys in
// any case.
func fillFrom(doc map[string]json.RawMessage, places map[string]any) error {
	names := slices.Sorted(maps.Keys(places))
	for _, key := range slices.Sorted(maps.Keys(doc)) {
		i := slices.IndexFunc(names, func(name string) bool { return strings.EqualFold(name, key) })
		if i < 0 {
			return fmt.Errorf("overlayd has nothing for the key %q%s", key, didYouMean(key, names))
		}
		if err := json.Unmarshal(doc[key], places[names[i]]); err != nil {
			var wrong *json.UnmarshalTypeError
			if errors.As(err, &wrong) {
				return fmt.Errorf("%s: a %s is not what it takes", key, wrong.Value)
			}
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

// netConf is a net-conf.json on its way to settings.
type netConf struct {
	path      string
	v         values
	four, six netConfFamily
	backend   map[string]json.RawMessage
}

// netConfFamily is what it says of one address family.
type netConfFamily struct {
	enable   *bool
	network  string
	length   int
	min, max string
}

// set makes a setting of what a key says.
func (n *netConf) set(flag, key string, items ...string) {
	n.v[flag] = value{items: items, where: n.path + ": " + key}
}

// networks are the overlay networks with their subnets.
func (n *netConf) networks() error {
	var networks, lengths, ranges []string
	for _, family := range []struct {
		*netConfFamily
		is4    bool
		prefix string // of its keys
		usual  int    // length of a subnet
	}{{&n.four, true, "", 24}, {&n.six, false, "IPv6", 64}} {
		key := family.prefix + "Network"
		if family.enable != nil && !*family.enable {
			continue
		}
		if family.network == "" {
			switch {
			case family.enable != nil:
				return fmt.Errorf("%s is missing", key)
			case family.length != 0 || family.min != "" || family.max != "":
				return fmt.Errorf("%s is missing, but there are other keys of its family", key)
			}
			continue
		}
		network, err := parsePrefix(family.network)
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		if network.Addr().Is4() != family.is4 {
			return fmt.Errorf("%s: %s is of the other address family", key, network)
		}
		network = network.Masked() // as flannel does
		length := family.length
		if length == 0 {
			// At least four subnets, as flannel has it (pkg/subnet/config.go).
			length = max(family.usual, network.Bits()+2)
		}
		if length <= network.Bits() || length > network.Addr().BitLen() {
			return fmt.Errorf("%sSubnetLen: %d: there are no subnets of this length in %s", family.prefix, length, network)
		}
		networks = append(networks, network.String())
		lengths = append(lengths, strconv.Itoa(length))
		if family.min != "" || family.max != "" {
			first, err := orElse(family.min, network.Addr())
			if err != nil {
				return fmt.Errorf("%sSubnetMin: %w", family.prefix, err)
			}
			last, err := orElse(family.max, lastOf(network, length))
			if err != nil {
				return fmt.Errorf("%sSubnetMax: %w", family.prefix, err)
			}
			ranges = append(ranges, first.String()+"-"+last.String())
		}
	}
	if len(networks) == 0 {
		return fmt.Errorf("%s is missing", "Network")
	}
	n.set("network", "Network", networks...)
	n.set("subnet-len", "SubnetLen", lengths...)
	if len(ranges) > 0 {
		n.set("subnet-range", "SubnetMin, SubnetMax", ranges...)
	}
	return nil
}

// orElse is an address that may be left out.
func orElse(text string, a netip.Addr) (netip.Addr, error) {
	if text == "" {
		return a, nil
	}
	return parseAddr(text)
}

// lastOf is where the last subnet of a length in a network begins.
func lastOf(network netip.Prefix, length int) netip.Addr {
	b := network.Addr().AsSlice()
	for bit := network.Bits(); bit < length; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b) // as long as it was
	return a
}

// backendSettings are how packets get to other hosts. flannel's default is udp.
func (n *netConf) backendSettings() error {
	kind := "udp"
	if n.backend != nil {
		kind = ""
	}
	for key, raw := range n.backend { // which keys it may have depends on this one
		if strings.EqualFold(key, "Type") {
			if err := fillFrom(map[string]json.RawMessage{key: raw}, map[string]any{"Type": &kind}); err != nil {
				return err
			}
		}
	}
	kind = strings.ToLower(kind) // as flannel does (pkg/backend/manager.go)
	var vni, port int
	var direct, policy, learning bool
	places := map[string]any{"Type": new(string)}
	switch kind {
	case "":
		return errors.New("Type is missing: overlayd has udp, vxlan and host-gw")
	case "udp":
		places["Port"] = &port
	case "vxlan":
		places["VNI"], places["Port"] = &vni, &port
		places["DirectRouting"], places["GBP"], places["Learning"] = &direct, &policy, &learning
	case "host-gw":
	default:
		return fmt.Errorf("Type: %q is none of udp, vxlan and host-gw, which overlayd has", kind)
	}
	if err := fillFrom(n.backend, places); err != nil {
		return err
	}
	if policy || learning {
		return errors.New("GBP and Learning are not there: leave them out, or false")
	}
	number := func(flag, key string, i int) {
		if i != 0 { // which is flannel's default as well
			n.set(flag, "Backend: "+key, strconv.Itoa(i))
		}
	}
	switch kind {
	case "udp":
		n.set("encap", "Backend", "udp")
		number("udp-port", "Port", port)
	case "vxlan":
		n.set("encap", "Backend", "vxlan")
		number("vni", "VNI", vni)
		number("vxlan-port", "Port", port)
		paths := "kernel-vxlan"
		if direct {
			paths = "auto"
		}
		n.set("fast-path", "Backend: DirectRouting", paths)
	case "host-gw":
		n.set("fast-path", "Backend: Type", "direct")
	}
	return nil
}
