package overlayd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket/pcapgo"

	"github.com/overlayd/overlayd/internal/control"
)

// lockedBuffer is written by a capture while the test reads it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// packets reads what is there.
func (l *lockedBuffer) packets(t *testing.T) (inner, outer []string) {
	t.Helper()
	l.mu.Lock()
	b := bytes.Clone(l.b.Bytes())
	l.mu.Unlock()
	if len(b) == 0 {
		return nil, nil
	}
	r, err := pcapgo.NewNgReader(bytes.NewReader(b), pcapgo.NgReaderOptions{WantMixedLinkType: true})
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, ci, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return inner, outer
		}
		if err != nil {
			t.Fatal(err)
		}
		if ci.InterfaceIndex == 0 {
			inner = append(inner, string(data))
		} else {
			outer = append(outer, string(data))
		}
	}
}

// TestCapture: over the control socket, of one peer, while another sends as well.
func TestCapture(t *testing.T) {
	check := nothingLeft(t)
	nodes := startMesh(t, 3, func(i int, cfg *Config) {
		if i == 1 {
			cfg.RunDir = t.TempDir()
		}
	})
	a, b, c := nodes[0], nodes[1], nodes[2]
	a.knows(t, "node2", "node3")
	client, err := Dial(a.cfg.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var file lockedBuffer
	ended := make(chan error, 1)
	go func() { ended <- client.Capture(ctx, CaptureConfig{Peer: "node2", Path: PathUserspaceUDP}, &file) }()
	waitFor(t, "the capture to begin", func() bool { file.mu.Lock(); defer file.mu.Unlock(); return file.b.Len() > 0 })
	there, back, other := udpPacket(t, a.host(0, 10), b.host(0, 20), "there"), udpPacket(t, b.host(1, 20), a.host(1, 10), "back"), udpPacket(t, a.host(0, 10), c.host(0, 20), "to another")
	for _, p := range []struct {
		from, to *meshNode
		b        []byte
	}{{a, b, there}, {a, c, other}, {b, a, back}} {
		if err := p.from.dev.Inject(p.b); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, p.to.dev); !bytes.Equal(got, p.b) {
			t.Fatalf("got %x", got)
		}
	}
	waitFor(t, "both packets, inner and outer", func() bool {
		inner, outer := file.packets(t)
		all := strings.Join(outer, "")
		return len(inner) == 2 && inner[0] == string(there) && inner[1] == string(back) && strings.Contains(all, string(there)) && strings.Contains(all, string(back))
	})
	if _, outer := file.packets(t); strings.Contains(strings.Join(outer, ""), "to another") {
		t.Error("another peer's packet is captured")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("a capture that was ended: %v", err)
	}

	for want, cfg := range map[string]CaptureConfig{
		`"nobody" is neither the name nor the id`: {Peer: "nobody"},
		"kernel-vxlan does not pass overlayd":     {Path: PathKernelVXLAN},
		`path "x" is not one of userspace`:        {Path: "x"},
	} {
		if err := client.Capture(t.Context(), cfg, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
	var remote *control.Error
	if err := client.c.Stream(t.Context(), "/v1/capture", map[string][]string{"max_bytes": {"x"}}, io.Discard); !errors.As(err, &remote) || remote.Code != control.CodeRequest {
		t.Errorf("max_bytes: %v", err)
	}

	// A few at once, whose end is the node's.
	for range 4 {
		var w lockedBuffer
		go func() {
			_, err := a.Capture(t.Context(), CaptureConfig{}, &w)
			ended <- err
		}()
		waitFor(t, "another capture to begin", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.b.Len() > 0 })
	}
	if _, err := a.Capture(t.Context(), CaptureConfig{}, io.Discard); !errors.Is(err, ErrBusy) {
		t.Errorf("one more: %v", err)
	}
	for _, m := range nodes {
		within(t, 10*time.Second, "stopping", func() {
			if err := m.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
	for range 4 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if _, err := a.Capture(t.Context(), CaptureConfig{}, io.Discard); !errors.Is(err, ErrNotStarted) {
		t.Errorf("of a stopped node: %v", err)
	}
	check()
}

// TestCaptureMaxBytes: it ends by itself.
func TestCaptureMaxBytes(t *testing.T) {
	cfg := testConfig(t, 1)
	cfg.RunDir = t.TempDir()
	n := startNode(t, cfg)
	awaitReady(t, n)
	client, err := Dial(cfg.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	var file lockedBuffer
	ended := make(chan error, 1)
	go func() { ended <- client.Capture(t.Context(), CaptureConfig{MaxBytes: 2500}, &file) }()
	p := udpPacket(t, n.Status().Node.Subnets[0].Addr().Next(), n.Status().Node.Subnets[0].Addr(), strings.Repeat("x", 500))
	waitFor(t, "its end", func() bool {
		_ = cfg.Tunnel.(interface{ Inject([]byte) error }).Inject(p) // to nobody: dropped
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
			return true
		default:
			return false
		}
	})
	if inner, _ := file.packets(t); len(inner) < 3 || len(inner) > 4 || file.b.Len() > 2500 {
		t.Errorf("%d packets in %d bytes", len(inner), file.b.Len())
	}
}
