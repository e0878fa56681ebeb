package kernel_test

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
)

// firewall builds a table with a chain on the forward hook.
type firewall struct {
	x     *host
	conn  *nftables.Conn
	table *nftables.Table
}

func (x *host) firewall(family nftables.TableFamily, table string) *firewall {
	x.Helper()
	conn, err := nftables.New() // on this thread: in this namespace
	x.ok(err)
	return &firewall{x, conn, conn.AddTable(&nftables.Table{Family: family, Name: table})}
}

func (f *firewall) forward(name string, policy nftables.ChainPolicy) *nftables.Chain {
	return f.conn.AddChain(&nftables.Chain{Name: name, Table: f.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy})
}

func (f *firewall) chain(name string) *nftables.Chain {
	return f.conn.AddChain(&nftables.Chain{Name: name, Table: f.table})
}

func (f *firewall) rule(c *nftables.Chain, parts ...[]expr.Any) {
	r := &nftables.Rule{Table: f.table, Chain: c}
	for _, p := range parts {
		r.Exprs = append(r.Exprs, p...)
	}
	f.conn.AddRule(r)
}

func (f *firewall) flush() {
	f.x.Helper()
	f.x.ok(f.conn.Flush())
}

// addDropPolicy is what Docker does to a host.
func (x *host) addDropPolicy() {
	x.Helper()
	f := x.firewall(nftables.TableFamilyIPv4, "filter")
	f.forward("FORWARD", nftables.ChainPolicyDrop)
	f.flush()
}

// dormantTable makes an inet table with NFT_TABLE_F_DORMANT, by hand, because
// the nftables package sends no flags: a batch of NFT_MSG_NEWTABLE with
// NFTA_TABLE_NAME and NFTA_TABLE_FLAGS.
func (x *host) dormantTable(name string) {
	x.Helper()
	message := func(kind, flags uint16, family byte, resource uint16, attrs []byte) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(20+len(attrs)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
		b = append(b, make([]byte, 8)...) // sequence number, port
		b = append(b, family, 0)          // struct nfgenmsg: version 0
		b = binary.BigEndian.AppendUint16(b, resource)
		return append(b, attrs...)
	}
	attr := func(kind uint16, data []byte) []byte {
		b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(data)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = append(b, data...)
		return append(b, make([]byte, -len(b)&3)...)
	}
	attrs := append(attr(unix.NFTA_TABLE_NAME, []byte(name+"\x00")), attr(unix.NFTA_TABLE_FLAGS, []byte{0, 0, 0, unix.NFT_TABLE_F_DORMANT})...)
	batch := slices.Concat(
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, unix.NFPROTO_INET, 0, attrs),
		message(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil))
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	x.ok(err)
	defer unix.Close(fd)
	x.ok(unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
}

func verdict(kind expr.VerdictKind, chain ...string) []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: kind, Chain: strings.Join(chain, "")}}
}

var (
	accept = verdict(expr.VerdictAccept)
	drop   = verdict(expr.VerdictDrop)
)

func jump(to string) []expr.Any { return verdict(expr.VerdictJump, to) }

// name matches an interface name; one that ends in + is a beginning.
func name(key expr.MetaKey, op expr.CmpOp, s string) []expr.Any {
	data := []byte(s + "\x00")
	if s[len(s)-1] == '+' {
		data = []byte(s[:len(s)-1])
	}
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: data}}
}

func iif(s string) []expr.Any    { return name(expr.MetaKeyIIFNAME, expr.CmpOpEq, s) }
func oif(s string) []expr.Any    { return name(expr.MetaKeyOIFNAME, expr.CmpOpEq, s) }
func notOif(s string) []expr.Any { return name(expr.MetaKeyOIFNAME, expr.CmpOpNeq, s) }

func index(key expr.MetaKey, i int) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, uint32(i))}}
}

// established is a match that says nothing about a new connection.
func established() []expr.Any { return ofState(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED) }

func ofState(states uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, states), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}}
}

// address loads n bytes of an address and compares them under a mask.
func address(offset uint32, data, mask []byte) []expr.Any {
	n := uint32(len(data))
	parts := []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n}}
	if mask != nil {
		parts = append(parts, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: n, Mask: mask, Xor: make([]byte, n)})
	}
	return append(parts, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data})
}

func TestDiagnoseFirewall(t *testing.T) {
	const (
		in  = "accept those from the overlay"
		out = "accept those to the overlay"
		all = "accept those to or from the overlay"
	)
	policy := func(text string) [][2]string { return [][2]string{{kernel.CodeForwardPolicy, text}} }
	rule := func(text string) [][2]string { return [][2]string{{kernel.CodeForwardRule, text}} }
	for _, c := range []struct {
		name   string
		family nftables.TableFamily // IPv4 unless set
		policy nftables.ChainPolicy // drop unless set
		rules  func(*firewall, *nftables.Chain)
		want   [][2]string
	}{
		{"bare", 0, 0, nil, policy(all)},
		{"IPv6", nftables.TableFamilyIPv6, 0, nil, policy("ip6tables -I FORWARD -i overlay+ -j ACCEPT; ip6tables -I FORWARD -o overlay+ -j ACCEPT")},
		{"inet", nftables.TableFamilyINet, 0, nil, policy(`nft insert rule inet filter FORWARD iifname '"overlay*"' accept`)},
		{"bridge traffic", nftables.TableFamilyBridge, 0, nil, nil},
		{"accept policy", 0, nftables.ChainPolicyAccept, nil, nil},
		{"accepts all", 0, 0, func(f *firewall, c *nftables.Chain) { f.rule(c, accept) }, nil},
		{"accepts the device", 0, 0, func(f *firewall, c *nftables.Chain) {
			f.rule(c, iif("overlay0"), accept)
			f.rule(c, oif("overlay0"), accept)
		}, nil},
		{"accepts overlay*", nftables.TableFamilyINet, 0, func(f *firewall, c *nftables.Chain) {
			f.rule(c, iif("overlay+"), accept)
			f.rule(c, oif("overlay+"), accept)
		}, nil},
		{"accepts the index", 0, 0, func(f *firewall, c *nftables.Chain) {
			i := f.x.link("overlay0").Attrs().Index
			f.rule(c, index(expr.MetaKeyIIF, i), accept)
			f.rule(c, index(expr.MetaKeyOIF, i), accept)
		}, nil},
		{"accepts one way in", 0, 0, func(f *firewall, c *nftables.Chain) { f.rule(c, iif("overlay0"), accept) }, policy(out)},
		{"accepts one way out", 0, 0, func(f *firewall, c *nftables.Chain) { f.rule(c, oif("overlay0"), accept) }, policy(in)},
		{"accepts another device", 0, 0, func(f *firewall, c *nftables.Chain) {
			f.rule(c, iif("overlay1"), accept)
			f.rule(c, oif("overlay"), accept)
			f.rule(c, iif("docker0"), accept)
		}, policy(all)},
		{"accepts the bridge", 0, 0, func(f *firewall, c *nftables.Chain) {
			f.rule(c, iif("cni0"), notOif("cni0"), accept)
			f.rule(c, oif("cni0"), accept)
		}, nil},
		{"accepts under a condition", 0, 0, func(f *firewall, c *nftables.Chain) {
			f.rule(c, iif("overlay0"), established(), accept)
			f.rule(c, established(), accept)
			f.rule(c, oif("overlay0"), []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1, 0, 0, 0}}}, accept)
		}, policy(all)},
		{"accepts the network", 0, 0, func(f *firewall, c *nftables.Chain) {
			f.rule(c, address(12, []byte{100, 96}, nil), accept) // as nft loads a /16
		}, nil},
		{"accepts a wider network", 0, 0, func(f *firewall, c *nftables.Chain) {
			f.rule(c, address(16, []byte{100, 64, 0, 0}, []byte{255, 192, 0, 0}), accept)
		}, nil},
		{"accepts the network, IPv6", nftables.TableFamilyIPv6, 0, func(f *firewall, c *nftables.Chain) {
			f.rule(c, address(24, []byte{0xfd, 0x96, 0, 0, 0, 0}, nil), accept)
		}, nil},
		{"accepts the own subnet as source", 0, 0, func(f *firewall, c *nftables.Chain) {
			f.rule(c, address(12, []byte{100, 96, 1}, nil), accept)
		}, policy(in)},
		{"accepts another network", 0, 0, func(f *firewall, c *nftables.Chain) {
			f.rule(c, address(12, []byte{10}, nil), accept)
			f.rule(c, address(12, []byte{100, 96, 1, 7}, nil), accept)
			f.rule(c, address(9, []byte{6}, nil), accept) // TCP
		}, policy(all)},
		{"accepts a family", nftables.TableFamilyINet, 0, func(f *firewall, c *nftables.Chain) {
			f.rule(c, []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV6}}}, accept)
		}, policy(all)},
		{"accepts in a set", nftables.TableFamilyINet, 0, func(f *firewall, c *nftables.Chain) {
			for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
				set := &nftables.Set{Table: f.table, Anonymous: true, Constant: true, KeyType: nftables.TypeIFName}
				elem := func(s string) nftables.SetElement {
					return nftables.SetElement{Key: append([]byte(s), make([]byte, 16-len(s))...)}
				}
				f.x.ok(f.conn.AddSet(set, []nftables.SetElement{elem("docker0"), elem("overlay0")}))
				f.rule(c, []expr.Any{&expr.Meta{Key: key, Register: 1},
					&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}}, accept)
			}
		}, nil},
		{"set without us", nftables.TableFamilyINet, 0, func(f *firewall, c *nftables.Chain) {
			set := &nftables.Set{Table: f.table, Anonymous: true, Constant: true, KeyType: nftables.TypeIFName}
			f.x.ok(f.conn.AddSet(set, []nftables.SetElement{{Key: append([]byte("docker0"), make([]byte, 9)...)}}))
			f.rule(c, []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
				&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}}, accept)
		}, policy(all)},
		{"Docker", 0, 0, func(f *firewall, c *nftables.Chain) {
			f.chain("DOCKER-USER")
			f.rule(c, jump("DOCKER-USER"))
			f.rule(c, oif("docker0"), established(), accept)
			f.rule(c, iif("docker0"), notOif("docker0"), accept)
		}, policy("iptables -I DOCKER-USER -i overlay+ -j ACCEPT; iptables -I DOCKER-USER -o overlay+ -j ACCEPT")},
		{"rejects in front of Docker", 0, 0, func(f *firewall, c *nftables.Chain) {
			f.chain("DOCKER-USER")
			f.rule(c, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3}})
			f.rule(c, jump("DOCKER-USER"))
		}, rule("iptables -I FORWARD -i overlay+ -j ACCEPT; iptables -I FORWARD -o overlay+ -j ACCEPT")},
		{"Docker with its cure", 0, 0, func(f *firewall, c *nftables.Chain) {
			user := f.chain("DOCKER-USER")
			f.rule(user, iif("overlay+"), accept)
			f.rule(user, oif("overlay+"), accept)
			f.rule(user, verdict(expr.VerdictReturn))
			f.rule(c, jump("DOCKER-USER"))
		}, nil},
		{"returned before the accept", 0, 0, func(f *firewall, c *nftables.Chain) {
			user := f.chain("user")
			f.rule(user, verdict(expr.VerdictReturn))
			f.rule(user, accept)
			f.rule(c, jump("user"))
		}, policy(all)},
		{"gone to the end of another chain", 0, 0, func(f *firewall, c *nftables.Chain) {
			f.chain("user")
			f.rule(c, verdict(expr.VerdictGoto, "user"))
			f.rule(c, accept)
		}, policy(all)},
		{"rejects at the end", 0, nftables.ChainPolicyAccept, func(f *firewall, c *nftables.Chain) {
			f.rule(c, established(), accept)
			f.rule(c, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 13}})
		}, rule(all)},
		{"drops what comes from us", 0, nftables.ChainPolicyAccept, func(f *firewall, c *nftables.Chain) {
			f.rule(c, iif("overlay0"), drop)
		}, rule(in)},
		{"drops after the accept", 0, nftables.ChainPolicyAccept, func(f *firewall, c *nftables.Chain) {
			f.rule(c, iif("overlay0"), accept)
			f.rule(c, oif("overlay0"), accept)
			f.rule(c, drop)
		}, nil},
		{"drops something else", 0, nftables.ChainPolicyAccept, func(f *firewall, c *nftables.Chain) {
			f.rule(c, established(), drop)
			f.rule(c, iif("docker0"), drop)
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := healthy(t)
			if c.family == 0 {
				c.family = nftables.TableFamilyIPv4
			}
			f := x.firewall(c.family, "filter")
			chain := f.forward("FORWARD", c.policy)
			if c.rules != nil {
				c.rules(f, chain)
			}
			f.flush()
			x.expect(diagnosis, c.want...)
		})
	}
}

func TestDiagnoseFirewallOthers(t *testing.T) {
	x := healthy(t)
	// Chains on other hooks, and of tables that are asleep, forward nothing.
	f := x.firewall(nftables.TableFamilyINet, "others")
	policy := nftables.ChainPolicyDrop
	f.conn.AddChain(&nftables.Chain{Name: "input", Table: f.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter, Policy: &policy})
	f.flush()
	x.dormantTable("asleep")
	// Adding the table once more would wake it.
	asleep := &firewall{x, f.conn, &nftables.Table{Family: nftables.TableFamilyINet, Name: "asleep"}}
	asleep.forward("forward", nftables.ChainPolicyDrop)
	asleep.flush()
	x.expect(diagnosis)

	// An IPv4 firewall is nothing to an IPv6 overlay.
	x.addDropPolicy()
	only6 := diagnosis
	only6.Networks = overlay[1:]
	x.expect(only6)

	fw := x.firewall(nftables.TableFamilyINet, "firewalld")
	fw.forward("filter_FORWARD", nftables.ChainPolicyDrop)
	fw.flush()
	x.expect(only6, [2]string{kernel.CodeForwardPolicy, "firewall-cmd --permanent --zone=trusted --add-interface=overlay0"})

	// A device of another name gets rules for itself alone.
	x.tun("mesh0", unix.IFF_TUN)
	cfg := diagnosis
	cfg.Device, cfg.Networks = "mesh0", overlay[:1]
	x.sysctl("ipv4/conf/mesh0/rp_filter", "2")
	x.expect(cfg,
		[2]string{kernel.CodeForwardPolicy, "iptables -I FORWARD -i mesh0 -j ACCEPT"},
		[2]string{kernel.CodeForwardPolicy, "firewall-cmd"})
}

// With masquerading what containers begin in the world has to be let out, and the answers
// in.
func TestDiagnoseWorld(t *testing.T) {
	world := diagnosis
	world.World = true
	x := healthy(t)
	x.expect(world)
	addCure(x) // lets the overlay pass, in IPv4
	x.expect(diagnosis)
	x.expect(world, [2]string{kernel.CodeForwardPolicy, "those of containers to or from the world beyond the overlay: " +
		"iptables -I FORWARD -s 100.96.1.0/24 -j ACCEPT; iptables -I FORWARD -d 100.96.1.0/24 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"})
	f := x.firewall(nftables.TableFamilyIPv4, "filter")
	c := &nftables.Chain{Table: f.table, Name: "FORWARD"}
	f.rule(c, address(12, []byte{100, 96, 1}, nil), accept)
	f.flush()
	x.expect(world, [2]string{kernel.CodeForwardPolicy, "those of containers from the world"})
	f.rule(c, address(16, []byte{100, 96, 1}, nil), established(), accept)
	f.flush()
	x.expect(world)

	// A firewall of nftables' own, against all that is not the overlay's.
	own := x.firewall(nftables.TableFamilyINet, "mine")
	o := own.forward("forward", nftables.ChainPolicyDrop)
	own.rule(o, iif("overlay+"), accept)
	own.rule(o, oif("overlay+"), accept)
	own.flush()
	x.expect(world, [2]string{kernel.CodeForwardPolicy, "nft insert rule inet mine forward ip6 daddr fd96:0:0:1::/64 ct state related,established accept"})
	own.rule(o, established(), accept)
	own.rule(o, oif("eth0"), accept)
	own.flush()
	x.expect(world)

	fw := x.firewall(nftables.TableFamilyIPv6, "firewalld")
	fw.forward("filter_FORWARD", nftables.ChainPolicyDrop)
	fw.flush()
	x.expect(world, [2]string{kernel.CodeForwardPolicy, "--add-interface=overlay0"},
		[2]string{kernel.CodeForwardPolicy, "firewall-cmd --permanent --zone=trusted --add-source=fd96:0:0:1::/64; firewall-cmd --reload"})
}

// The tables of legacy iptables cannot be read: they are named.
func TestDiagnoseLegacyTables(t *testing.T) {
	x := healthy(t)
	x.expect(diagnosis)
	var want [][2]string
	if x.legacyFilter(unix.AF_INET, unix.IPPROTO_IP) {
		want = append(want, [2]string{kernel.CodeLegacyTables, "iptables-legacy -I FORWARD -i overlay+ -j ACCEPT"})
		x.expect(diagnosis, want...)
	}
	if x.legacyFilter(unix.AF_INET6, unix.IPPROTO_IPV6) {
		want = append(want, [2]string{kernel.CodeLegacyTables, "ip6tables-legacy -I FORWARD -i overlay+ -j ACCEPT"})
		x.expect(diagnosis, want...)
	}
	if len(want) == 0 {
		t.Log("this kernel has no legacy iptables: only its absence was tested")
	}
}

// legacyFilter makes the legacy filter table appear in this namespace, as
// iptables-legacy does, by asking about it: IPT_SO_GET_INFO with the name in a
// struct ipt_getinfo (linux/include/uapi/linux/netfilter_ipv4/ip_tables.h). It
// tells whether the kernel has such a table.
func (x *host) legacyFilter(family, level int) bool {
	x.Helper()
	const getInfo, infoLen = 64, 84
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	x.ok(err)
	defer unix.Close(fd)
	var info [infoLen]byte
	copy(info[:], "filter")
	length := uint32(infoLen)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), getInfo,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&length)), 0)
	return errno == 0
}
