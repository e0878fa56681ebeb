package membership

import "time"

// compareEvery is how often the clocks of the cluster are compared.
const compareEvery = time.Second

// heardTime takes note of what a node's clock shows now.
func (m *Member) heardTime(name string, clock, now time.Time) {
	if id, boot, err := parseGossipName(name); err == nil {
		if p := m.members[id]; p != nil && p.boot == boot {
			p.clock, p.clockAt = clock, now
		}
	}
}

// heardClock takes note of the clocks of a node that sends its full state. A
// node that is new to the cluster has nothing better to go by.
func (m *Member) heardClock(c clockReading, now time.Time) {
	if c.Node == m.id {
		return
	}
	if p := m.members[c.Node]; p != nil {
		p.clock, p.clockAt = c.Wall, now
	}
	if !m.leaser.synced {
		m.setSkew(c.Cluster.Sub(now.Round(0)), now)
	}
}

// compareClocks works out the cluster's time.
func (m *Member) compareClocks(now time.Time) {
	if now.Before(m.nextSkew) || !m.leaser.synced {
		return
	}
	m.nextSkew = now.Add(compareEvery)
	alive := 1
	ahead := m.ahead[:0]
	for _, p := range m.members {
		if p.state != StateAlive {
			continue
		}
		alive++
		if !p.clockAt.IsZero() {
			// It has gone on since, as our monotonic clock has; our wall clock may
			// have been set meanwhile.
			ahead = append(ahead, p.clock.Add(now.Sub(p.clockAt)).Sub(now.Round(0)))
		}
	}
	m.ahead = ahead
	if skew, known := clusterSkew(ahead, alive); known {
		m.setSkew(skew, now)
	}
}

func (m *Member) setSkew(d time.Duration, now time.Time) {
	if d.Abs() <= clockTolerance {
		d = 0
	}
	// It is told from one that drifts with the messages' delays.
	if old := m.leaser.skew; d == 0 && old == 0 || d != 0 && (d-old).Abs() <= clockTolerance/2 {
		return
	}
	m.mu.Lock()
	m.leaser.setSkew(d, now)
	m.mu.Unlock()
	m.skew.Store(int64(d))
	if d.Abs() > clockWarning && !m.skewSaid {
		m.skewSaid = true
		m.warn(AboutClock, "this node's clock is "+skewText(d)+" the cluster's: set it; until then leases go by the cluster's time")
	}
	if d == 0 && m.skewSaid {
		m.skewSaid = false
		m.warn(AboutClock, "")
	}
}

// clockWarning is from where on a person hears of a wrong clock.
const clockWarning = 10 * time.Minute

func skewText(d time.Duration) string {
	if d > 0 {
		return d.Round(time.Minute).String() + " behind"
	}
	return (-d).Round(time.Minute).String() + " ahead of"
}
