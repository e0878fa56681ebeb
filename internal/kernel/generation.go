package kernel

import "fmt"

// RulesetGeneration returns the number of nftables' ruleset, which is another after
// each change that anybody makes (NFT_MSG_GETGEN,
// linux/include/uapi/linux/netfilter/nf_tables.h).
func (k *Kernel) RulesetGeneration() (gen uint32, err error) {
	if err := k.lock(); err != nil {
		return 0, err
	}
	defer k.mu.Unlock()
	err = k.inNamespace(func() error {
		c, err := openNF()
		if err != nil {
			return err
		}
		defer c.close()
		gen, err = c.generation()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("kernel: the ruleset's generation: %w", err)
	}
	return gen, nil
}
