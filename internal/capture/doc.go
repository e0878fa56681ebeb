// Package capture writes what passes the packet path into a file that Wireshark
// reads: inner packets and datagrams of the underlay, in two interfaces, with the
// reason in a comment where one is dropped.
//
//	loops --Saw--> bounded queue --Run--> pcapng
//
// Saw copies and never waits: what finds no room is counted as missed, and the count
// stands in the file.
package capture
