package tunnel

// Stats counts packets that a device has dropped itself, since it was opened.
// What the kernel drops in front of or behind a TUN is in the interface's own
// counters: tx_dropped when the queue that Read empties was full.
type Stats struct {
	// TooLong counts packets that Read dropped because they were longer than
	// their buffer, or than Features.MaxPacket.
	TooLong uint64
	// ReadFull counts packets lost before Read because the device's own queue
	// was full.
	ReadFull uint64
	// WriteFull counts packets that Write consumed and lost because the
	// device's own queue was full.
	WriteFull uint64
}

// StatsReader is what a [Device] implements as well when it counts the packets
// that it drops itself. The devices of this package do.
type StatsReader interface {
	// Stats may be called at any time, by anyone, also after Close.
	Stats() Stats
}
