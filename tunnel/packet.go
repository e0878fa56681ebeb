package tunnel

// maxIP is the longest packet: IPv4's total length is 16 bits wide (RFC 791,
// section 3.1), and the kernel's superpackets keep to it.
const maxIP = 65535

// isIP tells whether p, n bytes in all its pieces, can be an IP packet.
func isIP(p *Packet, n int) bool {
	if len(p.Data) == 0 || n > maxIP {
		return false
	}
	v := p.Data[0] >> 4
	return v == 4 || v == 6
}

// size is the number of bytes in all pieces of p.
func size(p *Packet) int {
	n := len(p.Data)
	for _, f := range p.Frags {
		n += len(f)
	}
	return n
}
