package membership

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

// The speed and size that the lease records are held to, with 10,000 claims:
// everything judged anew in under 20 ms, one changed claim and the view made of
// it in under 1 ms, the store in under 20 MB.
//
//	go test ./membership -run '^$' -bench 'Verdict|View|Store' -benchmem

const benchClaims = 10000

func BenchmarkVerdictFromNothing(b *testing.B) {
	for _, n := range []int{100, benchClaims} {
		claims := manyClaims(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			s := newStore()
			for _, c := range claims {
				s.merge(c, time.Unix(0, 0))
			}
			for b.Loop() {
				s.groups = nil
				for p := range s.byPrefix {
					s.stale[p] = true
				}
				s.settle()
			}
		})
	}
}

// benchMember is a Member that knows many claims and members, without gossip.
func benchMember(b testing.TB, n int) *Member {
	m := &Member{
		id: testID(1 << 30), cfg: Config{Settings: testSettings("10.0.0.0/8")}, changed: make(chan struct{}, 1), inbox: newInbox(),
		store: newStore(), queue: newBroadcastQueue(gossipRetransmit), members: make(map[NodeID]*member), changes: make(map[NodeID]bool),
	}
	m.leaser = newLeaser(m.id, m.cfg.Settings, nil, m.store, defaultSpread, nil, simEpoch)
	for _, c := range manyClaims(n) {
		c.Expiry = seconds(simEpoch) + 1000
		if _, err := m.leaser.merge(c, simEpoch); err != nil {
			b.Fatal(err)
		}
		m.members[c.Owner] = &member{life: life{boot: 1, meta: meta{name: "node"}}}
		m.touch(c.Owner)
	}
	return m
}

func BenchmarkViewFromNothing(b *testing.B) {
	m := benchMember(b, benchClaims)
	b.ReportAllocs()
	for b.Loop() {
		m.store.groups, m.peers = nil, nil
		for p := range m.store.byPrefix {
			m.store.stale[p] = true
		}
		for id := range m.members {
			m.touch(id)
		}
		m.makeView()
	}
}

func BenchmarkViewOfOneChange(b *testing.B) {
	m := benchMember(b, benchClaims)
	m.makeView()
	var changing []Claim
	for _, c := range m.store.claims {
		changing = append(changing, c)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		c := &changing[i%len(changing)]
		c.Version++
		if c.State = Held; c.Version%2 == 0 {
			c.State = Released
		}
		c.Stamp = 1
		if changed, err := m.leaser.merge(*c, simEpoch); !changed || err != nil {
			b.Fatal(changed, err)
		}
		m.makeView()
		i++
	}
}

// BenchmarkStoreSize reports the memory of a store with its verdict.
func BenchmarkStoreSize(b *testing.B) {
	claims := manyClaims(benchClaims)
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		s := newStore()
		for _, c := range claims {
			s.merge(c, time.Unix(0, 0))
		}
		s.settle()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB/store")
		runtime.KeepAlive(s)
	}
}

// BenchmarkMerge is the merge of one claim of 10,000 that is new, and of one that is known.
func BenchmarkMerge(b *testing.B) {
	var claims []Claim
	for _, c := range manyClaims(benchClaims) {
		claims = append(claims, c)
	}
	for _, known := range []bool{false, true} {
		b.Run(map[bool]string{false: "new", true: "known"}[known], func(b *testing.B) {
			b.ReportAllocs()
			s := newStore()
			for _, c := range claims {
				s.merge(c, time.Unix(0, 0))
			}
			for i := 0; b.Loop(); i++ {
				c := claims[i%len(claims)]
				if !known {
					c.Version += uint64(i/len(claims)) + 1
				}
				if changed, err := s.merge(c, time.Unix(0, 0)); err != nil || changed == known {
					b.Fatal(changed, err)
				}
			}
		})
	}
}
