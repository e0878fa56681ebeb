package overlayd

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
)

func TestKeyIDTellsKeysApartAndHidesThem(t *testing.T) {
	a, b := bytes.Repeat([]byte{1}, 16), bytes.Repeat([]byte{1}, 24)
	if KeyID(a) == KeyID(b) || KeyID(a) != KeyID(bytes.Clone(a)) || len(KeyID(a)) != 16 {
		t.Errorf("%s %s", KeyID(a), KeyID(b))
	}
}

// TestKeyChangesOverTheSocket: what a client asks for reaches the node, and its
// errors come back.
func TestKeyChangesOverTheSocket(t *testing.T) {
	n := fullNode()
	c := serveFake(t, n)
	key := bytes.Repeat([]byte{9}, 32)
	for want, do := range map[string]func() error{
		"add " + KeyID(key):   func() error { return c.AddKey(t.Context(), key) },
		"use 00":              func() error { return c.UseKey(t.Context(), "00") },
		"evict 100.96.2.0/24": func() error { return c.Evict(t.Context(), netip.MustParsePrefix("100.96.2.0/24")) },
		"remove 88":           func() error { return c.RemoveKey(t.Context(), "88") },
	} {
		if err := do(); err != nil || n.asked != want {
			t.Errorf("%s: node was asked %q, %v", want, n.asked, err)
		}
	}
	n.keyErr = errors.New("the node says no")
	if err := c.UseKey(t.Context(), "00"); err == nil || err.Error() != "the node says no" {
		t.Errorf("error: %v", err)
	}
}
