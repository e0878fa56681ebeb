// Embed runs a node inside of a program and prints what happens to it:
//
//	go build ./examples/embed
//	sudo ./embed -interface eth0                      on the first host
//	sudo ./embed -interface eth0 -join FIRST-HOST     on every other one
//
// The node makes a TUN device, which takes root (CAP_NET_ADMIN). See
// examples/own-device for a node that takes no privilege.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/overlayd/overlayd"
)

func main() {
	network := flag.String("network", "100.96.0.0/16", "overlay network, the same on every host")
	iface := flag.String("interface", "", "interface by which the hosts reach each other")
	join := flag.String("join", "", "hosts to join by, separated by commas; none: this is the first")
	state := flag.String("state", "/var/lib/overlayd-embed", "directory for identity and lease")
	name := flag.String("name", "", "name of this node (default the host name)")
	flag.Parse()

	prefix, err := netip.ParsePrefix(*network)
	if err != nil {
		log.Fatal(err)
	}
	cfg := overlayd.Config{
		Networks:  []netip.Prefix{prefix},
		Interface: *iface,
		Name:      *name,
		StateDir:  *state,
		Device:    "overlay-embed",
		// The library itself never prints. Leave the logger out to hear nothing.
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	if *join != "" {
		cfg.Join = strings.Split(*join, ",")
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, cfg, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// run runs a node until ctx ends or the node stops by itself.
func run(ctx context.Context, cfg overlayd.Config, out io.Writer) error {
	// New checks the configuration and touches nothing.
	node, err := overlayd.New(cfg)
	if err != nil {
		return err
	}
	// The channel is closed when the node has stopped. Subscribed to before the
	// start, it misses nothing.
	events := node.Events(context.Background())

	// Start returns when the node runs. A subnet comes a little later: at once
	// on the first host, after some seconds on a new one that joins.
	if err := node.Start(ctx); err != nil {
		return err
	}
	// Stop takes down everything that the node has made. It may be called at
	// any time and more than once.
	stopWhenDone := context.AfterFunc(ctx, func() { node.Stop() })
	defer stopWhenDone()

	for e := range events {
		switch e.Kind {
		case overlayd.EventLeaseHeld:
			// Status is a picture of the node and its peers at this moment.
			fmt.Fprintf(out, "this host has the subnet %v, with an MTU of %d\n", e.Prefix, node.Status().Node.MTU)
		case overlayd.EventLeaseLost:
			fmt.Fprintf(out, "this host has lost the subnet %v: %s\n", e.Prefix, e.Reason)
		case overlayd.EventPeerUp:
			fmt.Fprintf(out, "%s is reachable\n", e.Peer)
		case overlayd.EventPeerDown:
			fmt.Fprintf(out, "%s is not reachable: %s\n", e.Peer, e.Reason)
		case overlayd.EventWarning:
			fmt.Fprintf(out, "warning: %s\n", e.Reason)
		}
	}

	// Wait tells why the node has ended: nil if somebody asked for it.
	return node.Wait()
}
