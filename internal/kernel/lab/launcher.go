package lab

import (
	"os/exec"
	"runtime"
	"sync"
)

// launcher starts processes from one thread that lives until the lab ends.
//
// The kernel ties PR_SET_PDEATHSIG to the thread that forked, not to its
// process (prctl(2)): a child of a thread that Go ends, or that it never ends,
// would die too early or never. With a thread that the launcher owns, children
// die with the process, also when that is killed, and not before.
type launcher struct {
	requests chan launch
	stopped  sync.WaitGroup
}

type launch struct {
	ns   *Namespace
	cmd  *exec.Cmd
	done chan error
}

func newLauncher() *launcher {
	l := &launcher{requests: make(chan launch)}
	l.stopped.Add(1)
	go l.run()
	return l
}

// run ends its thread with itself: it never unlocks it.
func (l *launcher) run() {
	defer l.stopped.Done()
	runtime.LockOSThread()
	for r := range l.requests {
		home, err := enter(r.ns.file)
		if err != nil {
			r.done <- err
			continue
		}
		// The child is born in the namespace of the thread that forks it.
		err = r.cmd.Start()
		// A failure to come home does no harm here: each start enters anew.
		_ = back(home)
		r.done <- err
	}
}

// start starts cmd in the namespace.
func (l *launcher) start(ns *Namespace, cmd *exec.Cmd) error {
	done := make(chan error, 1)
	l.requests <- launch{ns, cmd, done}
	return <-done
}

// stop ends the thread. No start may run or follow.
func (l *launcher) stop() {
	close(l.requests)
	l.stopped.Wait()
}
