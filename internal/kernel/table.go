package kernel

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// What all tables of ours in nftables have in common: the messages that make them, how
// it is known that one stands, and how one is removed.

// tableChain is one chain of a table; without a hook it is reached by a goto.
type tableChain struct {
	name     string
	kind     nftables.ChainType // empty: filter
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	rules    [][]expr.Any
}

// emptyTable puts an empty table in place of one that may be there: what is not there
// cannot be deleted.
func emptyTable(table string) []nfMessage {
	name := nfString(nil, unix.NFTA_TABLE_NAME, table)
	return []nfMessage{
		{kind: unix.NFT_MSG_NEWTABLE, flags: unix.NLM_F_CREATE, attrs: name, what: "adding the table"},
		{kind: unix.NFT_MSG_DELTABLE, attrs: name, what: "replacing the table"},
		{kind: unix.NFT_MSG_NEWTABLE, flags: unix.NLM_F_CREATE, attrs: name, what: "adding the table"},
	}
}

// chainMessages add chains with their rules to a table.
func chainMessages(table string, chains []tableChain) (batch []nfMessage, err error) {
	for _, c := range chains {
		b := nfString(nil, unix.NFTA_CHAIN_TABLE, table)
		b = nfString(b, unix.NFTA_CHAIN_NAME, c.name)
		if c.hook != nil {
			kind := c.kind
			if kind == "" {
				kind = nftables.ChainTypeFilter
			}
			hook := nfUint32(nil, unix.NFTA_HOOK_HOOKNUM, uint32(*c.hook))
			b = nfNested(b, unix.NFTA_CHAIN_HOOK, nfUint32(hook, unix.NFTA_HOOK_PRIORITY, uint32(c.priority)))
			b = nfUint32(b, unix.NFTA_CHAIN_POLICY, uint32(nftables.ChainPolicyAccept))
			b = nfString(b, unix.NFTA_CHAIN_TYPE, string(kind))
		}
		batch = append(batch, nfMessage{kind: unix.NFT_MSG_NEWCHAIN, flags: unix.NLM_F_CREATE, attrs: b, what: "adding the chain " + c.name})
	}
	for _, c := range chains {
		for i, r := range c.rules {
			what := fmt.Sprintf("adding rule %d of the chain %s", i+1, c.name)
			b, err := ruleAttrs(unix.NFPROTO_INET, table, c.name, r)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", what, err)
			}
			batch = append(batch, nfMessage{kind: unix.NFT_MSG_NEWRULE, flags: unix.NLM_F_CREATE | unix.NLM_F_APPEND, attrs: b, what: what})
		}
	}
	return batch, nil
}

// ruleAttrs are the attributes of a rule.
func ruleAttrs(family byte, table, chain string, rule []expr.Any) ([]byte, error) {
	var list []byte
	for _, e := range rule {
		b, err := expr.Marshal(family, e)
		if err != nil {
			return nil, err
		}
		list = nfNested(list, unix.NFTA_LIST_ELEM, b)
	}
	b := nfString(nil, unix.NFTA_RULE_TABLE, table)
	b = nfString(b, unix.NFTA_RULE_CHAIN, chain)
	return nfNested(b, unix.NFTA_RULE_EXPRESSIONS, list), nil
}

// tableState is what is known of a table that has no sets with elements that change.
type tableState struct {
	name string
	// generation is the last one of which it is known that the table stands; 0: of none.
	generation uint32
	// shown is how the kernel showed the table right after it was made.
	shown string
}

// replace puts a table in place of one that may be there, as a whole or not at all. The
// batch makes it.
func (st *tableState) replace(c *nfConn, batch []nfMessage) error {
	return c.retried(func(gen, bound uint32) error {
		if err := c.commit(bound, batch); err != nil {
			return err
		}
		shown, err := c.readTable(st.name)
		if errors.Is(err, unix.ENOENT) {
			return errNFChanged // it is gone already
		}
		if err != nil {
			return err
		}
		now, err := c.generation()
		if err != nil {
			return err
		}
		st.generation, st.shown = now, shown
		switch {
		case now == nextGeneration(gen):
			return nil
		case bound == 0: // somebody changes nftables all the time; probably not this table
			st.generation = 0
			return nil
		}
		return errNFChanged
	})
}

// stands tells whether the table is there as it was left. It costs one request as long
// as nobody has changed anything in nftables.
func (st *tableState) stands(c *nfConn) (bool, error) {
	for try := 1; ; try++ {
		gen, err := c.generation()
		if err != nil || st.generation == gen {
			return err == nil, err
		}
		shown, err := c.readTable(st.name)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, errNFChanged) {
			return false, err
		}
		same := err == nil && shown == st.shown
		now, err := c.generation()
		switch {
		case err != nil:
			return false, err
		case same && now == gen:
			st.generation = gen
			return true, nil
		case same || now == gen || try == guardTries:
			return same, nil
		}
		// What changes while it is read may look like anything.
	}
}

// removeTable removes a table, whoever has made it, and tells whether there was one. It
// is no error if there was none, or no nftables. The caller holds k.mu.
func (k *Kernel) removeTable(table string) (found bool, err error) {
	name := nfString(nil, unix.NFTA_TABLE_NAME, table)
	err = k.inNamespace(func() error {
		c, err := openNF()
		if err != nil {
			return err
		}
		defer c.close()
		if _, err := c.generation(); err != nil {
			return err
		}
		if _, err := c.get(unix.NFT_MSG_GETTABLE, 0, unix.NFPROTO_INET, name); err != nil {
			return err
		}
		err = c.commit(0, []nfMessage{{kind: unix.NFT_MSG_DELTABLE, attrs: name, what: "deleting the table"}})
		found = err == nil
		return err
	})
	switch {
	case errors.Is(err, unix.EPERM):
		err = ErrPermission
	case errors.Is(err, unix.ENOENT), errors.Is(err, errNoNF):
		err = nil // none was there
	}
	return found, err
}
