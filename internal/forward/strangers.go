package forward

import (
	"net/netip"
	"sync"
)

// A stranger's datagrams are refused by their outer address, which the kernel can
// do as well, before they take room in the socket's queue from others, and before
// anybody is woken for them. It is asked to while there are many, and only then:
// without it, each is looked at and counted as what it is.
const (
	// manyStrangers is how many of their datagrams in a second call for the filter,
	// fewStrangers how many messages that it has dropped let go of it, after
	// quietSeconds.
	manyStrangers = 2000
	fewStrangers  = 200
	quietSeconds  = 10
)

// strangers puts the filter on the sockets and takes it off.
type strangers struct {
	drops *Drops
	conns []batchConn

	mu      sync.Mutex
	on      bool
	quiet   int      // seconds
	unknown uint64   // as counted a second ago
	dropped []uint64 // by each socket, as seen last
	// checksums tells how many datagrams the host has dropped for their checksum, of
	// which wrong were seen last. Spare are those of the last second that no socket of
	// ours had shown: it may have been read a moment too early.
	checksums    func() (uint64, bool)
	wrong, spare uint64
}

func newStrangers(d *Drops, conns []batchConn) *strangers {
	wrong, _ := checksumErrors()
	return &strangers{drops: d, conns: conns, dropped: make([]uint64, len(conns)), checksums: checksumErrors, wrong: wrong}
}

// tick is called once a second. It counts what the kernel has dropped: what was from
// strangers while the filter stands, as most of it is, and else what there was no
// room for.
// It loads the table under its lock, so that no filter is for an older one than that
// which was renewed last.
func (s *strangers) tick(table func() *Table) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lost uint64
	for i, c := range s.conns {
		// The kernel's counter has 32 bits; a closed socket shows 0.
		now := c.dropped()
		if now > s.dropped[i] {
			lost += now - s.dropped[i]
		}
		if now > 0 {
			s.dropped[i] = now
		}
	}
	// A socket's counter does not tell why, and the host's not for whom.
	if now, ok := s.checksums(); ok {
		fresh := max(now, s.wrong) - s.wrong
		wrong := min(lost, s.spare+fresh)
		s.drops.Add(RxChecksum, wrong)
		s.spare = min(fresh, s.spare+fresh-wrong)
		lost, s.wrong = lost-wrong, now
	}
	if s.on {
		s.drops.Add(RxUnknownSource, lost)
	} else {
		s.drops.Add(RxSocketFull, lost)
	}
	seen := s.drops.Count(RxUnknownSource)
	came := seen - s.unknown
	s.unknown = seen
	switch {
	case !s.on && came >= manyStrangers:
		s.on, s.quiet = s.put(table()), 0
	case s.on && came >= fewStrangers:
		s.quiet = 0
	case s.on:
		if s.quiet++; s.quiet >= quietSeconds {
			s.off()
		}
	}
}

// renew is called when another table has come into force.
func (s *strangers) renew(table func() *Table) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.on {
		s.on = s.put(table())
	}
}

// put gives all sockets the filter for a table, or none.
func (s *strangers) put(t *Table) bool {
	known := make([]netip.Addr, 0, len(t.sources))
	for a := range t.sources {
		known = append(known, a)
	}
	for _, c := range s.conns {
		if c.admit(known) != nil {
			s.off()
			return false
		}
	}
	return true
}

func (s *strangers) off() {
	s.on = false
	for _, c := range s.conns {
		c.admitAll()
	}
}
