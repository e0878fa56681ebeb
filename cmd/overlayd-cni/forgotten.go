package main

import (
	"context"
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/overlayd/overlayd"
)

// forgotten is an attachment of which nothing can be read any more, as far as the
// runtime's own memory of it goes, which is the result of ADD. That is enough to
// undo it: the delegate finds the interface by its name, and its leases by the
// container's. It is nil without a result, and if the configuration has become
// invalid.
func (p *plugin) forgotten(ctx context.Context, args *skel.CmdArgs) (*attachment, error) {
	c, err := parseConfig(args.StdinData)
	if err != nil || c.prevResult == nil {
		return nil, nil
	}
	result, err := current.NewResultFromResult(c.prevResult)
	if err != nil {
		return nil, nil
	}
	var was overlayd.SubnetEnv
	for _, ip := range result.IPs {
		if p, err := netip.ParsePrefix(ip.Address.String()); err == nil {
			was.Subnets = append(was.Subnets, p.Masked())
		}
	}
	d := delegateConfig(c, was)
	if d["cniVersion"], err = p.agree(ctx, d, args.Path, c.cniVersion); err != nil {
		return nil, err
	}
	return &attachment{ContainerID: args.ContainerID, IfName: args.IfName, Netns: args.Netns, Subnets: was.Subnets, Delegate: d}, nil
}
