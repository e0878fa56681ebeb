package overlayd

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/membership"
)

// KeysSchema is the schema of Keys.
const KeysSchema = "overlayd.keys/v1"

// Keys is the keys that a node has installed, without their secrets.
type Keys struct {
	Schema string      `json:"schema"` // KeysSchema
	Keys   []KeyStatus `json:"keys"`   // the one used for sending first
}

// KeyStatus describes a key.
type KeyStatus struct {
	// ID tells keys apart without giving them away: 16 hexadecimal digits.
	ID string `json:"id"`
	// Bits is the key's length: 128, 192 or 256.
	Bits int `json:"bits"`
	// Sending is set on the one key that this node sends with.
	Sending bool `json:"sending"`
}

// KeyID returns the ID by which a key is told from others: the beginning of a
// hash, from which nobody finds the key.
func KeyID(key []byte) string {
	sum := sha256.Sum256(append([]byte("overlayd key id v1\x00"), key...))
	return hex.EncodeToString(sum[:8])
}

// Keys lists the installed keys. A cluster changes its key without a gap in
// three rounds over all nodes: AddKey everywhere, UseKey everywhere, RemoveKey
// of the old one everywhere.
func (n *Node) Keys() Keys {
	k := Keys{Schema: KeysSchema, Keys: []KeyStatus{}}
	if !n.running() {
		return k
	}
	for i, key := range n.parts.member.Keys() {
		k.Keys = append(k.Keys, KeyStatus{ID: KeyID(key), Bits: len(key) * 8, Sending: i == 0})
	}
	return k
}

// AddKey installs a key of 16, 24 or 32 bytes, with which gossip and probes of
// others are accepted from now on.
func (n *Node) AddKey(key []byte) error {
	if len(key) != 16 && len(key) != 24 && len(key) != 32 {
		return fmt.Errorf("a key is %d bytes long: 16, 24 or 32 are possible", len(key))
	}
	return n.changeKeys(func(m *membership.Member) error { return m.AddKey(key) })
}

// UseKey makes an installed key, given by its ID or the beginning of it, the
// one that this node sends with. Every node must have it installed before.
func (n *Node) UseKey(id string) error {
	return n.changeKeys(func(m *membership.Member) error {
		key, err := findKey(m, id)
		if err != nil {
			return err
		}
		return m.UseKey(key)
	})
}

// RemoveKey removes an installed key, given as in UseKey. What others send with
// it is refused from now on. The key in use for sending stays.
func (n *Node) RemoveKey(id string) error {
	return n.changeKeys(func(m *membership.Member) error {
		key, err := findKey(m, id)
		if err != nil {
			return err
		}
		return m.RemoveKey(key)
	})
}

// changeKeys changes the gossip keys and lets the prober and the owner of the
// configuration follow. One change at a time.
func (n *Node) changeKeys(change func(*membership.Member) error) error {
	if !n.running() {
		return ErrNotStarted
	}
	n.keys.Lock()
	defer n.keys.Unlock()
	m := n.parts.member
	if err := change(m); err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	keys := m.Keys()
	auth, err := encap.NewAuth(keys)
	if err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	n.parts.prober.SetAuth(auth)
	if n.cfg.OnKeys != nil {
		if err := n.cfg.OnKeys(keys); err != nil {
			return fmt.Errorf("the running node uses the new keys, but they were not kept for the next start: %w", err)
		}
	}
	return nil
}

// installKeys replaces all keys. New ones are accepted before one is used, and the old
// ones until then. n.keys is held.
func (n *Node) installKeys(keys [][]byte) error {
	m := n.parts.member
	if sameKeys(m.Keys(), keys) {
		return nil
	}
	for _, k := range keys {
		if err := m.AddKey(k); err != nil {
			return err
		}
	}
	if err := m.UseKey(keys[0]); err != nil {
		return err
	}
	for _, k := range m.Keys() {
		if !hasKey(keys, k) {
			if err := m.RemoveKey(k); err != nil {
				return err
			}
		}
	}
	auth, err := encap.NewAuth(keys)
	if err != nil {
		return err
	}
	n.parts.prober.SetAuth(auth)
	return nil
}

func findKey(m *membership.Member, id string) ([]byte, error) {
	var found [][]byte
	keys := m.Keys()
	if len(keys) == 0 {
		return nil, membership.ErrNoKeys
	}
	for _, k := range keys {
		if id != "" && strings.HasPrefix(KeyID(k), id) {
			found = append(found, k)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("%w: %q", membership.ErrKeyUnknown, id)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%q is the beginning of %d keys' ids: give more of it", id, len(found))
}
