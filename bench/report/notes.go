package report

import (
	"fmt"
	"slices"
	"strings"
)

// machine says in a line when and on what the report was made.
func (r *Report) machine() string {
	h := &r.Host
	what := []string{h.Date.UTC().Format("2006-01-02 15:04 UTC")}
	if h.CPU != "" || h.CPUs != 0 {
		what = append(what, strings.TrimSpace(fmt.Sprintf("%s (%d processors)", h.CPU, h.CPUs)))
	}
	for _, s := range []string{strings.TrimSpace("Linux " + h.Kernel + " " + h.Arch), prefixed("overlayd ", h.Version), h.Go} {
		if s != "" {
			what = append(what, s)
		}
	}
	return strings.Join(what, ", ")
}

func prefixed(before, s string) string {
	if s == "" {
		return ""
	}
	return before + s
}

// load says in a sentence what made the traffic and how often.
func (r *Report) load() string {
	h := &r.Host
	return fmt.Sprintf("Traffic by %s; medians of %d interleaved rounds, %g s for each measurement; the whole run took %.0f s.",
		h.Load, h.Rounds, h.Seconds, h.TookSecs)
}

// notes say what the columns of the table mean.
func (r *Report) notes() []string {
	notes := []string{
		"base: " + Base + " in the same run. Everything shares one machine's processors, so only ratios within a run mean " +
			"something.",
		"/pkt: per packet, that is per inner TCP segment of full size that was sent. copies: what the overlay's own processes, on both hosts, " +
			"read from the kernel (to user) and write to it (from user), in the direction of the data; a superpacket or a " +
			"train of datagrams that crosses in one piece is one copy. bytes copied /byte: how often each byte of payload " +
			"crosses, both ways together. System calls and context switches are all of those processes', for acknowledgements too, " +
			"less what they make in as long without traffic; where no packet crosses they are 0.",
		fmt.Sprintf("Counting runs are separate from speed runs; the counters were off by %.2g %% on a known workload.",
			r.Host.SelfCheck),
	}
	if slices.ContainsFunc(r.Paths, func(p Path) bool { return p.Encrypts }) {
		notes = append(notes, "* encrypts its packets, which is more work than the others do.")
	}
	return notes
}
