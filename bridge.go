package overlayd

import (
	"errors"
	"net/netip"

	"github.com/overlayd/overlayd/internal/kernel"
)

// DropStaleBridgeAddrs removes from a bridge of this host the addresses in the
// overlay networks that lie in none of the subnets of e, and returns them. A node
// that has lost a subnet leaves such an address behind on the bridge of its
// containers: by it the host takes the subnet, which is another node's now, for
// its own, and a node would refuse to start. It is for whoever made the bridge;
// there need be none of that name. It takes CAP_NET_ADMIN.
func DropStaleBridgeAddrs(bridge string, e SubnetEnv) (dropped []netip.Prefix, err error) {
	k, err := kernel.Open(kernel.Config{})
	if err != nil {
		return nil, err
	}
	dropped, err = k.DropBridgeAddrs(bridge, e.Networks, e.Subnets)
	return dropped, errors.Join(err, k.Close())
}
