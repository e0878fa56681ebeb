package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// askLimit is how long Ask waits if its context has no earlier end.
const askLimit = 5 * time.Second

// Ask sends a datagram from one namespace to an address of another, which sends one
// back to where it came from, and returns that source. It is an error if either does not
// arrive; the source is valid if the first has.
func Ask(ctx context.Context, from, to *Namespace, dst netip.AddrPort) (source netip.AddrPort, err error) {
	ear, err := to.ListenUDP(dst)
	if err != nil {
		return source, err
	}
	defer ear.Close()
	conn, err := from.Dial(ctx, "udp", dst)
	if err != nil {
		return source, err
	}
	defer conn.Close()
	limit := time.Now().Add(askLimit)
	if d, ok := ctx.Deadline(); ok && d.Before(limit) {
		limit = d
	}
	if err := errors.Join(conn.SetDeadline(limit), ear.SetDeadline(limit)); err != nil {
		return source, err
	}
	if _, err := conn.Write([]byte("question")); err != nil {
		return source, fmt.Errorf("lab: asking from %s: %w", from, err)
	}
	b := make([]byte, 64)
	_, source, err = ear.ReadFromUDPAddrPort(b)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("lab: a question from %s to %v does not arrive: %w", from, dst, err)
	}
	source = netip.AddrPortFrom(source.Addr().Unmap(), source.Port())
	if _, err := ear.WriteToUDPAddrPort([]byte("answer"), source); err != nil {
		return source, fmt.Errorf("lab: answering to %v: %w", source, err)
	}
	if _, err := conn.Read(b); err != nil {
		return source, fmt.Errorf("lab: the answer from %v to %s, seen as %v, does not arrive: %w", dst, from, source, err)
	}
	return source, nil
}
