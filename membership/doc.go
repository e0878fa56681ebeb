// Package membership finds the other nodes of a cluster and leases subnets
// without a coordinator: nodes gossip records over hashicorp/memberlist, and
// who owns a prefix is a pure function of the records.
//
// # Records
//
// A [Claim] says that its owner wants, holds or has given up a prefix. It has a
// single writer, its owner, and a key: (prefix, owner). Merging two sets of
// claims keeps, per key, the one with the higher version, of equal versions
// the one with the larger bytes; so neither order nor repetition matter, as long
// as nobody fills more of the store than its bounds allow (store.go). [Settings]
// are what all nodes must have in common; a node that has merged in full with one
// that holds them is synced. The wire format stands in record.go, that of a node's
// gossip entry in meta.go.
//
// # Who owns a prefix
//
// All claims that are not released are sorted: static before dynamic, then the
// higher gen, held before tentative, solo last, the lower stamp, and in the
// end a hash. From the strongest down, whatever overlaps nothing accepted
// before is accepted. Whether an owner is alive does not matter: that decides
// where packets go, not whose they are. A claim is over when a later gen of its
// class on the same prefix was held and given up: what was once taken over does
// not fall back.
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
// # How long a claim lives
//
// A node renews what it holds four times per lease time (24 h). A dead node's
// subnet stays its own. Only when no other is free, and its owner has neither
// been there nor renewed it for the lease time, does a newcomer claim it, with
// the next gen; a person may do the same by evicting the owner. An owner that is
// there after all refutes a claim that is still tentative by raising its own gen
// above it, and yields to a held one, also to one that it has refuted too late.
//
// Each record carries the time at which it is void, eight lease times after it
// was renewed or released; a tentative claim's is a day. Void records are
// dropped, and not taken in: so an old copy of a record brings nothing back, and
// what is left of nodes that are gone for good goes away by itself. See life.go.
//
// This needs a time that nodes agree on. The cluster's time is what more than
// half of its live nodes' clocks show, else their upper median; a newcomer takes
// it from the node that it merges with first. When a node's idea of it jumps,
// nothing is void for a minute, in which everybody renews. See clock.go.
//
// # Identities
//
// A peer is a NodeID at its highest boot. Two machines made from one image have
// one NodeID: of two that are alive at two addresses the one with the later boot
// ends with ErrCloned, and has another identity when it starts again.
//
// # Spreading
//
// A changed record goes out by gossip, encoded as it stands when it is sent. A
// digest of each of 32 shares of the records travels in every answer to a ping,
// with for how long the share has not changed. Where two nodes differ in a share
// that neither has seen change for a while, one has missed something, and they
// merge in full (digest.go). Seeds, remembered peers and members that died are
// dialled for ever, since memberlist itself never calls anybody again.
//
// # Layers
//
// The leaser, the elector and the store are deterministic: no I/O, no clock, no
// goroutine. A [Member] drives them from one goroutine, which works off what
// memberlist's callbacks put into its inbox, and gives out immutable Views.
package membership
