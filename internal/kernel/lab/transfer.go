package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
)

// ErrCorrupt means that a transfer arrived with another hash than it was sent.
var ErrCorrupt = errors.New("lab: received bytes differ from those sent")

// TransferConfig describes a transfer of random bytes over TCP.
type TransferConfig struct {
	From, To *Namespace
	// Dst is the address of To that the connection goes to.
	Dst netip.Addr
	// Bytes is how much is sent. Zero: 1 MiB.
	Bytes int64
}

// TransferResult is what came of a transfer.
type TransferResult struct {
	Bytes          int64         // received
	Duration       time.Duration // from the first byte sent to the last one received
	SentSHA256     [sha256.Size]byte
	ReceivedSHA256 [sha256.Size]byte
}

// BitsPerSecond is the goodput.
func (r TransferResult) BitsPerSecond() float64 {
	if r.Duration <= 0 {
		return 0
	}
	return float64(r.Bytes) * 8 / r.Duration.Seconds()
}

// Transfer opens a TCP connection from one namespace to another, sends random
// bytes and compares their SHA-256 at both ends. The error is [ErrCorrupt] if
// they differ. It runs until ctx ends at the longest.
func Transfer(ctx context.Context, cfg TransferConfig) (TransferResult, error) {
	res, err := transfer(ctx, cfg)
	if err != nil {
		return res, fmt.Errorf("lab: transfer from %s to %s (%v): %w", cfg.From, cfg.To, cfg.Dst, err)
	}
	return res, nil
}

func transfer(ctx context.Context, cfg TransferConfig) (res TransferResult, err error) {
	if cfg.Bytes == 0 {
		cfg.Bytes = 1 << 20
	}
	ln, err := cfg.To.Listen(netip.AddrPortFrom(cfg.Dst, 0))
	if err != nil {
		return res, err
	}
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()

	type received struct {
		n   int64
		sum [sha256.Size]byte
		end time.Time
		err error
	}
	got := make(chan received, 1)
	go func() {
		var r received
		r.n, r.sum, r.err = receive(ctx, ln)
		r.end = time.Now()
		got <- r
	}()

	conn, err := cfg.From.Dial(ctx, "tcp", ln.Addr().(*net.TCPAddr).AddrPort())
	if err != nil {
		ln.Close()
		<-got
		return res, cause(ctx, err)
	}
	begin := time.Now()
	res.SentSHA256, err = send(ctx, conn.(*net.TCPConn), cfg.Bytes)
	if err != nil {
		conn.Close()
		ln.Close()
		<-got
		return res, cause(ctx, err)
	}
	r := <-got
	conn.Close()
	res.Bytes, res.Duration, res.ReceivedSHA256 = r.n, r.end.Sub(begin), r.sum
	switch {
	case r.err != nil:
		return res, cause(ctx, r.err)
	case r.n != cfg.Bytes || r.sum != res.SentSHA256:
		return res, fmt.Errorf("%w: %d of %d bytes", ErrCorrupt, r.n, cfg.Bytes)
	}
	return res, nil
}

// cause prefers the reason why ctx ended over what that broke.
func cause(ctx context.Context, err error) error {
	// A dial watches the deadline by itself and may notice a moment earlier.
	if d, ok := ctx.Deadline(); ok && !time.Now().Before(d) {
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// send writes random bytes, hashes them, and ends the stream.
func send(ctx context.Context, conn *net.TCPConn, n int64) (sum [sha256.Size]byte, err error) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rand.Uint32())
	}
	h := sha256.New()
	src := io.LimitReader(rand.NewChaCha8(seed), n)
	if err := pump(conn, src, h); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), conn.CloseWrite()
}

// receive takes one connection and hashes what comes until its end.
func receive(ctx context.Context, ln *net.TCPListener) (n int64, sum [sha256.Size]byte, err error) {
	conn, err := ln.Accept()
	if err != nil {
		return 0, sum, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	h := sha256.New()
	n, err = io.CopyBuffer(h, onlyReader{conn}, make([]byte, 256<<10))
	return n, [sha256.Size]byte(h.Sum(nil)), err
}

// onlyReader hides the other methods of a connection from io.Copy.
type onlyReader struct{ io.Reader }

func pump(w io.Writer, r io.Reader, h hash.Hash) error {
	buf := make([]byte, 256<<10)
	for {
		n, err := io.ReadFull(r, buf)
		h.Write(buf[:n])
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
