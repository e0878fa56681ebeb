package overlayd

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
)

// field is one of a Config's, and how people call it.
type field struct{ name, flag string }

// hotFields are those that Reload takes up.
func hotFields() []field {
	return []field{{"Join", "--join"}, {"FastPath", "--fast-path"}, {"StaticPeers", "--static-peer"}, {"AllowSource", "--allow-source"}, {"Keys", "--key-file"}}
}

// coldFields are those that stay what they are while a node runs. Those without a flag
// have their own name.
func coldFields() []field {
	return []field{
		{"Networks", "--network"}, {"Interface", "--interface"}, {"Advertise", "--advertise"}, {"SubnetLens", "--subnet-len"},
		{"Subnets", "--subnet"}, {"Encap", "--encap"}, {"VNI", "--vni"}, {"VXLANReserved", "--vxlan-reserved"}, {"Offload", "--offload"},
		{"GossipPort", "--gossip-port"}, {"UDPPort", "--udp-port"}, {"VXLANPort", "--vxlan-port"}, {"KernelVXLANPort", "--kernel-vxlan-port"},
		{"Cluster", "--cluster"}, {"Name", "--name"}, {"KeepPaths", "--keep-paths"}, {"StateDir", "--state-dir"}, {"RunDir", "--run-dir"},
		{"SubnetFile", "--subnet-file"}, {"Device", "--device"}, {"MTU", "MTU"}, {"LeaseTime", "LeaseTime"},
		{"SubnetRanges", "--subnet-range"}, {"IPMasq", "--ip-masq"}, {"ForwardRules", "--forward-rules"}, {"HTTPListen", "--http-listen"}, {"Pprof", "--pprof"}, {"HTTPPeers", "--http-peers"},
	}
}

// ownFields are those that needRestart compares in a way of their own, or that are not
// compared.
func ownFields() []string { return []string{"Tunnel", "Queues", "Logger", "OnKeys", "OnReload"} }

// needRestart names what is different in next and cannot change now. queues is as it
// was given, where 0 is no wish.
func (n *Node) needRestart(next *resolved, queues int) (names []string) {
	was, is := reflect.ValueOf(n.cfg.Config), reflect.ValueOf(next.Config)
	for _, f := range coldFields() {
		if !sameSetting(was.FieldByName(f.name).Interface(), is.FieldByName(f.name).Interface()) {
			names = append(names, f.flag)
		}
	}
	if (n.cfg.Tunnel == nil) != (next.Tunnel == nil) {
		names = append(names, "Tunnel")
	}
	if queues != 0 && queues != n.cfg.Queues {
		names = append(names, "Queues")
	}
	if why := n.fastPathNeeds(next); why != "" {
		names = append(names, fmt.Sprintf("--fast-path (%s)", why))
	}
	if now := n.parts.member.Keys(); (len(now) == 0) != (len(next.Keys) == 0) {
		names = append(names, "--key-file (a node is with a key or without one)")
	}
	return names
}

// fastPathNeeds says why next's FastPath needs a restart, empty if it does not.
func (n *Node) fastPathNeeds(next *resolved) string {
	most := n.parts.outer.inner(overhead(next.Encap, next.FastPath, n.parts.endpoints))
	switch {
	case next.FastPath == n.live().FastPath:
		return ""
	case n.parts.kernel != nil && n.parts.fast == nil:
		return "it was off at the start, so that nothing is set up for " + next.FastPath
	case most < n.parts.mtu:
		return fmt.Sprintf("%s leaves room for an MTU of %d, and that of this node is %d", next.FastPath, most, n.parts.mtu)
	}
	return ""
}

// different names what next has otherwise than what is in use, of what can change.
func (n *Node) different(next *resolved) (names []string) {
	now := n.live()
	byName := func(list []StaticPeer) []StaticPeer {
		list = slices.Clone(list)
		slices.SortFunc(list, func(a, b StaticPeer) int { return strings.Compare(a.Name, b.Name) })
		return list
	}
	same := map[string]bool{
		"Join":        slices.Equal(now.seeds, next.seeds),
		"FastPath":    now.FastPath == next.FastPath,
		"StaticPeers": slices.EqualFunc(byName(now.StaticPeers), byName(next.StaticPeers), sameStaticPeer),
		"AllowSource": sameSetting(now.AllowSource, next.AllowSource),
		"Keys":        sameKeys(n.parts.member.Keys(), next.Keys),
	}
	for _, f := range hotFields() {
		if !same[f.name] {
			names = append(names, f.flag)
		}
	}
	return names
}

func sameStaticPeer(a, b StaticPeer) bool {
	return a.Name == b.Name && a.Endpoint == b.Endpoint && slices.Equal(a.Subnets, b.Subnets) && a.VTEPMAC == b.VTEPMAC
}

// sameSetting compares values of a resolved Config; the order of prefixes says nothing.
func sameSetting(a, b any) bool {
	switch a := a.(type) {
	case []netip.Prefix:
		sorted := func(list []netip.Prefix) []netip.Prefix {
			return slices.SortedFunc(slices.Values(list), netip.Prefix.Compare)
		}
		return slices.Equal(sorted(a), sorted(b.([]netip.Prefix)))
	case []netip.Addr:
		return slices.Equal(a, b.([]netip.Addr))
	case []int:
		return slices.Equal(a, b.([]int))
	}
	return reflect.DeepEqual(a, b)
}

// sameKeys tells whether two sets of keys are the same, with the same one for sending.
func sameKeys(a, b [][]byte) bool {
	if len(a) == 0 || len(b) == 0 {
		return len(a) == len(b)
	}
	return bytes.Equal(a[0], b[0]) && allIn(a, b) && allIn(b, a)
}

// allIn tells whether b has all keys of a.
func allIn(a, b [][]byte) bool {
	return !slices.ContainsFunc(a, func(k []byte) bool { return !hasKey(b, k) })
}

func hasKey(keys [][]byte, key []byte) bool {
	return slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, key) })
}
