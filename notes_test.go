package overlayd

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

// TestNotesOfGossip: what keeps a node from its cluster stands in the status until
// it is in, and what comes later stays.
func TestNotesOfGossip(t *testing.T) {
	var w notes
	w.addGossip("another key")
	w.addGossip("another key")
	w.setJoined(false)
	if got := w.all(); !slices.Equal(got, []string{"another key"}) {
		t.Errorf("before: %v", got)
	}
	w.setJoined(true)
	if got := w.all(); len(got) != 0 {
		t.Errorf("once it is in: %v", got)
	}
	w.addGossip("a wrong clock")
	w.setJoined(true)
	if got := w.all(); !slices.Equal(got, []string{"a wrong clock"}) {
		t.Errorf("afterwards: %v", got)
	}
	for i := range 100 {
		w.addGossip(fmt.Sprint(i))
	}
	if n := len(w.all()); n != maxGossipNotes {
		t.Errorf("%d notes", n)
	}
}

// TestNotesOfRefusedTable: it is told until the next one is taken.
func TestNotesOfRefusedTable(t *testing.T) {
	var w notes
	w.setRefused(errors.New("own subnet"))
	if got := w.all(); !slices.Equal(got, []string{"packets go on as they went before the last change of the cluster: own subnet"}) {
		t.Errorf("%q", got)
	}
	if w.setRefused(nil); len(w.all()) != 0 {
		t.Errorf("afterwards: %q", w.all())
	}
}
