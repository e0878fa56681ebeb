package kernel

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// guardSet is one of the sets of the table that hold the peers.
type guardSet uint8

const (
	setOuter4     guardSet = iota // outer address -> mark
	setOuter6                     //
	setVXLAN4                     // (mark, inner source): what a peer may send in VXLAN
	setVXLAN6                     //
	setDirect4                    // (link, link-layer source, source): what it may send plainly
	setDirect6                    //
	setSent4                      // (0, destination): what is sent to it
	setSent6                      //
	setVXLANNet4                  // as setVXLAN4, for whole subnets of the usual length
	setVXLANNet6                  //
	setDirectNet4                 // as setDirect4
	setDirectNet6                 //
	setSentNet4                   // as setSent4
	setSentNet6                   //
	guardSets                     // how many there are
)

// net is the set of subnets beside a set of intervals. Almost all that is looked up is
// in one of the cluster's subnets, which have one length: the address under that mask is
// found in a hash table, at a small part of what a look into intervals costs.
func (s guardSet) net() guardSet { return s + setVXLANNet4 - setVXLAN4 }

func (s guardSet) isNet() bool { return s >= setVXLANNet4 }

// ranges is the set of intervals beside a set of subnets, and any other set itself.
func (s guardSet) ranges() guardSet {
	if s.isNet() {
		return s - setVXLANNet4 + setVXLAN4
	}
	return s
}

// marked tells the sets whose keys begin with the number of an outer address.
func (s guardSet) marked() bool { return s.ranges()&^1 == setVXLAN4 }

// sent tells the sets of what is sent to peers.
func (s guardSet) sent() bool { return s.ranges()&^1 == setSent4 }

// plain tells the sets of what peers send without VXLAN.
func (s guardSet) plain() bool { return s.ranges()&^1 == setDirect4 }

// String is the set's name in the table.
func (s guardSet) String() string {
	return [...]string{"outer4", "outer6", "vxlan4", "vxlan6", "direct4", "direct6", "sent4", "sent6",
		"vxlan_net4", "vxlan_net6", "direct_net4", "direct_net6", "sent_net4", "sent_net6"}[s]
}

// isMap tells the maps of outer addresses from the sets, whose elements have a
// counter and, but for those of subnets, an interval as their last field.
func (s guardSet) isMap() bool { return s <= setOuter6 }

func (s guardSet) is4() bool { return s%2 == 0 }

// fields are the parts of a key; each begins at a multiple of 4 bytes.
func (s guardSet) fields() []nftables.SetDatatype {
	addr := nftables.TypeIP6Addr
	if s.is4() {
		addr = nftables.TypeIPAddr
	}
	switch s.ranges() &^ 1 {
	case setVXLAN4, setSent4: // intervals want two fields: the first of setSent4 is 0
		return []nftables.SetDatatype{nftables.TypeMark, addr}
	case setDirect4:
		return []nftables.SetDatatype{nftables.TypeIFName, nftables.TypeEtherAddr, addr}
	}
	return []nftables.SetDatatype{addr}
}

// headLen is how many bytes of a key come before the address.
func (s guardSet) headLen() int {
	switch s.ranges() &^ 1 {
	case setVXLAN4, setSent4:
		return 4
	case setDirect4:
		return unix.IFNAMSIZ + 8
	}
	return 0
}

func (s guardSet) addrLen() int {
	if s.is4() {
		return 4
	}
	return 16
}

// pick is the set of a pair for an address; four is the one for IPv4.
func (four guardSet) pick(a netip.Addr) guardSet {
	if a.Is4() {
		return four
	}
	return four + 1
}

// guardKey is an element as it is meant. Head is what comes before the address
// in the key; for the VXLAN sets it is the outer address, in place of which the
// kernel has its number. Of a subnet only its first address is there.
type guardKey struct {
	set      guardSet
	head     string
	from, to netip.Addr // the interval; the same for a single address
}

// guardPeerID is the comment that every element has, so that a daemon that
// starts knows whose the elements of a dead one are, and so does a person.
func guardPeerID(id [16]byte) string { return hex.EncodeToString(id[:]) }

// guardElement is an element as the kernel has it.
type guardElement struct {
	guardKey
	peer           [16]byte
	mark           uint32 // of a map
	packets, bytes uint64 // of a set
}

// declaration is what makes the set.
func (s guardSet) declaration(table string) (nfMessage, error) {
	what := "adding the set " + s.String()
	fields := s.fields()
	key, err := nftables.ConcatSetType(fields...)
	if err != nil {
		return nfMessage{}, fmt.Errorf("%s: %w", what, err)
	}
	b := nfString(nil, unix.NFTA_SET_TABLE, table)
	b = nfString(b, unix.NFTA_SET_NAME, s.String())
	b = nfUint32(b, unix.NFTA_SET_KEY_TYPE, key.GetNFTMagic())
	b = nfUint32(b, unix.NFTA_SET_KEY_LEN, key.Bytes)
	b = nfUint32(b, unix.NFTA_SET_ID, uint32(s)+1)
	if s.isMap() {
		mark := nftables.TypeMark
		b = nfUint32(b, unix.NFTA_SET_FLAGS, unix.NFT_SET_MAP)
		b = nfUint32(b, unix.NFTA_SET_DATA_TYPE, mark.GetNFTMagic())
		b = nfUint32(b, unix.NFTA_SET_DATA_LEN, mark.Bytes)
	} else {
		if !s.isNet() {
			b = nfUint32(b, unix.NFTA_SET_FLAGS, unix.NFT_SET_INTERVAL|nftSetConcat)
			var concat []byte
			for _, f := range fields {
				concat = nfNested(concat, unix.NFTA_LIST_ELEM, nfUint32(nil, nftaSetFieldLen, f.Bytes))
			}
			b = nfNested(b, unix.NFTA_SET_DESC, nfNested(nil, nftaSetDescConcat, concat))
		}
		// Each element gets a counter of its own (nft_add_set_elem in
		// linux/net/netfilter/nf_tables_api.c).
		b = nfNested(b, nftaSetExpr, nfNested(nfString(nil, unix.NFTA_EXPR_NAME, "counter"), unix.NFTA_EXPR_DATA, nil))
	}
	return nfMessage{kind: unix.NFT_MSG_NEWSET, flags: unix.NLM_F_CREATE, attrs: b, what: what}, nil
}

// elementRoom is how many bytes of elements go into one message: the length of
// an attribute has 16 bits.
const elementRoom = 32 << 10

// elementMessages are the requests that add or delete (kind) elements of one
// set.
func (s guardSet) elementMessages(kind uint16, table string, elements []guardElement, marks map[netip.Addr]uint32) []nfMessage {
	var all []nfMessage
	var list []byte
	verb, flags := "adding to", uint16(unix.NLM_F_CREATE)
	if kind == unix.NFT_MSG_DELSETELEM {
		verb, flags = "deleting from", 0
	}
	end := func() {
		b := nfString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, table)
		b = nfString(b, unix.NFTA_SET_ELEM_LIST_SET, s.String())
		b = nfNested(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS, list)
		all = append(all, nfMessage{kind: kind, flags: flags, attrs: b, what: verb + " the set " + s.String()})
		list = nil
	}
	for _, e := range elements {
		list = nfNested(list, unix.NFTA_LIST_ELEM, e.attrs(kind == unix.NFT_MSG_NEWSETELEM, marks))
		if len(list) > elementRoom {
			end()
		}
	}
	if len(list) > 0 {
		end()
	}
	return all
}

// attrs is the element as the kernel takes it; full is with all that a key is
// not needed for.
func (e *guardElement) attrs(full bool, marks map[netip.Addr]uint32) []byte {
	head := []byte(e.head)
	if e.set.marked() {
		outer, _ := netip.AddrFromSlice(head)
		head = native(marks[outer])
	}
	value := func(kind uint16, b []byte) []byte { return nfNested(nil, kind, nfAttr(nil, unix.NFTA_DATA_VALUE, b)) }
	key := func(a netip.Addr) []byte { return append(head[:len(head):len(head)], a.AsSlice()...) }
	b := value(unix.NFTA_SET_ELEM_KEY, key(e.from))
	if !e.set.isMap() && !e.set.isNet() {
		b = append(b, value(nftaSetElemKeyEnd, key(e.to))...)
	}
	if !full {
		return b
	}
	if e.set.isMap() {
		b = append(b, value(unix.NFTA_SET_ELEM_DATA, native(marks[e.from]))...)
	}
	return nfAttr(b, unix.NFTA_SET_ELEM_USERDATA, userdata.AppendString(nil, userdata.NFTNL_UDATA_SET_ELEM_COMMENT, guardPeerID(e.peer)))
}

// errNotOurs: an element that the guard does not make.
var errNotOurs = errors.New("not an element of ours")

// parseElement reads an element. In the VXLAN sets its head is the number, since
// only the maps know the address.
func (s guardSet) parseElement(b []byte) (e guardElement, err error) {
	e.set = s
	var from, to, data []byte
	var comment string
	nfAttrs(b, func(kind uint16, d []byte) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			from = nfFind(d, unix.NFTA_DATA_VALUE)
		case nftaSetElemKeyEnd:
			to = nfFind(d, unix.NFTA_DATA_VALUE)
		case unix.NFTA_SET_ELEM_DATA:
			data = nfFind(d, unix.NFTA_DATA_VALUE)
		case unix.NFTA_SET_ELEM_USERDATA:
			comment, _ = userdata.GetString(d, userdata.NFTNL_UDATA_SET_ELEM_COMMENT)
		case unix.NFTA_SET_ELEM_EXPR:
			e.packets, e.bytes = parseCounter(nfFind(d, unix.NFTA_EXPR_DATA))
		}
	})
	if s.isNet() {
		to = from
	}
	if s.isMap() {
		to = from
		if len(data) != 4 {
			return e, errNotOurs
		}
		e.mark = binary.NativeEndian.Uint32(data)
	}
	h := s.headLen()
	if len(from) != h+s.addrLen() || len(to) != len(from) || string(from[:h]) != string(to[:h]) {
		return e, errNotOurs
	}
	id, err := hex.DecodeString(comment)
	if err != nil || len(id) != len(e.peer) {
		return e, errNotOurs
	}
	e.peer = [16]byte(id)
	e.head = string(from[:h])
	e.from, _ = netip.AddrFromSlice(from[h:])
	e.to, _ = netip.AddrFromSlice(to[h:])
	return e, nil
}

// parseCounter reads NFTA_COUNTER_*.
func parseCounter(b []byte) (packets, bytes uint64) {
	number := func(kind uint16) uint64 {
		if d := nfFind(b, kind); len(d) == 8 {
			return binary.BigEndian.Uint64(d)
		}
		return 0
	}
	return number(unix.NFTA_COUNTER_PACKETS), number(unix.NFTA_COUNTER_BYTES)
}

// readSet reads the elements of a set of the table. Those that the guard cannot
// have made come with errNotOurs, beside the others.
func (c *nfConn) readSet(s guardSet, table string) (all []guardElement, err error) {
	b := nfString(nil, unix.NFTA_SET_ELEM_LIST_TABLE, table)
	b = nfString(b, unix.NFTA_SET_ELEM_LIST_SET, s.String())
	lists, err := c.get(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, unix.NFPROTO_INET, b)
	if err != nil {
		return nil, err
	}
	var bad error
	for _, l := range lists {
		nfAttrs(nfFind(l, unix.NFTA_SET_ELEM_LIST_ELEMENTS), func(kind uint16, b []byte) {
			e, err := s.parseElement(b)
			if err != nil {
				bad = err
				return
			}
			all = append(all, e)
		})
	}
	return all, bad
}

// readSets reads all elements of the table, and gives those of the VXLAN sets
// the outer address in place of its number.
func (c *nfConn) readSets(table string) (all []guardElement, err error) {
	outer := make(map[uint32]netip.Addr)
	for s := range guardSets {
		elements, err := c.readSet(s, table)
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			switch {
			case s.isMap():
				outer[e.mark] = e.from
			case s.marked():
				a, ok := outer[binary.NativeEndian.Uint32([]byte(e.head))]
				if !ok {
					return nil, errNotOurs
				}
				e.head = string(a.AsSlice())
			}
			all = append(all, e)
		}
	}
	return all, nil
}
