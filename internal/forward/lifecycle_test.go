package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/tunnel"
)

func TestNewRefuses(t *testing.T) {
	dev := tunnel.NewMemory(tunnel.MemoryConfig{})
	c4, d4 := listen(t, "127.0.0.1"), listen(t, "127.0.0.1")
	good := Config{Device: dev, Codec: encap.UDP{}, Conns: []*net.UDPConn{c4}, MTU: 1400}
	for name, change := range map[string]func(*Config){
		"no device":     func(c *Config) { c.Device = nil },
		"no codec":      func(c *Config) { c.Codec = nil },
		"no socket":     func(c *Config) { c.Conns = nil },
		"nil socket":    func(c *Config) { c.Conns = []*net.UDPConn{nil} },
		"two of a kind": func(c *Config) { c.Conns = []*net.UDPConn{c4, d4} },
		"mtu too small": func(c *Config) { c.MTU = 67 },
		"mtu too large": func(c *Config) { c.MTU = 65536 },
		"no packets":    func(c *Config) { c.Device = &stubDevice{} },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
}

func TestRunEnds(t *testing.T) {
	start := func(t *testing.T) (*side, context.CancelFunc, chan error) {
		s := newSides(t, encap.UDP{}, false, [2]func([]byte, netip.AddrPort){})[0]
		ctx, cancel := context.WithCancel(deadline(t))
		done := make(chan error, 1)
		go func() { done <- s.engine.Run(ctx) }()
		// It runs once it answers.
		buf := make([]byte, 2000)
		if err := s.dev.Inject(innerFrom("100.96.1.9", "100.96.77.1", 100)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.dev.Receive(ctx, buf); err != nil {
			t.Fatal(err)
		}
		return s, cancel, done
	}
	t.Run("by its context", func(t *testing.T) {
		s, cancel, done := start(t)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := s.dev.Inject(innerFrom("100.96.1.9", "100.96.2.1", 40)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("the device is not closed: %v", err)
		}
		for _, c := range s.conns {
			if err := c.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("socket %v was not closed: %v", c.LocalAddr(), err)
			}
		}
		if err := s.engine.Run(context.Background()); !errors.Is(err, ErrStarted) {
			t.Errorf("second Run: %v", err)
		}
	})
	t.Run("by a closed device", func(t *testing.T) {
		s, cancel, done := start(t)
		defer cancel()
		s.dev.Close()
		if err := <-done; !errors.Is(err, ErrDevice) || !errors.Is(err, os.ErrClosed) {
			t.Errorf("Run: %v", err)
		}
	})
	t.Run("by a closed socket", func(t *testing.T) {
		s, cancel, done := start(t)
		defer cancel()
		waitFor(t, func() bool { return s.engine.running[1].Load() != nil })
		s.conns[1].Close() // it is the engine's, so that this does nothing
		(*s.engine.running[1].Load()).close()
		if err := <-done; !errors.Is(err, ErrSocket) || !errors.Is(err, net.ErrClosed) {
			t.Errorf("Run: %v", err)
		}
	})
	t.Run("before it began", func(t *testing.T) {
		s := newSides(t, encap.UDP{}, false, [2]func([]byte, netip.AddrPort){})[0]
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.engine.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// failingDevice fails to read as often as told before each packet.
type failingDevice struct {
	*tunnel.Memory
	failures int
	err      error
	failed   int
}

func (d *failingDevice) Read(pkts []tunnel.Packet) (int, error) {
	if d.failed < d.failures {
		d.failed++
		return 0, d.err
	}
	d.failed = 0
	return d.Memory.Read(pkts[:1])
}

// TestDeviceErrors: single errors are counted, many in a row end Run.
func TestDeviceErrors(t *testing.T) {
	odd := errors.New("file descriptor in bad state")
	for _, tt := range []struct {
		failures int
		err      error
		fatal    error
	}{
		{maxDeviceErrors - 1, odd, nil},
		{maxDeviceErrors, odd, odd},
		{maxDeviceErrors - 1, nil, nil},
		{maxDeviceErrors, nil, io.ErrNoProgress},
	} {
		dev := &failingDevice{Memory: tunnel.NewMemory(tunnel.MemoryConfig{}), failures: tt.failures, err: tt.err}
		e, err := New(Config{Device: dev, Codec: encap.UDP{}, Conns: []*net.UDPConn{listen(t, "127.0.0.1")}, MTU: 1400})
		if err != nil {
			t.Fatal(err)
		}
		const packets = 3
		for range packets {
			if err := dev.Inject(innerFrom("100.96.1.9", "100.96.77.1", 100)); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(deadline(t))
		done := make(chan error, 1)
		go func() { done <- e.Run(ctx) }()
		if tt.fatal == nil {
			// Once more after the last packet, before Read waits.
			want := uint64((packets + 1) * tt.failures)
			waitFor(t, func() bool { return e.Drops().Count(TxDeviceError) == want })
			if n := e.Drops().Count(TxOutsideNetwork); n != packets {
				t.Errorf("%d packets were read, want %d", n, packets)
			}
			cancel()
		}
		err = <-done
		cancel()
		if tt.fatal == nil && err != nil || tt.fatal != nil && (!errors.Is(err, tt.fatal) || !errors.Is(err, ErrDevice)) {
			t.Errorf("%d failures: Run: %v", tt.failures, err)
		}
		if n := e.Drops().Count(TxDeviceError); tt.fatal != nil && n != maxDeviceErrors-1 {
			t.Errorf("%d failures: tx_device_error = %d", tt.failures, n)
		}
	}
}
