package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd"
)

// plugin answers the commands of the CNI protocol.
type plugin struct {
	exec   invoke.Exec
	stdout io.Writer
	alive  func(runDir string) error
	// clear removes the addresses of lost subnets from a bridge.
	clear func(bridge string, env overlayd.SubnetEnv) error
}

// alive returns an error if no node answers in a run directory. A node that we
// may not ask is alive.
func alive(runDir string) error {
	if _, err := overlayd.Dial(runDir); errors.Is(err, overlayd.ErrNotRunning) {
		return err
	}
	return nil
}

// clearBridge removes the addresses of lost subnets from a bridge. The bridge
// plugin would leave those of IPv6, and of several ADDs at once that find an old
// one of IPv4 only the first could remove it.
func clearBridge(bridge string, env overlayd.SubnetEnv) error {
	_, err := overlayd.DropStaleBridgeAddrs(bridge, env)
	return err
}

// subnetEnv reads what the node holds. If it holds nothing yet, the error has the
// given CNI code.
func subnetEnv(c *config, code uint) (overlayd.SubnetEnv, error) {
	env, err := overlayd.ReadSubnetEnv(c.subnetFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return env, types.NewError(code, "overlayd holds no subnet (yet): there is no "+c.subnetFile, "see \"overlayd status\" on this host")
	case err != nil:
		return env, types.NewError(code, err.Error(), "")
	}
	return env, nil
}

// add attaches a container.
func (p *plugin) add(args *skel.CmdArgs) error {
	ctx := context.Background()
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	if c.prevResult != nil {
		return invalid("overlayd-cni makes the interface: it has to be the first plugin of the list")
	}
	env, err := subnetEnv(c, types.ErrTryAgainLater)
	if err != nil {
		return err
	}
	d := delegateConfig(c, env)
	if d["cniVersion"], err = p.agree(ctx, d, args.Path, c.cniVersion); err != nil {
		return err
	}
	if text(d, "type") == bridgePlugin {
		if err := p.clear(text(d, "bridge"), env); err != nil {
			return err
		}
	}
	store := attachmentsOf(c.stateDir, c.name)
	before, err := store.load(args.ContainerID, args.IfName)
	if err != nil {
		return err
	}
	if before != nil && before.Netns != args.Netns {
		// The host was restarted, and the runtime begins the container anew. The
		// delegate would refuse it, since the address from before is still leased.
		if err := p.detachGone(ctx, store, before, args.Path, false); err != nil {
			return err
		}
		before = nil
	}
	// A second ADD for the same namespace is the runtime's mistake. The delegate
	// decides; if it refuses, what the first one made stays, and can be undone.
	// Saved first, so that whatever happens from here on can be undone by DEL.
	at := &attachment{ContainerID: args.ContainerID, IfName: args.IfName, Netns: args.Netns, Subnets: env.Subnets, Delegate: d}
	if err := store.save(at); err != nil {
		return err
	}
	result, err := p.result(ctx, call{verb: "ADD", args: args, conf: d})
	if err != nil {
		// What the delegate had made by then is undone by the DEL that a runtime
		// sends after a failure, with what is saved. It is not done here, where the
		// interface of another network may be what ADD has stumbled over.
		if before != nil {
			err = also(err, store.save(before))
		}
		return err
	}
	if result, err = result.GetAsVersion(c.cniVersion); err == nil {
		err = result.PrintTo(p.stdout)
	}
	if err != nil {
		err = also(err, p.detach(ctx, store, at, args))
	}
	return err
}

// also puts a second error behind the one that the runtime is told, which stays a
// CNI error if it is one.
func also(err, second error) error {
	if second == nil {
		return err
	}
	var e *types.Error
	if errors.As(err, &e) {
		return types.NewError(e.Code, e.Msg, fmt.Sprintf("%s; and then: %v", e.Details, second))
	}
	return errors.Join(err, second)
}

// del detaches a container. It needs no running node, and nothing of the
// configuration but its name and where attachments are kept. What neither we nor the
// runtime know to be attached is detached already.
func (p *plugin) del(args *skel.CmdArgs) error {
	store, err := storeOf(args.StdinData)
	if err != nil {
		return err
	}
	ctx := context.Background()
	at, err := store.load(args.ContainerID, args.IfName)
	if err != nil || at == nil {
		lost, lostErr := p.forgotten(ctx, args)
		if lost == nil {
			return errors.Join(err, lostErr)
		}
		at = lost
	}
	return p.detach(ctx, store, at, args)
}

// detach undoes an attachment and forgets it. If the delegate fails it stays
// remembered, for the next DEL.
func (p *plugin) detach(ctx context.Context, store attachments, at *attachment, args *skel.CmdArgs) error {
	a := *args
	if isLeftOver(a.Netns) {
		a.Netns = ""
	}
	if err := p.run(ctx, call{verb: "DEL", args: &a, conf: at.Delegate}); err != nil {
		return err
	}
	return store.remove(at)
}

// detachGone undoes an attachment that the runtime has no more. Its interface goes
// too, if its namespace is still there and nobody else has an interface of that
// name in it.
func (p *plugin) detachGone(ctx context.Context, store attachments, at *attachment, path string, reused bool) error {
	args := &skel.CmdArgs{ContainerID: at.ContainerID, IfName: at.IfName, Path: path}
	if at.named() && !reused {
		args.Netns = at.Netns
	}
	return p.detach(ctx, store, at, args)
}

// isLeftOver tells whether a path is the file on which a namespace was mounted that
// is gone, as an unmount without a removal leaves it. The stock plugins take a path
// that is not there for a namespace that is gone, but fail by this one.
func isLeftOver(netns string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(netns, &fs) == nil && int64(fs.Type) != unix.NSFS_MAGIC && int64(fs.Type) != unix.PROC_SUPER_MAGIC
}

// check finds out whether a container is attached as ADD has left it.
func (p *plugin) check(args *skel.CmdArgs) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	if c.prevResult == nil {
		return invalid("CHECK needs the prevResult of ADD")
	}
	at, err := attachmentsOf(c.stateDir, c.name).load(args.ContainerID, args.IfName)
	if err != nil {
		return err
	}
	if at == nil {
		return types.NewError(types.ErrUnknownContainer, fmt.Sprintf("%s of container %s is not attached to %s", args.IfName, args.ContainerID, c.name), "")
	}
	// While the node is down, its subnets are as they were for all that we know.
	env, err := overlayd.ReadSubnetEnv(c.subnetFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && !slices.Equal(env.Subnets, at.Subnets) {
		return fmt.Errorf("this host had %v when the container was attached and has %v now: attach it anew", at.Subnets, env.Subnets)
	}
	prev, err := c.prevResult.GetAsVersion(text(at.Delegate, "cniVersion"))
	if err != nil {
		return fmt.Errorf("prevResult: %w", err)
	}
	return p.run(context.Background(), call{verb: "CHECK", args: args, conf: at.Delegate, extra: object{"prevResult": prev}})
}

// status tells whether ADD would work.
func (p *plugin) status(args *skel.CmdArgs) error {
	ctx := context.Background()
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	env, err := subnetEnv(c, types.ErrPluginNotAvailable)
	if err != nil {
		return err
	}
	d := delegateConfig(c, env)
	v, err := p.agree(ctx, d, args.Path, c.cniVersion)
	if err != nil {
		return types.NewError(types.ErrPluginNotAvailable, err.Error(), "")
	}
	if err := p.alive(c.runDir); err != nil {
		// The subnet is this host's still, but nothing goes by userspace.
		return types.NewError(types.ErrLimitedConnectivity, err.Error(), "")
	}
	if v != spec11 {
		return nil
	}
	d["cniVersion"] = v
	return p.run(ctx, call{verb: "STATUS", args: args, conf: d})
}
