package forward

import (
	"bytes"
	"errors"
	"os"
	"strconv"
)

// checksumErrors is how many datagrams this network namespace has dropped for their
// UDP checksum since it began: Udp InCsumErrors and Udp6InCsumErrors (proc(5),
// linux/net/ipv4/proc.c, linux/net/ipv6/proc.c). ok is false where that cannot be told.
func checksumErrors() (n uint64, ok bool) {
	four, err4 := os.ReadFile("/proc/thread-self/net/snmp")
	six, err6 := os.ReadFile("/proc/thread-self/net/snmp6")
	return snmpCounter(four, "Udp:", "InCsumErrors") + snmp6Counter(six, "Udp6InCsumErrors"), err4 == nil && (err6 == nil || errors.Is(err6, os.ErrNotExist))
}

// snmpCounter reads /proc/net/snmp, where a line of values follows a line of names.
func snmpCounter(b []byte, group, name string) uint64 {
	var names [][]byte
	for line := range bytes.Lines(b) {
		fields := bytes.Fields(line)
		if len(fields) == 0 || string(fields[0]) != group {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, n := range names {
			if string(n) == name && i < len(fields) {
				v, _ := strconv.ParseUint(string(fields[i]), 10, 64)
				return v
			}
		}
	}
	return 0
}

// snmp6Counter reads /proc/net/snmp6, which has a name and a value in each line.
func snmp6Counter(b []byte, name string) uint64 {
	for line := range bytes.Lines(b) {
		if f := bytes.Fields(line); len(f) == 2 && string(f[0]) == name {
			v, _ := strconv.ParseUint(string(f[1]), 10, 64)
			return v
		}
	}
	return 0
}
