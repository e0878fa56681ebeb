package membership

import (
	"encoding/binary"
	"time"
)

// shareCount is into how many shares the records are divided by their keys. Where
// claims come and go all the time, each share still has its quiet moments.
const shareCount = 32

// digests are equal for equal sets of records: the exclusive or of the hashes of all,
// and of those of each share.
type digests struct {
	all    uint64
	shares [shareCount]uint16
}

// toggle puts a record in, or takes it out.
func (d *digests) toggle(c Claim) {
	h := mix64(claimHash(c))
	d.all ^= h
	d.shares[tieHash(c.Key)>>(64-5)] ^= uint16(h) // 5 bits: shareCount
}

// digestView is the digests of a store and when each share has changed last. It is
// immutable.
type digestView struct {
	digests
	changed [shareCount]time.Time
}

// next is the view of a store whose digests are d now.
func (v *digestView) next(d digests, now time.Time) *digestView {
	if v.digests == d {
		return v
	}
	n := &digestView{d, v.changed}
	for i := range d.shares {
		if d.shares[i] != v.shares[i] {
			n.changed[i] = now
		}
	}
	return n
}

// digestLen is the length of a digestView on the wire: for each share its digest, 2
// bytes, and for how long it has not changed, in units of digestTick, 255 for longer.
const (
	digestLen  = 3 * shareCount
	digestTick = 100 * time.Millisecond
)

func (v *digestView) append(b []byte, now time.Time) []byte {
	for i, s := range v.shares {
		b = binary.BigEndian.AppendUint16(b, s)
		b = append(b, byte(max(0, min(now.Sub(v.changed[i])/digestTick, 255))))
	}
	return b
}

// digestReading is another node's digestView.
type digestReading struct {
	shares [shareCount]uint16
	quiet  [shareCount]time.Duration // for how long a share has not changed there
}

// readDigests reads digestLen bytes.
func readDigests(b []byte) (r digestReading) {
	for i := range r.shares {
		r.shares[i] = binary.BigEndian.Uint16(b[3*i:])
		r.quiet[i] = time.Duration(b[3*i+2]) * digestTick
	}
	return r
}

const (
	// digestPatience is for how long neither of two nodes may have seen a share change
	// in which they differ: records under way by gossip need no help.
	digestPatience = 2 * time.Second
	// digestLate is the longest pause between two questions about a share.
	digestLate = time.Minute
)

// digestWatch compares our records with those of one node after the other, and finds
// what gossip has missed. The zero value is ready to use.
type digestWatch [shareCount]struct {
	asked time.Time     // when somebody was asked last
	wait  time.Duration // from then to the next question
	seen  time.Time     // the last change that has shortened wait
}

// missed takes the digests of another node, and tells in which shares one of us has
// missed something, so that everything should be exchanged. Some never agree, such
// as clocks that are apart around an expiry: as long as less changes than is asked for,
// the pauses before the next question become longer and longer.
func (w *digestWatch) missed(own *digestView, theirs *digestReading, now time.Time) (shares []int) {
	for i := range w {
		s := &w[i]
		if own.changed[i].After(s.seen) {
			s.seen, s.wait = own.changed[i], s.wait/2
		}
		if own.shares[i] != theirs.shares[i] && now.Sub(own.changed[i]) >= digestPatience && theirs.quiet[i] >= digestPatience && now.Sub(s.asked) >= s.wait {
			shares = append(shares, i)
		}
	}
	return shares
}

// asked takes note that the node was asked about these shares.
func (w *digestWatch) asked(shares []int, now time.Time) {
	for _, i := range shares {
		s := &w[i]
		s.asked, s.wait = now, min(max(2*s.wait, digestPatience), digestLate)
	}
}
