package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// narrator prints what the demo does: a line for each step, with the seconds
// since the start, and details below it. On a terminal a step is shown while
// it goes on; elsewhere only when it is done.
type narrator struct {
	mu       sync.Mutex
	w        io.Writer
	start    time.Time
	terminal bool
	open     bool // a step is shown that is not done
}

func newNarrator(w io.Writer) *narrator {
	return &narrator{w: w, start: time.Now(), terminal: isTerminal(w)}
}

// eraseLine takes the cursor to the start of its line and clears it (ECMA-48
// EL).
const eraseLine = "\r\x1b[K"

// begin shows a step that goes on.
func (n *narrator) begin(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.terminal {
		n.clear()
		fmt.Fprintf(n.w, "   ...  "+format, args...)
		n.open = true
	}
}

// done prints a step that is done, in place of one that was begun.
func (n *narrator) done(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.clear()
	fmt.Fprintf(n.w, "%5.1fs  %s\n", time.Since(n.start).Seconds(), fmt.Sprintf(format, args...))
}

// detail prints a line that belongs to the step before.
func (n *narrator) detail(format string, args ...any) {
	n.block(fmt.Sprintf(format, args...))
}

// block prints lines that belong to the step before.
func (n *narrator) block(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.clear()
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		fmt.Fprintln(n.w, strings.TrimRight("        "+line, " \n"))
	}
}

// say prints a line as it is.
func (n *narrator) say(line string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.clear()
	fmt.Fprintln(n.w, line)
}

// clear removes a step that was begun and is not done. The caller holds mu.
func (n *narrator) clear() {
	if n.open {
		fmt.Fprint(n.w, eraseLine)
		n.open = false
	}
}
