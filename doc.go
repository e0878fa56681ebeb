// Package overlayd joins this host to an overlay network: every host owns a
// subnet, and packets for another host's subnet are carried to that host
// inside UDP. Which subnet is whose is gossiped among the hosts; there is no
// store and no coordinator.
//
// A [Node] is made of a [Config] by [New], set going by [Node.Start], and taken
// down by [Node.Stop]:
//
//	node, err := overlayd.New(overlayd.Config{
//		Networks:  []netip.Prefix{netip.MustParsePrefix("100.96.0.0/16")},
//		Interface: "eth0",
//		Join:      []string{"192.0.2.1"},
//		StateDir:  "/var/lib/my-agent",
//	})
//
// The package keeps no global state, prints nothing and never ends the process.
// New starts no goroutine; what Start starts, Stop joins.
//
// # How data flows
//
//	gossip ---> membership.View --+
//	                              +--> mesh ---> forwarding table ---> the two loops
//	probes ---> reachability -----+      |         (immutable, behind
//	       \--> path machine -----+      |          an atomic pointer)
//	                                     +-----> guard, devices, routes
//	                                     +-----> Status, Events
//
// One goroutine, the conductor, makes a new mesh whenever membership or
// reachability change. The forwarding table and the status are made of the same
// mesh, so the status cannot say one thing and the packets do another. The
// packet loops only read the table.
//
// # What a node does to its host
//
// A TUN device, the node's address on it (the first of its subnet), for each
// overlay network a route to it and an unreachable route behind that, all with
// route protocol 96; a control socket and subnet.env in Config.RunDir. Unless
// Config.FastPath is "off" also what the kernel needs to carry packets itself: a
// VXLAN device for each underlay family with what it knows of the peers, a route for
// each peer, tables and policy rules for probes, and a table of nftables that guards
// them. Stop removes all of it, but for what Config.KeepPaths is about. With
// Config.Tunnel there is none of it, and no privilege is needed.
package overlayd
