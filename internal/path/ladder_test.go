package path

import (
	"fmt"
	"testing"
)

// climb runs a ladder over a link that loses its first packets and carries no more than
// carries bytes. It returns what was found, 0: nothing, and how many were sent.
func climb(z ladder, first, carries int) (size, sent int) {
	for ; !z.proven() && sent < 100; sent++ {
		size := z.next()
		if sent >= first && size <= carries {
			z.passed(size)
		} else if z.missed(size) == failed {
			return 0, sent + 1
		}
	}
	return z.pass, sent
}

func TestLadder(t *testing.T) {
	const full, floor = 1450, 1280
	for _, first := range []int{0, 1, 2, 3} { // four, and the smallest is lost twice
		for carries := floor; carries <= full+1; carries++ {
			size, sent := climb(newLadder(full, floor), first, carries)
			best := min(carries, full)
			if size > best || size <= best-sizeGap || best == full && size != full {
				t.Errorf("%d lost at first, then %d bytes pass: found %d", first, carries, size)
			}
			if sent > 20 {
				t.Errorf("%d lost at first, then %d bytes pass: %d probes sent", first, carries, sent)
			}
		}
	}
	for _, first := range []int{0, 4} {
		if size, sent := climb(newLadder(full, floor), first, floor-1); size != 0 || sent != 4 {
			t.Errorf("nothing passes: found %d with %d probes", size, sent)
		}
	}
	if size, _ := climb(newLadder(1200, floor), 0, 1200); size != 1200 {
		t.Errorf("full size below the smallest: %d", size)
	}
}

// TestLadderUpwards: a size in use is left for the full one also where the two are close.
func TestLadderUpwards(t *testing.T) {
	for _, pass := range []int{1280, 1400, 1442, 1443, 1449} {
		for _, carries := range []int{pass, 1450} {
			t.Run(fmt.Sprint(pass, carries), func(t *testing.T) {
				z := newLadder(1450, 1280)
				z.pass = pass
				if size, _ := climb(z, 0, carries); size != carries {
					t.Errorf("found %d", size)
				}
			})
		}
	}
}
