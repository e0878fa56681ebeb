// Command overlayd runs a node of an overlay network and talks to one that
// runs.
package main

import "os"

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr, os.Environ()))
}
