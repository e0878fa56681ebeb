package overlayd

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/overlayd/overlayd/membership"
)

// TestNotesOfGossip: what keeps a node from its cluster stands in the status until
// it is in, and what comes later stays.
func TestNotesOfGossip(t *testing.T) {
	var w notes
	add := func(text string) { w.setGossip(membership.AboutJoining, text) }
	want := func(when string, texts ...string) {
		t.Helper()
		if got := w.all(); !slices.Equal(got, texts) {
			t.Errorf("%s: %q, want %q", when, got, texts)
		}
	}
	add("another key")
	add("another key")
	w.setJoined(false)
	want("before", "another key")
	w.setJoined(true)
	want("once it is in")
	add("no subnet is free")
	w.setJoined(true)
	want("afterwards", "no subnet is free")
	for i := range 100 {
		add(fmt.Sprint(i))
	}
	if n := len(w.all()); n != maxGossipNotes {
		t.Errorf("%d notes", n)
	}
}

// TestNotesThatLast: being in the cluster sets no clock right and makes no room on a disk;
// such notes go when their reason does.
func TestNotesThatLast(t *testing.T) {
	var w notes
	want := func(when string, texts ...string) {
		t.Helper()
		if got := w.all(); !slices.Equal(got, texts) {
			t.Errorf("%s: %q, want %q", when, got, texts)
		}
	}
	w.setGossip(membership.AboutDisk, "the disk is full")
	w.setGossip(membership.AboutClock, "an hour behind")
	w.setJoined(true)
	want("once it is in", "an hour behind", "the disk is full")
	w.setGossip(membership.AboutClock, "two hours behind")
	want("anew", "two hours behind", "the disk is full")
	w.setGossip(membership.AboutClock, "")
	want("a clock that was set", "the disk is full")
	w.setGossip(membership.AboutDisk, "")
	w.setGossip(membership.AboutDisk, "")
	want("in the end")
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
