package report

import (
	"math"
	"slices"
)

// mannWhitney is the two-sided p-value of the Mann-Whitney U test (Mann, Whitney 1947):
// how often two samples of one and the same distribution look at least as different as a
// and b do. It is exact, by the distribution of the rank sum over all ways to deal the
// values that there are, so ties need no correction; 1 if a or b is empty.
func mannWhitney(a, b []float64) float64 {
	if len(a) == 0 || len(b) == 0 {
		return 1
	}
	all := slices.Concat(a, b)
	ranks := doubledRanks(all)
	seen := 0
	for _, r := range ranks[:len(a)] {
		seen += r
	}
	// Twice the mean of the rank sum, which U differs from by a constant.
	mean := len(a) * (len(all) + 1)
	far := abs(seen - mean)
	p := 0.0
	for sum, share := range rankSums(ranks, len(a)) {
		if abs(sum-mean) >= far {
			p += share
		}
	}
	return math.Min(p, 1)
}

// doubledRanks are twice the ranks of v, from 1 on. Equal values have the middle of the
// ranks that they take up, which may be a half.
func doubledRanks(v []float64) []int {
	ranks := make([]int, len(v))
	for i, x := range v {
		for _, y := range v {
			switch {
			case y < x:
				ranks[i] += 2
			case y == x:
				ranks[i]++ // at least once: itself
			}
		}
		ranks[i]++
	}
	return ranks
}

// rankSums is how probable each sum is of n of the ranks, when all choices are equal.
// Ranks are looked at one after the other, and each is taken with the probability that
// a fair choice of what is left has it: unlike counts of choices, this never overflows.
func rankSums(ranks []int, n int) []float64 {
	total := 0
	for _, r := range ranks {
		total += r
	}
	// chance[k][s]: k were taken, and their sum is s.
	chance := make([][]float64, n+1)
	for k := range chance {
		chance[k] = make([]float64, total+1)
	}
	chance[0][0] = 1
	for i, r := range ranks {
		left := float64(len(ranks) - i)
		for k := min(i, n); k >= 0; k-- {
			take := float64(n-k) / left
			for s, c := range chance[k] {
				if c == 0 {
					continue
				}
				if k < n {
					chance[k+1][s+r] += c * take
				}
				chance[k][s] = c * (1 - take)
			}
		}
	}
	return chance[n]
}

func abs(i int) int { return max(i, -i) }
