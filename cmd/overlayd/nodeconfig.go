package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/overlayd/overlayd"
)

// nodeConfig turns settings into the Config of a node, whose Logger stays
// unset. It checks how each setting is written; whether the values fit
// together is checked by overlayd.New.
func nodeConfig(v values) (overlayd.Config, error) {
	p := parser{v: v}
	cfg := overlayd.Config{
		Networks:        parseList(&p, "network", parsePrefix),
		SubnetLens:      parseList(&p, "subnet-len", parseLength),
		Subnets:         parseList(&p, "subnet", parsePrefix),
		SubnetRanges:    parseList(&p, "subnet-range", parseSubnetRange),
		Interface:       p.text("interface"),
		Advertise:       parseList(&p, "advertise", parseAddr),
		Join:            parseList(&p, "join", parseText),
		Name:            p.text("name"),
		Encap:           p.oneOf("encap"),
		VNI:             uint32(p.number("vni", 1, 1<<24-1)),
		VXLANReserved:   p.oneOf("vxlan-reserved"),
		StaticPeers:     parseList(&p, "static-peer", parseStaticPeer),
		FastPath:        p.oneOf("fast-path"),
		KeepPaths:       p.boolean("keep-paths"),
		IPMasq:          p.boolean("ip-masq"),
		ForwardRules:    p.oneOf("forward-rules"),
		AllowSource:     parseList(&p, "allow-source", parsePrefix),
		GossipPort:      p.port("gossip-port"),
		UDPPort:         p.port("udp-port"),
		VXLANPort:       p.port("vxlan-port"),
		KernelVXLANPort: p.port("kernel-vxlan-port"),
		Cluster:         p.text("cluster"),
		StateDir:        p.text("state-dir"),
		RunDir:          p.text(flagRunDir),
		SubnetFile:      subnetFile(v),
		HTTPListen:      p.text("http-listen"),
		HTTPPeers:       uint16(p.number("http-peers", 0, 65535)),
		Pprof:           p.boolean("pprof"),
		Device:          p.text(flagDevice),
		Offload:         p.oneOf("offload"),
	}
	p.oneOf("log-level")
	p.oneOf("log-format")
	if p.err != nil {
		return overlayd.Config{}, p.err
	}
	for _, required := range []string{"state-dir", flagRunDir} {
		if v.text(required) == "" {
			return overlayd.Config{}, usagef("%s: a directory is needed", v[required].where)
		}
	}
	if file := p.text("key-file"); file != "" {
		keys, err := readKeyFile(file)
		if err != nil {
			return overlayd.Config{}, usagef("%s: %w", v["key-file"].where, err)
		}
		cfg.Keys, cfg.OnKeys = keys, keepKeys(file)
	}
	return cfg, nil
}

// parser parses settings one by one and keeps the first error.
type parser struct {
	v   values
	err error
}

func (p *parser) fail(flag string, err error) {
	if p.err == nil {
		p.err = usagef("%s: %w", p.v[flag].where, err)
	}
}

func (p *parser) text(flag string) string { return p.v.text(flag) }

// boolean is false unless it is given.
func (p *parser) boolean(flag string) bool {
	given, ok := p.v[flag]
	if !ok || len(given.items) == 0 {
		return false
	}
	on, err := parseBool(given.items[0])
	if err != nil {
		p.fail(flag, err)
	}
	return on
}

func (p *parser) oneOf(flag string) string {
	text := p.v.text(flag)
	for _, s := range named(flag) {
		if !slices.Contains(s.choices, text) {
			p.fail(flag, fmt.Errorf("%q is not one of %s", text, strings.Join(s.choices, ", ")))
		}
	}
	return text
}

func (p *parser) number(flag string, low, high uint64) uint64 {
	text := p.v.text(flag)
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n < low || n > high {
		p.fail(flag, fmt.Errorf("%q is not a number from %d to %d", text, low, high))
	}
	return n
}

func (p *parser) port(flag string) uint16 { return uint16(p.number(flag, 1, 65535)) }

// parseList parses each item of a list; a list of one empty item is empty, so
// that --join "" takes back what the config file says.
func parseList[T any](p *parser, flag string, parse func(string) (T, error)) []T {
	items := p.v[flag].items
	if len(items) == 0 || len(items) == 1 && items[0] == "" {
		return nil
	}
	out := make([]T, 0, len(items))
	for _, item := range items {
		if item == "" {
			p.fail(flag, fmt.Errorf("an item of %q is empty", strings.Join(items, ",")))
			return nil
		}
		t, err := parse(item)
		if err != nil {
			p.fail(flag, err)
			return nil
		}
		out = append(out, t)
	}
	return out
}

func parseText(s string) (string, error) { return s, nil }

func parsePrefix(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p, nil
	}
	addr, length, hasLength := strings.Cut(s, "/")
	a, err := netip.ParseAddr(addr)
	switch {
	case err != nil || a.Zone() != "":
		return netip.Prefix{}, fmt.Errorf("%q is not a prefix: write ADDRESS/LENGTH, such as 100.96.0.0/16 or fd96::/48", s)
	case !hasLength:
		length := a.BitLen() / 2
		if p, err := a.Prefix(length); err != nil || p.Addr() != a {
			length = a.BitLen() // it is a host's
		}
		return netip.Prefix{}, fmt.Errorf("%q has no length: write ADDRESS/LENGTH, such as %s/%d", s, addr, length)
	}
	return netip.Prefix{}, fmt.Errorf("%q: length %q is not a number from 0 to %d", s, length, a.BitLen())
}

func parseSubnetRange(s string) (overlayd.SubnetRange, error) {
	first, last, ok := strings.Cut(s, "-")
	if !ok {
		return overlayd.SubnetRange{}, fmt.Errorf("%q is not a range: write FIRST-LAST, such as 100.96.16.0-100.96.31.0", s)
	}
	from, err := parseAddr(first)
	if err != nil {
		return overlayd.SubnetRange{}, err
	}
	to, err := parseAddr(last)
	return overlayd.SubnetRange{First: from, Last: to}, err
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err == nil {
		return a, nil
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return netip.Addr{}, fmt.Errorf("%q is a prefix: write the address alone, %s", s, p.Addr())
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return netip.Addr{}, fmt.Errorf("%q has a port: write the address alone, %s", s, ap.Addr())
	}
	return netip.Addr{}, fmt.Errorf("%q is not an IP address, such as 192.0.2.1 or 2001:db8::1", s)
}

func parseLength(s string) (int, error) {
	n, err := strconv.Atoi(strings.TrimPrefix(s, "/"))
	if err != nil || n < 1 || n > 128 {
		return 0, fmt.Errorf("%q is not a prefix length, such as 24", s)
	}
	return n, nil
}

func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "true", "1", "yes", "on":
		return true, nil
	case "false", "0", "no", "off":
		return false, nil
	}
	return false, fmt.Errorf("%q is not true or false", s)
}
