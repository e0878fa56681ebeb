package main

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// find looks for a stock plugin in CNI_PATH.
func (p *plugin) find(name, path string) (string, error) {
	file, err := p.exec.FindInPath(name, filepath.SplitList(path))
	if err != nil {
		return "", fmt.Errorf("%w: install the stock CNI plugins (Debian: containernetworking-plugins) there", err)
	}
	return file, nil
}

// agree chooses the version of the specification to speak with a delegate and its
// ipam plugin: the highest that both know, up to the runtime's. The stock plugins
// may be older than the runtime: Debian 12's do not know 1.1.0.
func (p *plugin) agree(ctx context.Context, d object, path, wanted string) (string, error) {
	names := []string{text(d, "type")}
	if ipam, ok := d["ipam"].(object); ok {
		names = append(names, text(ipam, "type"))
	}
	common := spec.SupportedVersions()
	for _, name := range names {
		file, err := p.find(name, path)
		if err != nil {
			return "", err
		}
		info, err := invoke.GetVersionInfo(ctx, file, p.exec)
		if err != nil {
			return "", fmt.Errorf("the versions of plugin %s: %w", name, err)
		}
		common = slices.DeleteFunc(slices.Clone(common), func(v string) bool {
			return !slices.Contains(info.SupportedVersions(), v)
		})
	}
	best := ""
	for _, v := range common { // ascending
		if ok, err := version.GreaterThanOrEqualTo(wanted, v); err == nil && ok {
			best = v
		}
	}
	if best == "" {
		return "", types.NewError(types.ErrIncompatibleCNIVersion, fmt.Sprintf("the plugins %v speak no version up to %s", names, wanted), "")
	}
	return best, nil
}

// call is one execution of a delegate.
type call struct {
	verb  string
	args  *skel.CmdArgs // of the attachment
	conf  object        // for the delegate
	extra object        // more for it, of this call alone
}

// prepare finds the delegate of a call and puts its configuration together.
func (p *plugin) prepare(c call) (file string, conf []byte, args invoke.CNIArgs, err error) {
	if file, err = p.find(text(c.conf, "type"), c.args.Path); err != nil {
		return "", nil, nil, err
	}
	all := object{}
	for _, part := range []object{c.conf, c.extra} {
		for k, v := range part {
			all[k] = v
		}
	}
	if conf, err = json.Marshal(all); err != nil {
		return "", nil, nil, fmt.Errorf("configuration of the delegate: %w", err)
	}
	return file, conf, &invoke.Args{
		Command: c.verb, ContainerID: c.args.ContainerID, NetNS: c.args.Netns, IfName: c.args.IfName,
		PluginArgsStr: c.args.Args, Path: c.args.Path,
	}, nil
}

// run executes a delegate that gives no result.
func (p *plugin) run(ctx context.Context, c call) error {
	file, conf, args, err := p.prepare(c)
	if err != nil {
		return err
	}
	return invoke.ExecPluginWithoutResult(ctx, file, conf, args, p.exec)
}

// result executes a delegate that gives one.
func (p *plugin) result(ctx context.Context, c call) (types.Result, error) {
	file, conf, args, err := p.prepare(c)
	if err != nil {
		return nil, err
	}
	return invoke.ExecPluginWithResult(ctx, file, conf, args, p.exec)
}

// text is a key's value if that is a text.
func text(o object, key string) string {
	s, _ := o[key].(string)
	return s
}
