package forward

import "testing"

func TestChecksumErrors(t *testing.T) {
	const snmp = "Ip: Forwarding DefaultTTL\nIp: 1 64\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors\nUdp: 1 2 3 4 5 6 7 8 9\nUdpLite: InDatagrams InCsumErrors\nUdpLite: 10 11\n"
	const snmp6 = "Udp6InDatagrams                 \t1\nUdp6InCsumErrors                \t12\nUdpLite6InCsumErrors            \t13\n"
	if n := snmpCounter([]byte(snmp), "Udp:", "InCsumErrors"); n != 7 {
		t.Errorf("IPv4: %d", n)
	}
	if n := snmp6Counter([]byte(snmp6), "Udp6InCsumErrors"); n != 12 {
		t.Errorf("IPv6: %d", n)
	}
	for _, b := range []string{"", "Udp: InCsumErrors\n", "Udp: A InCsumErrors\nUdp: 1\n", "Udp: InCsumErrors\nUdp: x\n", "\n\n"} {
		if n := snmpCounter([]byte(b), "Udp:", "InCsumErrors") + snmp6Counter([]byte(b), "Udp6InCsumErrors"); n != 0 {
			t.Errorf("%q: %d", b, n)
		}
	}
	// It only rises.
	a, ok := checksumErrors()
	if b, _ := checksumErrors(); b < a || !ok {
		t.Errorf("%d (%v), then %d", a, ok, b)
	}
}
