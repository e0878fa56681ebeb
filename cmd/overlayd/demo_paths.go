package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/overlayd/overlayd"
)

// sendByEachPath sends files from the first host's container to the last one's by each
// path that there is, which is asked for by "overlayd path" on both hosts, and then
// leaves the choice to the daemons again.
func (d *demo) sendByEachPath(ctx context.Context) error {
	from, to := d.hosts[0], d.hosts[len(d.hosts)-1]
	for _, path := range []string{overlayd.PathUserspace, overlayd.PathKernelVXLAN, overlayd.PathDirect} {
		d.out.begin("%s and %s: overlayd path %s", from, to, path)
		why, err := d.bothBy(ctx, from, to, path)
		if err != nil {
			return err
		}
		if why != "" {
			d.out.done("no %s here: %s", path, why)
			continue
		}
		d.out.done("%s: overlayd path %s %s, and the same on %s", from, to, path, to)
		if err := d.sendFiles(ctx); err != nil {
			return err
		}
	}
	d.out.begin("%s and %s: overlayd path auto", from, to)
	if _, err := d.bothBy(ctx, from, to, overlayd.PathAuto); err != nil {
		return err
	}
	d.out.done("%s: overlayd path %s auto: the daemons choose again", from, to)
	return nil
}

// bothBy has two hosts send to each other by a path, or says why that cannot be had on
// this machine. Userspace always can.
func (d *demo) bothBy(ctx context.Context, a, b *demoHost, path string) (why string, err error) {
	for _, pair := range [][2]*demoHost{{a, b}, {b, a}} {
		cmd := exec.Command(d.binary, "path", pair[1].Name(), path, "--run-dir", pair[0].runDir())
		cmd.Env = daemonEnv()
		text, err := pair[0].Output(ctx, cmd)
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		why := strings.TrimSpace(string(text))
		if path == overlayd.PathUserspace || path == overlayd.PathAuto {
			return "", &demoError{fmt.Errorf("overlayd path on %s: %w: %s", pair[0], err, why), pair[:]}
		}
		return why, nil
	}
	return "", nil
}
