package forward

import (
	"errors"

	"github.com/overlayd/overlayd/encap"
)

// testCodec is a framing with a header, so that tests see who writes it, where,
// and for whom: 0xee, the kind, the receiver's MAC.
type testCodec struct{}

var _ encap.Codec = testCodec{}

const testHeaderLen = 8

var errTestCodec = errors.New("not a test frame")

func (testCodec) Name() string   { return "test" }
func (testCodec) HeaderLen() int { return testHeaderLen }

func (testCodec) PutHeader(b []byte, k encap.Kind, d encap.Dest) {
	b[0], b[1] = 0xee, byte(k)
	copy(b[2:testHeaderLen], d.MAC[:])
}

func (testCodec) Decode(b []byte) (encap.Kind, []byte, error) {
	if len(b) < testHeaderLen || b[0] != 0xee || b[1] < 1 || b[1] > byte(encap.Control) {
		return encap.Invalid, nil, errTestCodec
	}
	return encap.Kind(b[1]), b[testHeaderLen:], nil
}

func (c testCodec) DecodeSent(b []byte, _ encap.Dest) (encap.Kind, []byte, error) { return c.Decode(b) }
