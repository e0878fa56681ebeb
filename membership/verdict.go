package membership

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// group is the verdict on all claims on one prefix, the strongest first,
// released ones last.
type group struct {
	prefix netip.Prefix
	claims []ClaimInfo
}

func (g *group) compare(p netip.Prefix) int { return comparePrefix(g.prefix, p) }

// settle brings the verdict up to date.
//
// Claims meet only where their prefixes overlap, and of two prefixes that
// overlap one contains the other. So what a change on p can reach lies inside
// of the widest claimed prefix that contains p, and everything else keeps its
// verdict. In the order of comparePrefix those inside follow that one directly.
func (s *store) settle() {
	if len(s.stale) == 0 {
		return
	}
	stale := make([]netip.Prefix, 0, len(s.stale))
	for p := range s.stale {
		stale = append(stale, p)
	}
	clear(s.stale)
	slices.SortFunc(stale, comparePrefix)

	old := s.groups
	groups := make([]*group, 0, len(old)+len(stale))
	from := 0 // old[:from] has been dealt with
	for len(stale) > 0 {
		wide := stale[0]
		for p := range s.covering(wide) {
			wide = p
			break
		}
		lo, hi := within(old, wide)
		groups = append(groups, old[from:lo]...)
		n := 1 // of stale ones inside
		for n < len(stale) && wide.Overlaps(stale[n]) {
			n++
		}
		run := s.judge(mergePrefixes(old[lo:hi], stale[:n]))
		s.touch(old[lo:hi], run)
		groups = append(groups, run...)
		stale, from = stale[n:], hi
	}
	s.groups = append(groups, old[from:]...)
}

// covering yields the claimed prefixes that contain p and are not p, the widest
// first.
func (s *store) covering(p netip.Prefix) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		lengths := s.lengthsOf(p)
		for bits := range p.Bits() {
			if lengths[bits] == 0 {
				continue
			}
			q, err := p.Addr().Prefix(bits)
			if err == nil && len(s.byPrefix[q]) > 0 && !yield(q) {
				return
			}
		}
	}
}

// within returns where in groups those stand whose prefixes lie in p.
func within(groups []*group, p netip.Prefix) (lo, hi int) {
	lo, _ = slices.BinarySearchFunc(groups, p, (*group).compare)
	for hi = lo; hi < len(groups) && p.Overlaps(groups[hi].prefix); hi++ {
	}
	return lo, hi
}

// mergePrefixes merges two sorted lists into one without repetitions.
func mergePrefixes(groups []*group, more []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(groups)+len(more))
	for _, g := range groups {
		for len(more) > 0 && comparePrefix(more[0], g.prefix) < 0 {
			out, more = append(out, more[0]), more[1:]
		}
		if len(more) > 0 && more[0] == g.prefix {
			more = more[1:]
		}
		out = append(out, g.prefix)
	}
	return append(out, more...)
}

// touch notes whose claims or verdicts differ between two runs of groups.
func (s *store) touch(old, fresh []*group) {
	for len(old) > 0 || len(fresh) > 0 {
		r := 0
		switch {
		case len(old) == 0:
			r = 1
		case len(fresh) == 0:
			r = -1
		default:
			r = comparePrefix(old[0].prefix, fresh[0].prefix)
		}
		var a, b []ClaimInfo
		if r <= 0 {
			a, old = old[0].claims, old[1:]
		}
		if r >= 0 {
			b, fresh = fresh[0].claims, fresh[1:]
		}
		s.touchChanged(a, b)
	}
}

// touchChanged is touch for one prefix.
func (s *store) touchChanged(a, b []ClaimInfo) {
	if slices.Equal(a, b) {
		return
	}
	was := make(map[NodeID]ClaimInfo, len(a))
	for _, c := range a {
		was[c.Owner] = c
	}
	for _, c := range b {
		if was[c.Owner] != c {
			s.touched[c.Owner] = true
		}
		delete(was, c.Owner)
	}
	for owner := range was {
		s.touched[owner] = true
	}
}

// judge is the owner function: which of the claims on these prefixes, given in
// order, own them. It takes the strongest claim first and accepts greedily
// whatever overlaps nothing accepted before. No claim outside overlaps them.
//
// Released claims own nothing, but a prefix that was given up after it was in
// use does not fall back to an owner of an older generation (see ends).
func (s *store) judge(prefixes []netip.Prefix) []*group {
	groups := make([]*group, 0, len(prefixes))
	for _, p := range prefixes {
		owners := s.byPrefix[p]
		if len(owners) == 0 {
			continue
		}
		g := &group{prefix: p, claims: make([]ClaimInfo, 0, len(owners))}
		for _, o := range owners {
			g.claims = append(g.claims, ClaimInfo{Claim: s.claims[Key{p, o}]})
		}
		if len(owners) > 1 {
			slices.SortFunc(g.claims, func(a, b ClaimInfo) int {
				if r := cmpBool(a.State == Released, b.State == Released); r != 0 {
					return r
				}
				return compareClaims(a.Claim, b.Claim)
			})
		}
		endOlder(g.claims)
		groups = append(groups, g)
	}
	if len(groups) == 1 {
		acceptFirst(groups[0].claims)
	} else {
		acceptGreedily(groups)
	}
	return groups
}

// endOlder finishes off the released claims on one prefix, which stand last, and
// those that one of them ends.
func endOlder(claims []ClaimInfo) {
	released := len(claims)
	var last [2]*ClaimInfo // of dynamic and static ones the latest that was in use
	for ; released > 0 && claims[released-1].State == Released; released-- {
		c := &claims[released-1]
		c.Why = "released"
		if l := &last[classOf(c.Static)]; c.Stamp != 0 && (*l == nil || c.Gen >= (*l).Gen) {
			*l = c
		}
	}
	for i := range claims[:released] {
		c := &claims[i]
		if by := last[classOf(c.Static)]; by != nil && by.ends(c.Claim) {
			c.Ended, c.Why = true, "ended: node "+by.Owner.String()[:8]+" gave up a later generation"
		}
	}
}

func classOf(static bool) int {
	if static {
		return 1
	}
	return 0
}

// ends reports whether b is over because of c, on the same prefix: c was in use
// later, and was given up. An eviction makes such a claim.
func (c Claim) ends(b Claim) bool {
	return c.State == Released && c.Stamp != 0 && c.Static == b.Static && c.Gen > b.Gen
}

// acceptFirst is acceptGreedily for claims on a single prefix.
func acceptFirst(claims []ClaimInfo) {
	var winner *ClaimInfo
	for i := range claims {
		switch c := &claims[i]; {
		case c.Why != "":
		case winner == nil:
			winner = c
			c.accept()
		default:
			c.loseTo(winner)
		}
	}
}

func acceptGreedily(groups []*group) {
	var order []*ClaimInfo
	for _, g := range groups {
		for i := range g.claims {
			if g.claims[i].Why == "" {
				order = append(order, &g.claims[i])
			}
		}
	}
	slices.SortFunc(order, func(a, b *ClaimInfo) int { return compareClaims(a.Claim, b.Claim) })
	var taken bart.Table[*ClaimInfo] // by the prefix of the accepted claim
	for _, c := range order {
		if by, ok := anyOverlapping(&taken, c.Prefix); ok {
			c.loseTo(by)
			continue
		}
		taken.Insert(c.Prefix, c)
		c.accept()
	}
}

func (c *ClaimInfo) accept() {
	c.Accepted, c.Why = true, "no stronger claim"
}

func (c *ClaimInfo) loseTo(by *ClaimInfo) {
	_, rule := compareWhy(by.Claim, c.Claim)
	c.Why = "loses to " + by.Owner.String()[:8] + " (" + rule + ")"
	if by.Prefix != c.Prefix {
		c.Why = "overlaps " + by.Prefix.String() + ", " + c.Why
	}
}

// anyOverlapping finds an entry of t that overlaps p.
func anyOverlapping[V any](t *bart.Table[V], p netip.Prefix) (v V, ok bool) {
	if v, ok = t.LookupPrefix(p); ok { // an entry that covers p
		return v, true
	}
	for _, v := range t.Subnets(p) { // an entry inside p
		return v, true
	}
	return v, false
}
