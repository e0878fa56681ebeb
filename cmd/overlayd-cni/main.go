// Command overlayd-cni is a CNI plugin: it attaches containers to this host's
// subnet of the overlay. It reads subnet.env from the run directory of a running
// overlayd and hands the work to the stock plugins bridge and host-local.
//
// A runtime runs it by the CNI protocol (spec 0.3.1 to 1.1.0); see "Containers by
// CNI" in the README for the network configuration. "overlayd-cni install" puts it where
// runtimes look for it.
package main

import (
	"os"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/overlayd/overlayd"
)

// spec are the versions of the CNI specification that the plugin speaks. Results
// of versions before 0.3.0 cannot hold several addresses.
var spec = version.VersionsStartingFrom("0.3.1")

func main() {
	if len(os.Args) > 1 {
		os.Exit(installing(os.Args[1:], os.Stderr))
	}
	p := &plugin{
		exec:   &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}},
		stdout: os.Stdout,
		alive:  alive,
		clear:  clearBridge,
	}
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add: p.add, Del: p.del, Check: p.check, GC: p.gc, Status: p.status,
	}, spec, "CNI plugin overlayd-cni "+overlayd.BuildVersion())
}
