package tunneltest

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/overlayd/overlayd/tunnel"
)

// One goroutine may call Read while another calls Write.
func testDuplex(t *testing.T, e *ends) {
	const n, size = 500, 300
	// No more than a queue's worth is under way in either direction.
	window := make(chan struct{}, 16)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for id := range uint32(n) {
			select {
			case window <- struct{}{}:
			case <-stop:
				return
			}
			e.inject(packet(id, size))
		}
	})
	// The device's owner sends every packet back, from another goroutine.
	turn := make(chan []byte, n)
	wg.Go(func() {
		defer close(turn)
		for got := 0; got < n; {
			pkts := batch(e.dev.Features().ReadBatch, size)
			k, err := e.dev.Read(pkts)
			if err != nil {
				t.Errorf("Read: %v", err)
				return
			}
			for i := range pkts[:k] {
				if isOwn(pkts[i].Data) {
					turn <- pkts[i].Data
					got++
				}
			}
		}
	})
	wg.Go(func() {
		for p := range turn {
			if k, err := e.dev.Write([]tunnel.Packet{{Data: p}}); k != 1 || err != nil {
				t.Errorf("Write = %d, %v", k, err)
				return
			}
		}
	})
	for id := range uint32(n) {
		var p []byte
		for p == nil || !isOwn(p) {
			if p = e.receive(); p == nil {
				t.Errorf("packet %d has not come back", id)
				close(stop)
				e.dev.Close()
				wg.Wait()
				return
			}
		}
		wantPacket(t, "packet that went in and out", p, packet(id, size))
		<-window
	}
	wg.Wait()
}

// Close wakes a Read that waits.
func testCloseWakesRead(t *testing.T, e *ends) {
	size := e.dev.Features().MaxPacket
	c := make(chan result, 1)
	started := make(chan struct{})
	go func() {
		pkts := batch(1, size)
		close(started)
		for {
			n, err := e.dev.Read(pkts)
			if err == nil && n == 1 && !isOwn(pkts[0].Data) {
				pkts = batch(1, size)
				continue
			}
			c <- result{n, err}
			return
		}
	}()
	<-started
	select { // let it come to wait
	case r := <-c:
		t.Fatalf("Read = %d, %v; want it to wait", r.n, r.err)
	case <-time.After(20 * time.Millisecond):
	}
	if err := e.dev.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	wantClosed(t, "Read", wait(t, c))
}

// After Close, Read and Write say so, always.
func testCloseEnds(t *testing.T, e *ends) {
	e.inject(packet(0, 100)) // what waits is not read any more
	if err := e.dev.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	for range 3 {
		wantClosed(t, "Read", wait(t, e.start(batch(2, e.dev.Features().MaxPacket))))
		n, err := e.dev.Write([]tunnel.Packet{{Data: packet(1, 100)}})
		wantClosed(t, "Write", result{n, err})
	}
}

// Close may be called by anyone, more than once.
func testCloseTwice(t *testing.T, e *ends) {
	const n = 4
	errs := make(chan error, n+1)
	for range n {
		go func() { errs <- e.dev.Close() }()
	}
	for range n {
		select {
		case err := <-errs:
			if err != nil {
				t.Errorf("Close: %v", err)
			}
		case <-time.After(timeout(t)):
			t.Fatal("Close does not return")
		}
	}
	if err := e.dev.Close(); err != nil {
		t.Errorf("Close once more: %v", err)
	}
}

// Close may be called at any time, also while Read and Write are busy.
func testCloseAnytime(t *testing.T, e *ends) {
	size := e.dev.Features().MaxPacket
	for id := range uint32(32) {
		e.inject(packet(id, 100))
	}
	ends := make(chan error, 2)
	busy := make(chan struct{}, 2)
	go func() {
		for i := 0; ; i++ {
			if i == 2 {
				busy <- struct{}{}
			}
			if _, err := e.dev.Read(batch(1, size)); err != nil {
				ends <- err
				return
			}
		}
	}()
	go func() {
		for i := 0; ; i++ {
			if i == 2 {
				busy <- struct{}{}
			}
			if _, err := e.dev.Write([]tunnel.Packet{{Data: packet(0, 100)}, {Data: packet(1, 100)}}); err != nil {
				ends <- err
				return
			}
		}
	}()
	for range 2 {
		select {
		case <-busy:
		case err := <-ends:
			t.Fatalf("before Close: %v", err)
		case <-time.After(timeout(t)):
			t.Fatal("Read and Write do nothing")
		}
	}
	if err := e.dev.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	for range 2 {
		select {
		case err := <-ends:
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("Read or Write ended with %v; want os.ErrClosed", err)
			}
		case <-time.After(timeout(t)):
			t.Fatal("Read or Write goes on after Close")
		}
	}
}
