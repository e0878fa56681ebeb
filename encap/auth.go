package encap

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"sync"
)

// authInfo is the info string of HKDF (RFC 5869 section 3.2): it keeps the
// keys of control frames apart from every other use of the cluster keys,
// gossip encryption above all.
const authInfo = "overlayd control frame v1"

// minKey is the shortest cluster key: the AES-128 key of gossip encryption.
const minKey = 16

// ErrKey is wrapped by the error of NewAuth.
var ErrKey = errors.New("encap: unusable cluster key")

// Auth holds the keys of control frames. It is immutable: to rotate keys,
// make a new one and swap the pointer. A nil *Auth means that there are no
// keys.
//
// It is safe for concurrent use: the hash states, its only mutable part, come
// from a sync.Pool per key, and one goroutine at a time uses a state.
type Auth struct {
	keys []sync.Pool // of *mac, each keyed with the derived key; first one signs
}

// mac is an HMAC state together with room for its sum, which would otherwise
// be allocated at each call.
type mac struct {
	h   hash.Hash
	sum [sha256.Size]byte
}

func newMAC(key []byte) *mac { return &mac{h: hmac.New(sha256.New, key)} }

// NewAuth derives the keys of control frames from cluster keys, each at least
// 16 bytes long. The first one signs, all of them verify. Without any key it
// returns nil. The keys are not kept.
func NewAuth(keys [][]byte) (*Auth, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	a := &Auth{keys: make([]sync.Pool, len(keys))}
	for i, key := range keys {
		if len(key) < minKey {
			return nil, fmt.Errorf("%w: key %d has %d bytes, needs %d or more", ErrKey, i+1, len(key), minKey)
		}
		derived, err := hkdf.Key(sha256.New, key, nil, authInfo, sha256.Size)
		if err != nil {
			return nil, fmt.Errorf("%w: key %d: %w", ErrKey, i+1, err)
		}
		a.keys[i].New = func() any { return newMAC(derived) }
	}
	return a, nil
}

// sign fills the last tagLen bytes of frame with the tag over the rest.
func (a *Auth) sign(frame []byte) {
	at := len(frame) - tagLen
	m := a.keys[0].Get().(*mac)
	copy(frame[at:], m.compute(frame[:at]))
	a.keys[0].Put(m)
}

// verify tells whether the last tagLen bytes of frame are its tag under one of
// the keys. How long it takes depends on which key fits, not on the tag.
func (a *Auth) verify(frame []byte) bool {
	at := len(frame) - tagLen
	for i := range a.keys {
		m := a.keys[i].Get().(*mac)
		ok := hmac.Equal(m.compute(frame[:at]), frame[at:])
		a.keys[i].Put(m)
		if ok {
			return true
		}
	}
	return false
}

// compute returns the tag of b. It is valid until the next call.
func (m *mac) compute(b []byte) []byte {
	m.h.Reset()
	m.h.Write(b) // never fails (hash.Hash)
	return m.h.Sum(m.sum[:0])[:tagLen]
}
