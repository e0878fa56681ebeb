package report

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// allWays is the p-value by its definition: over every choice of which values are a's, how
// often U is at least as far from its mean as it is for a and b.
func allWays(a, b []float64) float64 {
	all := slices.Concat(a, b)
	u := func(mine uint) (u float64) {
		for i, x := range all {
			for j, y := range all {
				if mine>>i&1 == 0 || mine>>j&1 == 1 {
					continue
				}
				if x > y {
					u++
				}
				if x == y {
					u += 0.5
				}
			}
		}
		return math.Abs(u - float64(len(a)*len(b))/2)
	}
	far, ways, seen := u(1<<len(a)-1), 0, 0
	for mine := range uint(1) << len(all) {
		n := 0
		for i := range all {
			n += int(mine >> i & 1)
		}
		if n != len(a) {
			continue
		}
		ways++
		if u(mine) >= far {
			seen++
		}
	}
	return float64(seen) / float64(ways)
}

func TestMannWhitneyAllWays(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		a, b := make([]float64, 1+rnd.IntN(5)), make([]float64, 1+rnd.IntN(5))
		values := 1 + rnd.IntN(12) // few: many ties
		for _, v := range [][]float64{a, b} {
			for i := range v {
				v[i] = float64(rnd.IntN(values))
			}
		}
		got, want := mannWhitney(a, b), allWays(a, b)
		if math.Abs(got-want) > 1e-12 {
			t.Fatalf("%v, %v: p is %v, want %v", a, b, got, want)
		}
		if swapped := mannWhitney(b, a); math.Abs(got-swapped) > 1e-12 {
			t.Fatalf("%v, %v: p is %v, and %v the other way", a, b, got, swapped)
		}
	}
}

func TestMannWhitney(t *testing.T) {
	seq := func(from, n int) []float64 {
		v := make([]float64, n)
		for i := range v {
			v[i] = float64(from + i)
		}
		return v
	}
	for _, test := range []struct {
		name string
		a, b []float64
		want float64
	}{
		{"none", nil, seq(0, 3), 1},
		{"apart, 3 and 3", seq(0, 3), seq(3, 3), 2. / 20},
		{"apart, 4 and 4", seq(4, 4), seq(0, 4), 2. / 70},
		{"apart, 5 and 5", seq(0, 5), seq(5, 5), 2. / 252},
		{"one swapped", []float64{0, 1, 2, 4}, []float64{3, 5, 6, 7}, 4. / 70},
		{"equal", []float64{1, 1, 1, 1}, []float64{1, 1, 1, 1, 1}, 1},
		{"constants apart", []float64{1, 1, 1, 1}, []float64{2, 2, 2, 2}, 2. / 70},
		{"the same", seq(0, 6), seq(0, 6), 1},
	} {
		if got := mannWhitney(test.a, test.b); math.Abs(got-test.want) > 1e-12 {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// The chances are those of something that must happen, also with more values than fit into
// a count of choices: 60 of 120 are 10^35.
func TestRankSumsAreAll(t *testing.T) {
	ranks := doubledRanks(slices.Repeat([]float64{1, 2, 3, 4, 5, 6}, 20))
	sum := 0.0
	for _, share := range rankSums(ranks, 60) {
		sum += share
	}
	if math.Abs(sum-1) > 1e-9 {
		t.Errorf("the chances come to %v", sum)
	}
}
