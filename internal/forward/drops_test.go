package forward

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestReasonNames holds the names, which are keys of a versioned document.
func TestReasonNames(t *testing.T) {
	var d Drops
	d.Add(RxSpoofedSource, 3)
	d.Add(None, 7)
	want := map[string]uint64{
		"tx_malformed": 0, "tx_multicast": 0, "tx_martian": 0,
		"tx_own_destination": 0, "tx_outside_network": 0, "tx_no_owner": 0, "tx_peer_down": 0,
		"tx_no_socket": 0, "tx_too_big": 0, "tx_socket_too_big": 0, "tx_socket_no_buffers": 0,
		"tx_socket_refused": 0, "tx_socket_unreachable": 0, "tx_socket_error": 0, "tx_device_error": 0,
		"tx_icmp_not_sent": 0,
		"rx_socket_full":   0, "rx_checksum": 0, "rx_oversized": 0, "rx_unknown_source": 0, "rx_malformed_frame": 0, "rx_malformed": 0,
		"rx_vxlan_reserved": 0, "rx_unknown_vni": 0, "rx_unknown_mac": 0, "rx_unknown_ethertype": 0,
		"rx_multicast": 0, "rx_martian": 0, "rx_spoofed_source": 3, "rx_wrong_destination": 0,
		"rx_device_refused": 0, "rx_ecn": 0, "rx_icmp_not_believed": 0, "rx_socket_error": 0,
	}
	if diff := cmp.Diff(want, d.Snapshot()); diff != "" {
		t.Errorf("snapshot (-want +got):\n%s", diff)
	}
	for r := range reasonCount {
		if r.String() == "" {
			t.Errorf("reason %d has no name", r)
		}
	}
}

// TestDropLog runs two minutes of drops under a virtual clock.
func TestDropLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
		var d Drops
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); logDrops(ctx, &d, log, func() {}) }()
		lines := func() []string {
			synctest.Wait()
			s := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
			out.Reset()
			for i := range s {
				_, s[i], _ = strings.Cut(s[i], "level=")
			}
			return s
		}
		const msg = ` msg="packets dropped" reason=`

		time.Sleep(time.Second + time.Millisecond) // the bubble's clock
		if got := lines(); len(got) != 1 || got[0] != "" {
			t.Errorf("without drops: %q", got)
		}
		for range 5 {
			d.Add(RxMalformed, 1)
			d.Add(TxMulticast, 2)
		}
		time.Sleep(time.Second)
		want := []string{"DEBUG" + msg + "tx_multicast count=10 total=10", "INFO" + msg + "rx_malformed count=5 total=5"}
		if diff := cmp.Diff(want, lines()); diff != "" {
			t.Errorf("first second (-want +got):\n%s", diff)
		}
		d.Add(RxMalformed, 2)
		time.Sleep(time.Second)
		if diff := cmp.Diff([]string{"DEBUG" + msg + "rx_malformed count=2 total=7"}, lines()); diff != "" {
			t.Errorf("second second (-want +got):\n%s", diff)
		}
		time.Sleep(time.Minute)
		d.Add(RxMalformed, 1)
		time.Sleep(time.Second)
		if diff := cmp.Diff([]string{"INFO" + msg + "rx_malformed count=1 total=8"}, lines()); diff != "" {
			t.Errorf("a minute later (-want +got):\n%s", diff)
		}
		cancel()
		<-done
	})
}
