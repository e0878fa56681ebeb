package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// explainLines is how much of each daemon's log a failed demo prints.
const explainLines = 20

// stopLimit is how long the daemons have to stop.
const stopLimit = 5 * time.Second

// explain prints the end of the logs of the daemons that an error is about.
func (d *demo) explain(err error) {
	d.out.done("FAILED: %v", err)
	for _, h := range d.hostsOf(err) {
		if h.daemon == nil {
			continue
		}
		text, err := h.daemon.Tail(explainLines)
		switch {
		case err != nil:
			text = err.Error()
		case text == "":
			text = "(nothing)"
		}
		d.out.say(fmt.Sprintf("last lines of the log of %s:", h))
		d.out.block(text)
	}
}

// tearDown stops the daemons as a service manager would and removes the lab.
// After a demo that went well, a daemon that does not end well is an error.
func (d *demo) tearDown(strict bool) error {
	d.out.begin("stopping the daemons")
	ctx, cancel := context.WithTimeoutCause(context.Background(), stopLimit, fmt.Errorf("still running after %v", stopLimit))
	defer cancel()
	errs := make([]error, len(d.hosts))
	begin := time.Now()
	var all sync.WaitGroup
	for i, h := range d.hosts {
		if h.daemon == nil {
			continue
		}
		all.Go(func() {
			if err := h.daemon.Stop(ctx); err != nil {
				errs[i] = &demoError{fmt.Errorf("stop the daemon of %s: %w", h, err), []*demoHost{h}}
			}
		})
	}
	all.Wait()
	err := errors.Join(errs...)
	took := time.Since(begin)
	switch {
	case err != nil && strict:
		d.explain(err)
	case err == nil && strict:
		d.out.done("SIGTERM: all daemons have stopped, in %.1f s", took.Seconds())
	default:
		err = nil // the demo has failed anyway, and a daemon may be gone
	}
	d.out.begin("removing everything")
	if closeErr := d.lab.Close(); closeErr != nil {
		return errors.Join(err, closeErr)
	}
	d.out.done("all namespaces, processes and files of the demo are removed")
	return err
}

// lookAround tells what can be done with a demo that stays.
func (d *demo) lookAround() {
	d.out.say("")
	d.out.say("The demo is left up. Look around:")
	for _, h := range d.hosts {
		if h.daemon == nil {
			continue
		}
		d.out.say(fmt.Sprintf("  %s:", h))
		d.out.detail("%s status --run-dir %s", d.binary, h.runDir())
		d.out.detail("less %s", h.daemon.LogFile())
		d.out.detail("ip netns exec %s ip address", h.FullName())
	}
	if n := len(d.hosts); n > 0 && d.hosts[0].container != nil && d.hosts[n-1].container != nil {
		d.out.say("  from container to container:")
		d.out.detail("ip netns exec %s ping %s", d.hosts[0].container.FullName(), d.hosts[n-1].container.Addr4())
	}
	d.out.say(fmt.Sprintf("Remove it: %s demo --remove %s", d.binary, d.lab.Prefix()))
}
