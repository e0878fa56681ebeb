package report

import (
	"math"
	"strconv"
	"strings"
)

// number writes v with three significant digits, without an exponent. 0 is "0", so that
// one sees at once where nothing happens at all; what is too small for four decimals says
// that it is there.
func number(v float64) string {
	switch {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "-"
	case v == 0:
		return "0"
	case v < 0:
		return "-" + number(-v)
	case v < 0.00005:
		return "<0.0001"
	}
	// The exponent is taken after rounding to three digits: 9.996 is 10.0, not 10.00.
	_, exp, _ := strings.Cut(strconv.FormatFloat(v, 'e', 2, 64), "e")
	e, err := strconv.Atoi(exp)
	if err != nil {
		return "-"
	}
	return strconv.FormatFloat(v, 'f', min(max(2-e, 0), 4), 64)
}

// size writes a number of bytes: in KB of 1000 from 10,000 on.
func size(v float64) string {
	if v >= 10_000 {
		return number(v/1000) + " KB"
	}
	return strconv.FormatFloat(v, 'f', 0, 64) + " B"
}

// fixed writes v with that many decimals.
func fixed(v float64, decimals int) string { return strconv.FormatFloat(v, 'f', decimals, 64) }

// ratio writes a ratio: two decimals, fewer from 10 on.
func ratio(v float64) string {
	switch {
	case v >= 100:
		return fixed(v, 0)
	case v >= 10:
		return fixed(v, 1)
	}
	return fixed(v, 2)
}
