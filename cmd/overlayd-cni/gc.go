package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/overlayd/overlayd"
)

// spec11 is the version from which on there are GC and STATUS.
const spec11 = "1.1.0"

// storeOf finds the attachments of a network. It reads no more of the
// configuration than it must, so that one that has become invalid does not stand
// in the way of DEL.
func storeOf(stdin []byte) (attachments, error) {
	var c struct {
		Name     string `json:"name"`
		StateDir string `json:"stateDir"`
	}
	if err := json.Unmarshal(stdin, &c); err != nil {
		return attachments{}, types.NewError(types.ErrDecodingFailure, "network configuration: "+err.Error(), "")
	}
	return attachmentsOf(stateDirOr(c.StateDir), c.Name), nil
}

// The key by which a runtime lists what is still attached, and what it was called
// in the first text of spec 1.1, which libcni gives as well.
const (
	validKey    = "cni.dev/valid-attachments"
	validKeyOld = "cni.dev/attachments"
)

// validOf reads the list. A missing list is refused: taking it for an empty one
// would detach everything.
func validOf(stdin []byte) (map[types.GCAttachment]bool, json.RawMessage, error) {
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &doc); err != nil {
		return nil, nil, types.NewError(types.ErrDecodingFailure, "network configuration: "+err.Error(), "")
	}
	raw, ok := doc[validKey]
	if !ok {
		if raw, ok = doc[validKeyOld]; !ok {
			return nil, nil, invalid("GC needs %q", validKey)
		}
	}
	var list []types.GCAttachment
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, nil, invalid("%s: %v", validKey, err)
	}
	valid := make(map[types.GCAttachment]bool, len(list))
	for _, v := range list {
		valid[v] = true
	}
	return valid, raw, nil
}

// gc detaches all of this network that the runtime does not know any more. Like
// del it works without a running node. It goes on when something fails.
//
// The stock plugins have no GC of their own to speak of; a delegate that speaks
// 1.1.0 is asked all the same.
func (p *plugin) gc(args *skel.CmdArgs) error {
	ctx := context.Background()
	valid, raw, err := validOf(args.StdinData)
	if err != nil {
		return err
	}
	store, err := storeOf(args.StdinData)
	if err != nil {
		return err
	}
	list, err := store.all()
	errs := []error{err}
	inUse := map[string]bool{} // the namespaces' interfaces of valid attachments
	for _, at := range list {
		if valid[types.GCAttachment{ContainerID: at.ContainerID, IfName: at.IfName}] {
			inUse[at.Netns+":"+at.IfName] = true
		}
	}
	for _, at := range list {
		if valid[types.GCAttachment{ContainerID: at.ContainerID, IfName: at.IfName}] {
			continue
		}
		if err := p.detachGone(ctx, store, at, args.Path, inUse[at.Netns+":"+at.IfName]); err != nil {
			errs = append(errs, fmt.Errorf("%s of container %s: %w", at.IfName, at.ContainerID, err))
		}
	}
	errs = append(errs, p.delegateGC(ctx, args, raw))
	return errors.Join(errs...)
}

// named tells whether the attachment's namespace is still there under a name that
// is its own. A path below /proc holds the number of a process, which may be
// another one by now.
func (at *attachment) named() bool {
	if at.Netns == "" || strings.HasPrefix(at.Netns, "/proc/") {
		return false
	}
	_, err := os.Stat(at.Netns)
	return err == nil
}

// delegateGC has the delegate collect what is its own, if it can and if there is
// a configuration to give it.
func (p *plugin) delegateGC(ctx context.Context, args *skel.CmdArgs, valid json.RawMessage) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return nil // ADD says it
	}
	env, err := overlayd.ReadSubnetEnv(c.subnetFile)
	if err != nil {
		return nil // the node is down
	}
	d := delegateConfig(c, env)
	v, err := p.agree(ctx, d, args.Path, c.cniVersion)
	if err != nil || v != spec11 {
		return err
	}
	d["cniVersion"] = v
	return p.run(ctx, call{verb: "GC", args: args, conf: d, extra: object{validKey: valid, validKeyOld: valid}})
}
