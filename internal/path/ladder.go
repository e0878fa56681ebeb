package path

// ladder finds the largest size that passes: full size first, then, if that is lost,
// the smallest, then full size again, since a loss says something about a size only
// where another passes, and between the two by bisection. What it finds is to be
// answered three times in a row.
type ladder struct {
	full, floor int
	again       bool // full size has been given its second chance
	pass        int  // the largest that has passed, 0: none
	fail        int  // the smallest that was lost, full+1: none
	tries       int  // losses in a row of the size that is tried
	streak      int  // answers in a row of the size that is to be proven
}

// sizeGap is how many bytes are left untried.
const sizeGap = 8

// outcome is what follows from a loss.
type outcome uint8

const (
	goOn   outcome = iota
	failed         // nothing passes, or what did no longer does
)

func newLadder(full, floor int) ladder {
	return ladder{full: full, floor: min(floor, full), fail: full + 1}
}

// done tells whether the size is found: pass.
func (z *ladder) done() bool {
	return z.pass > 0 && (z.pass == z.full || z.fail <= z.full && z.fail-z.pass <= sizeGap)
}

// proven tells whether it has been answered often enough.
func (z *ladder) proven() bool { return z.done() && z.streak >= needed }

// next is the size to try.
func (z *ladder) next() int {
	switch {
	case z.done():
		return z.pass
	case z.fail > z.full:
		return z.full
	case z.pass == 0:
		return z.floor
	}
	return (z.pass + z.fail) / 2
}

func (z *ladder) passed(size int) {
	if size != z.next() {
		return // of before the search has moved on
	}
	z.tries = 0
	if z.pass == 0 && !z.again {
		z.again, z.fail = true, z.full+1
	}
	if size > z.pass {
		z.pass, z.streak = size, 0
	}
	if z.done() {
		z.streak++
	}
}

func (z *ladder) missed(size int) outcome {
	if size != z.next() {
		return goOn
	}
	z.streak = 0
	if z.tries++; z.tries < tryTwice {
		return goOn
	}
	z.tries = 0
	if z.done() || size <= z.floor {
		return failed
	}
	z.fail = size
	return goOn
}
