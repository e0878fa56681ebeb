package browsertest

import "testing"

// TestComplaints: what Quiet and Faint are there to find is found, and nothing else.
func TestComplaints(t *testing.T) {
	b := Start(t)
	for page, want := range map[string]struct{ said, faint int }{
		"<body style='background:white'><p>legible<script>console.log('fine')</script>":                                {0, 0},
		"<body style='background:white'><p style='color:%23ddd'>faint<script>console.error('bad'); throw 'x'</script>": {2, 1},
	} {
		b.Open("data:text/html,<!doctype html><title>t</title>"+page, 400, 300, "light")
		var faint []string
		b.Eval(contrast, &faint)
		said := 0
		for _, e := range b.events {
			if complaint(e) != "" {
				said++
			}
		}
		b.events = nil
		if said != want.said || len(faint) != want.faint {
			t.Errorf("%s: %d complaints, faint %q, want %+v", page, said, faint, want)
		}
	}
}
