package membership

import "time"

// What befalls a node of the simulation.

// crash ends a life without a word.
func (n *simNode) crash() {
	if n.up {
		n.s.logf("node %d crashes", n.i)
		n.end()
	}
}

func (n *simNode) end() {
	n.s.faulty, n.s.healed = true, n.s.now
	n.up, n.paused, n.held = false, false, nil
}

// crashSoon crashes the node before the k-th effect from now.
func (n *simNode) crashSoon(k int) { n.dieIn = k }

// pause stops the node as SIGSTOP does; resume lets it go on.
func (n *simNode) pause() {
	if n.up && !n.paused {
		n.s.logf("node %d pauses", n.i)
		n.s.faulty, n.paused = true, true
	}
}

func (n *simNode) resume() {
	if !n.paused {
		return
	}
	n.s.logf("node %d goes on", n.i)
	n.s.healed = n.s.now
	n.paused = false
	waiting := n.waiting
	n.waiting = nil
	for _, fn := range waiting {
		fn()
	}
	if n.up {
		n.work()
	}
}

// leave releases the node's subnets and ends it two seconds later.
func (n *simNode) leave() {
	if !n.up || n.paused || n.left {
		return
	}
	n.s.logf("node %d leaves", n.i)
	n.left = true
	n.effects(n.leaser.leave(n.wall()))
	n.disk = simDisk{id: n.id, met: n.disk.met}
	n.held = nil
	life := n.life
	n.s.after(2*time.Second, func() {
		if n.up && n.life == life {
			n.up, n.paused = false, false
		}
	})
}

// loseLease and loseDisk are what happens to a node's disk while it is down.
func (n *simNode) loseLease() {
	if !n.up {
		n.s.logf("node %d loses its lease file", n.i)
		n.disk.claims, n.disk.holder, n.forgot = nil, false, true
	}
}

func (n *simNode) loseDisk() {
	if !n.up {
		n.former = append(n.former, n.id)
		n.disk = simDisk{id: testID(int(n.s.rng.Uint32()))}
		n.id = n.disk.id
		n.s.logf("node %d loses its disk and is %v from now on", n.i, n.id.String()[8:16])
	}
}

// setClock sets the clock of a node right that is down.
func (n *simNode) setClock() {
	if !n.up {
		n.s.logf("node %d's clock is set right", n.i)
		n.ahead = 0
	}
}

// evictSome tries to evict the owner of the k-th claim that it knows.
func (n *simNode) evictSome(k int) {
	if !n.up || n.paused || n.left {
		return
	}
	if all := n.store.owners(); len(all) > 0 {
		p := all[k%len(all)].Prefix
		err := n.leaser.evict(p, n.wall())
		n.s.logf("node %d evicts the owner of %v: %v", n.i, p, err)
		n.work()
	}
}
