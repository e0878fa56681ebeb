package membership

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
)

// NodeID is the identity of a node for as long as its state directory lives:
// 128 random bits.
type NodeID [16]byte

// NewNodeID draws a random NodeID.
func NewNodeID() NodeID {
	var id NodeID
	rand.Read(id[:]) // never fails (crypto/rand)
	return id
}

// ParseNodeID reads the 32 hexadecimal digits that String prints.
func ParseNodeID(s string) (NodeID, error) {
	var id NodeID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("node id %q is not 32 hexadecimal digits", s)
	}
	copy(id[:], b)
	if id.IsZero() {
		return id, errors.New("node id is all zeros")
	}
	return id, nil
}

// String returns 32 hexadecimal digits.
func (id NodeID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether the id is the zero value, which no node has.
func (id NodeID) IsZero() bool { return id == NodeID{} }

// MarshalText and UnmarshalText make a NodeID a string in JSON.
func (id NodeID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *NodeID) UnmarshalText(b []byte) error {
	v, err := ParseNodeID(string(b))
	if err != nil {
		return err
	}
	*id = v
	return nil
}
