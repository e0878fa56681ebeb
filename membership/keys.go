package membership

import (
	"bytes"
	"errors"
	"slices"
)

// Errors of key rotation.
var (
	// ErrNoKeys: the Member was started without a key. Encryption cannot be
	// switched on while others send in the clear.
	ErrNoKeys = errors.New("this node runs without a key")
	// ErrKeyUnknown: no such key is installed.
	ErrKeyUnknown = errors.New("no such key is installed")
	// ErrKeyInUse: the key that is used for sending cannot be removed.
	ErrKeyInUse = errors.New("the key is used for sending")
)

// Keys returns copies of the installed keys; the first is used to send.
func (m *Member) Keys() [][]byte {
	if m.keyring == nil {
		return nil
	}
	var out [][]byte
	for _, k := range m.keyring.GetKeys() {
		out = append(out, bytes.Clone(k))
	}
	return out
}

// AddKey installs one more key for what others send. Installing one twice does
// nothing.
func (m *Member) AddKey(key []byte) error {
	if m.keyring == nil {
		return ErrNoKeys
	}
	return m.keyring.AddKey(bytes.Clone(key))
}

// UseKey makes an installed key the one that is used to send. Every node must
// have it installed before.
func (m *Member) UseKey(key []byte) error {
	if m.keyring == nil {
		return ErrNoKeys
	}
	if !m.hasKey(key) {
		return ErrKeyUnknown
	}
	return m.keyring.UseKey(key)
}

// RemoveKey removes a key that is no longer used to send.
func (m *Member) RemoveKey(key []byte) error {
	switch {
	case m.keyring == nil:
		return ErrNoKeys
	case !m.hasKey(key):
		return ErrKeyUnknown
	case bytes.Equal(m.keyring.GetPrimaryKey(), key):
		return ErrKeyInUse
	}
	return m.keyring.RemoveKey(key)
}

func (m *Member) hasKey(key []byte) bool {
	return slices.ContainsFunc(m.keyring.GetKeys(), func(k []byte) bool { return bytes.Equal(k, key) })
}
