package kernel

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// CheckGuard tells whether the guard stands as SetGuard has left it, with nothing
// missing, changed or added, and with receive offload off on the VXLAN devices,
// also on those that were made since. It is false if SetGuard was not called. It
// costs a few requests as long as nobody has changed anything in nftables, and
// reading the table when somebody has.
func (k *Kernel) CheckGuard() (stands bool, err error) {
	if err := k.lock(); err != nil {
		return false, err
	}
	defer k.mu.Unlock()
	st := k.guard
	if st == nil {
		return false, nil
	}
	err = k.inNamespace(func() error {
		c, err := openNF()
		if err != nil {
			return err
		}
		defer c.close()
		if on, err := joins(st.vxlans); err != nil || on {
			return err
		}
		gen, err := c.generation()
		if err != nil {
			return err
		}
		stands, err = st.stands(c, gen)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("kernel: looking at the guard: %w", guardCause(err))
	}
	return stands, nil
}

// stands tells whether everything is there as it was left; gen is nftables'
// generation. If that passes meanwhile, the answer holds, but is not remembered.
func (st *guardState) stands(c *nfConn, gen uint32) (bool, error) {
	if st.generation == gen {
		return true, nil
	}
	st.generation = 0
	if st.table == "" {
		return false, nil
	}
	same, err := st.same(c)
	for try := 1; try < guardTries && (errors.Is(err, errNFChanged) || err == nil && !same); try++ {
		// What changes while it is read may look like anything.
		now, gerr := c.generation()
		if gerr != nil || err == nil && now == gen {
			return false, gerr
		}
		gen = now
		same, err = st.same(c)
	}
	if err != nil || !same {
		return false, err
	}
	now, err := c.generation()
	if err == nil && now == gen {
		st.generation = gen
	}
	return err == nil, err
}

// same compares the table with what was left.
func (st *guardState) same(c *nfConn) (bool, error) {
	name := guardTable(st.device)
	table, err := c.readTable(name)
	if errors.Is(err, unix.ENOENT) || err == nil && table != st.table {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	elements, err := c.readSets(name)
	if errors.Is(err, errNotOurs) || errors.Is(err, unix.ENOENT) || err == nil && len(elements) != len(st.elements) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, e := range elements {
		if peer, ok := st.elements[e.guardKey]; !ok || peer != e.peer || e.set.isMap() && st.marks[e.from] != e.mark {
			return false, nil
		}
	}
	return true, nil
}

// readTable returns how the kernel shows a table with its chains, rules, sets and
// counters, without what changes by itself. Handles are in it, so that what is
// made anew is not the same.
func (c *nfConn) readTable(name string) (string, error) {
	var s strings.Builder
	read := func(kind, flags, nameAttr uint16, without ...uint16) error {
		all, err := c.get(kind, flags, unix.NFPROTO_INET, nfString(nil, nameAttr, name))
		for _, m := range all {
			// The kernel does not filter everything that it lists.
			if string(nfFind(m, nameAttr)) != name+"\x00" {
				continue
			}
			fmt.Fprintf(&s, "%d:", kind)
			nfAttrs(m, func(k uint16, data []byte) {
				for _, w := range without {
					if k == w {
						return
					}
				}
				fmt.Fprintf(&s, "%d=%x,", k, data)
			})
			s.WriteByte('\n')
		}
		return err
	}
	err := read(unix.NFT_MSG_GETTABLE, 0, unix.NFTA_TABLE_NAME)
	if err == nil {
		err = read(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, unix.NFTA_CHAIN_TABLE)
	}
	if err == nil {
		err = read(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, unix.NFTA_RULE_TABLE)
	}
	if err == nil {
		err = read(unix.NFT_MSG_GETSET, unix.NLM_F_DUMP, unix.NFTA_SET_TABLE, nftaSetCount)
	}
	if err == nil {
		err = read(unix.NFT_MSG_GETOBJ, unix.NLM_F_DUMP, unix.NFTA_OBJ_TABLE, unix.NFTA_OBJ_DATA)
	}
	return s.String(), err
}

// adopt reads the elements that a daemon that is gone has left. What cannot be
// read is as if it were not there: no peer loses more than its packets for a
// moment, while an element that is not understood would let in who knows what.
func (st *guardState) adopt(c *nfConn) {
	if elements, err := c.readSets(guardTable(st.device)); err == nil {
		st.kept = elements
	}
}
