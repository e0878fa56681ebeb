// Package e2e tests overlayd as its users have it: daemons that are processes
// of their own, on the hosts of a lab, with containers behind a bridge. The
// package itself is empty.
//
// The tests need root and /dev/net/tun and skip themselves without. They build
// the daemon once, stripped and without cgo, as it is released; with
// E2E_OVERLAYD set they take the program at that path instead, for example one
// that was built with the race detector (with GORACE=atexit_sleep_ms=0, or it
// stops too late), which is too slow and too large for TestConnectivity alone.
//
// TestIperf and TestUnderlayCapture run iperf3 and tshark, and are skipped where
// those are missing.
//
// Labs are independent of each other, so most tests run in parallel: what they
// spend is mostly the time that a new lease takes to spread. Those that measure
// or load the machine run before the others.
package e2e
