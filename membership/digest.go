package membership

import (
	"encoding/binary"
	"time"
)

// shareCount is into how many shares the records are divided by their keys. Where
// claims come and go all the time, most of the shares still have a quiet moment.
const shareCount = 32

// digests are equal for equal sets of records: the exclusive or of the hashes of all,
// and of those of each share, of which 16 bits are told.
type digests struct {
	all    uint64
	shares [shareCount]uint16
}

// toggle puts a record in, or takes it out.
func (d *digests) toggle(c Claim) {
	h := claimHash(c)
	d.all ^= h
	d.shares[tieHash(c.Key)>>(64-5)] ^= uint16(h >> 16) // 5 bits: shareCount
}

// digestLen is the length of digests on the wire.
const digestLen = 8 + 2*shareCount

func (d *digests) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, d.all)
	for _, s := range d.shares {
		b = binary.BigEndian.AppendUint16(b, s)
	}
	return b
}

// readDigests reads digestLen bytes.
func readDigests(b []byte) (d digests) {
	d.all = binary.BigEndian.Uint64(b)
	for i := range d.shares {
		d.shares[i] = binary.BigEndian.Uint16(b[8+2*i:])
	}
	return d
}

// digestPatience is for how long others must differ in a share that has not changed
// here before one of them is asked for everything: records under way by gossip need
// no help.
const digestPatience = 2 * time.Second

// digestWatch compares our records with those of one node after the other, and finds
// what gossip has missed. The zero value is ready to use.
type digestWatch struct {
	own    digests // as of the last comparison
	shares [shareCount]shareWatch
}

type shareWatch struct {
	differs time.Time     // since when all others had other records; zero: not
	wait    time.Duration // for how long they must; it grows until we agree
}

// missed takes the digests of another node and reports whether to ask it for
// everything: it has other records in a share in which we have seen nothing change,
// and neither did we agree with anybody, for a while. Some never agree, such as
// clocks that are apart around an expiry: then longer and longer pauses lie between.
func (w *digestWatch) missed(own, theirs *digests, now time.Time) (ask bool) {
	for i := range w.shares {
		s := &w.shares[i]
		switch changed := own.shares[i] != w.own.shares[i]; {
		case own.shares[i] == theirs.shares[i]:
			*s = shareWatch{}
		case changed, s.differs.IsZero():
			*s = shareWatch{now, max(s.wait, digestPatience)}
		case now.Sub(s.differs) >= s.wait:
			ask = true
		}
	}
	w.own = *own
	return ask
}

// asked takes note that the node was asked.
func (w *digestWatch) asked(now time.Time) {
	for i := range w.shares {
		if s := &w.shares[i]; !s.differs.IsZero() && now.Sub(s.differs) >= s.wait {
			s.differs, s.wait = now, min(2*s.wait, dialLate)
		}
	}
}
