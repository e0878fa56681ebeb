package encap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
)

// Where things are in a control frame. The package documentation has the
// picture.
const (
	frameMagic   = 0xC // high nibble of the first byte
	frameVersion = 1   // low nibble of the first byte

	offType     = 1
	offPath     = 2
	offFlags    = 3
	offLength   = 4
	offReceived = 6
	offSender   = 8
	offReceiver = 24
	offBoot     = 40
	offNonce    = 48
	bodyLen     = 56

	tagLen  = 16
	flagTag = 1 << 0
)

// The sizes of control frames in bytes.
const (
	// MinFrame is the size of the smallest frame, which has no tag.
	MinFrame = bodyLen
	// MinTaggedFrame is the size of the smallest frame with a tag.
	MinTaggedFrame = bodyLen + tagLen
	// MaxFrame is the largest that the length field can say.
	MaxFrame = math.MaxUint16
)

// FrameType says what a control frame is for.
type FrameType uint8

// The types of control frame.
const (
	Probe  FrameType = 1 // asks for an answer
	Answer FrameType = 2 // answers a probe
)

// String returns the type's name.
func (t FrameType) String() string {
	switch t {
	case Probe:
		return "probe"
	case Answer:
		return "answer"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Path is a way by which a probe travels.
type Path uint8

// The paths.
const (
	Userspace   Path = 0
	KernelVXLAN Path = 1
	Direct      Path = 2
)

// String returns the path's name as in the status output.
func (p Path) String() string {
	switch p {
	case Userspace:
		return "userspace"
	case KernelVXLAN:
		return "kernel-vxlan"
	case Direct:
		return "direct"
	}
	return fmt.Sprintf("path %d", uint8(p))
}

// Flags is what the sender of a control frame says of itself.
type Flags uint8

// The flags. Bit 0 says that there is a tag; Append and Parse see to it.
const (
	ReadyKernelVXLAN Flags = 1 << 1 // takes kernel-vxlan traffic from the receiver
	ReadyDirect      Flags = 1 << 2 // takes directly routed traffic from the receiver

	knownFlags = ReadyKernelVXLAN | ReadyDirect
)

// Frame is a probe or an answer.
type Frame struct {
	Type FrameType
	// Path is the one by which the probe was sent or, in an answer, arrived.
	Path  Path
	Flags Flags
	// Size is the frame's total length in bytes, with padding and tag. Parse
	// sets it; Append takes the wanted size as an argument instead.
	Size uint16
	// Received is, in an answer, the Size of the probe as it arrived. Zero in
	// a probe.
	Received uint16
	// Sender and Receiver are NodeIDs.
	Sender, Receiver [16]byte
	// Boot is the sender's boot number.
	Boot uint64
	// Nonce is random in a probe, and that of the probe in an answer.
	Nonce uint64
}

// The errors of Append and Parse, besides ErrShort, ErrMagic and ErrVersion.
var (
	// ErrType: neither a probe nor an answer.
	ErrType = errors.New("encap: unknown type of control frame")
	// ErrPath: a path that we do not know.
	ErrPath = errors.New("encap: unknown path in control frame")
	// ErrLength: a total length that is too small for the fields.
	ErrLength = errors.New("encap: wrong length in control frame")
	// ErrReserved: a reserved field is not zero.
	ErrReserved = errors.New("encap: reserved field of control frame is not zero")
	// ErrUntagged: a frame without a tag, although this node has a key.
	ErrUntagged = errors.New("encap: control frame is not authenticated: the sender has no cluster key")
	// ErrTagged: a frame with a tag, although this node has no key.
	ErrTagged = errors.New("encap: control frame is authenticated, but this node has no cluster key")
	// ErrTag: a tag that fits none of the keys.
	ErrTag = errors.New("encap: control frame is authenticated with another cluster key")
)

// Append appends the frame to dst, padded with zeros to size bytes in total
// and tagged under the first key of auth; a nil auth means no tag. Size 0 asks
// for the smallest frame. It allocates only if dst has too little room.
//
// The error is ErrLength for a size that is too small or over MaxFrame, and
// ErrType, ErrPath or ErrReserved for a frame that Parse would refuse. Then
// dst comes back as it was. Flags that are not defined are left out.
func (f Frame) Append(dst []byte, size int, auth *Auth) ([]byte, error) {
	smallest := MinFrame
	if auth != nil {
		smallest = MinTaggedFrame
	}
	if size == 0 {
		size = smallest
	}
	if size < smallest || size > MaxFrame {
		return dst, ErrLength
	}
	if err := f.check(); err != nil {
		return dst, err
	}

	start := len(dst)
	out := slices.Grow(dst, size)[:start+size]
	b := out[start:]
	b[0] = frameMagic<<4 | frameVersion
	b[offType] = byte(f.Type)
	b[offPath] = byte(f.Path)
	b[offFlags] = byte(f.Flags & knownFlags)
	binary.BigEndian.PutUint16(b[offLength:], uint16(size))
	binary.BigEndian.PutUint16(b[offReceived:], f.Received)
	copy(b[offSender:], f.Sender[:])
	copy(b[offReceiver:], f.Receiver[:])
	binary.BigEndian.PutUint64(b[offBoot:], f.Boot)
	binary.BigEndian.PutUint64(b[offNonce:], f.Nonce)
	clear(b[bodyLen:]) // the spare capacity of dst may hold anything
	if auth != nil {
		b[offFlags] |= flagTag
		auth.sign(b)
	}
	return out, nil
}

// Parse reads the control frame at the start of b and checks its tag, if auth
// is not nil, against all keys of auth. What follows the frame in b is
// ignored. Nothing of the result aliases b. It does not allocate.
//
// The error is one of this package's sentinels, and the frame is zero then.
// The tag is looked at last: all cheaper checks come first.
func Parse(b []byte, auth *Auth) (Frame, error) {
	f, err := Peek(b)
	if err != nil {
		return Frame{}, err
	}
	switch tagged := b[offFlags]&flagTag != 0; {
	case tagged && auth == nil:
		return Frame{}, ErrTagged
	case !tagged && auth != nil:
		return Frame{}, ErrUntagged
	case tagged && !auth.verify(b[:f.Size]):
		return Frame{}, ErrTag
	}
	return f, nil
}

// Peek is Parse without a look at the tag. Anyone can have made up what it
// returns: it serves to drop frames early and cheaply, not to believe any.
func Peek(b []byte) (Frame, error) {
	if len(b) == 0 {
		return Frame{}, ErrShort
	}
	if b[0]>>4 != frameMagic {
		return Frame{}, ErrMagic
	}
	if b[0]&0xf != frameVersion {
		return Frame{}, ErrVersion
	}
	if len(b) < bodyLen {
		return Frame{}, ErrShort
	}
	size := int(binary.BigEndian.Uint16(b[offLength:]))
	smallest := MinFrame
	if b[offFlags]&flagTag != 0 {
		smallest = MinTaggedFrame
	}
	if size < smallest {
		return Frame{}, ErrLength
	}
	if size > len(b) {
		return Frame{}, ErrShort
	}
	f := Frame{
		Type:     FrameType(b[offType]),
		Path:     Path(b[offPath]),
		Flags:    Flags(b[offFlags]) & knownFlags,
		Size:     uint16(size),
		Received: binary.BigEndian.Uint16(b[offReceived:]),
		Sender:   [16]byte(b[offSender:offReceiver]),
		Receiver: [16]byte(b[offReceiver:offBoot]),
		Boot:     binary.BigEndian.Uint64(b[offBoot:]),
		Nonce:    binary.BigEndian.Uint64(b[offNonce:]),
	}
	if err := f.check(); err != nil {
		return Frame{}, err
	}
	return f, nil
}

// check looks for values that no frame may have.
func (f *Frame) check() error {
	switch {
	case f.Type != Probe && f.Type != Answer:
		return ErrType
	case f.Path > Direct:
		return ErrPath
	case f.Type == Probe && f.Received != 0:
		return ErrReserved
	}
	return nil
}
