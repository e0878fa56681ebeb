// Package membership finds the other nodes of a cluster and leases subnets
// without a coordinator: nodes gossip records over hashicorp/memberlist, and
// who owns a prefix is a pure function of the records.
//
// # Records
//
// A [Claim] says that its owner wants, holds or has given up a prefix. It has a
// single writer, its owner, and a key: (prefix, owner). Merging two sets of
// claims keeps, per key, the one with the higher version, of equal versions
// the one with the larger bytes; so merging cannot fail, and neither order nor
// repetition matter. [Settings] are what all nodes must have in common; a node
// that has merged in full with one that holds them is synced. The wire format
// stands in record.go, that of a node's gossip entry in meta.go.
//
// # Who owns a prefix
//
// All claims that are not released are sorted: static before dynamic, then the
// higher gen, held before tentative, solo last, the lower stamp, and in the
// end a hash. From the strongest down, whatever overlaps nothing accepted
// before is accepted. Whether an owner is alive does not matter: that decides
// where packets go, not whose they are.
//
// # How a node gets a subnet
//
//	start ----> synced ----> tentative ----> held
//	  merges in full   picks a free   its claim has had time to
//	  with a node      prefix and     spread (Config.Spread), and
//	  that holds the   tells all      still wins after one more
//	  settings                        full merge
//
// The first node of a cluster needs nobody: it has neither seeds nor remembered
// peers. Where all hosts have the same list of seeds and start at once, the
// lowest NodeID among those that find themselves in their list acts as first,
// once nobody who holds the settings has been met for Config.Elect.
//
// A node that starts again with its state directory uses its old subnet at
// once and publishes the same claim. One whose held claim is beaten, as after
// a partition between two clusters that were born apart, gives the subnet up
// when the defeat has stood for the spreading time, and takes another.
//
// # Spreading
//
// A changed record goes out by gossip, encoded as it stands when it is sent. A
// digest of all records travels in every answer to a ping; nodes that differ
// although nothing has changed for a while merge in full. Seeds, remembered
// peers and members that died are dialled for ever, since memberlist itself
// never calls anybody again.
//
// # Layers
//
// The leaser, the elector and the store are deterministic: no I/O, no clock, no
// goroutine. A [Member] drives them from one goroutine, which works off what
// memberlist's callbacks put into its inbox, and gives out immutable Views.
package membership
