package lab_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

func TestFinishChecksums(t *testing.T) {
	_, _, hosts := labtest.Hosts(t, 2)
	a, b := hosts[0], hosts[1]
	// transfer sends TCP and tells how many of the segments that a sent are as they
	// would be on a wire.
	transfer := func(dst netip.Addr) (good, bad int) {
		c, err := a.Capture("eth0", nil)
		must(t, err)
		defer c.Stop()
		_, err = lab.Transfer(deadline(t, 20*time.Second), lab.TransferConfig{From: a.Namespace, To: b.Namespace, Dst: dst})
		must(t, err)
		c.Stop()
		for _, p := range c.Packets() {
			pkt := gopacket.NewPacket(p.Data, layers.LayerTypeEthernet, gopacket.NoCopy)
			tcp, ok := pkt.TransportLayer().(*layers.TCP)
			if !ok || !p.Outgoing {
				continue
			}
			sum := tcp.Checksum
			must(t, tcp.SetNetworkLayerForChecksum(pkt.NetworkLayer()))
			out := gopacket.NewSerializeBuffer()
			must(t, gopacket.SerializeLayers(out, gopacket.SerializeOptions{ComputeChecksums: true}, tcp, gopacket.Payload(tcp.Payload)))
			if tcp.Checksum == sum && len(p.Data) <= 1514 {
				good++
			} else {
				bad++
			}
		}
		return good, bad
	}
	for _, dst := range []netip.Addr{b.Addr4(), b.Addr6()} {
		// The counter-check: a veth left alone shows something else.
		if good, bad := transfer(dst); bad == 0 {
			t.Errorf("to %v with the offload: %d segments, all finished", dst, good)
		}
	}
	must(t, a.FinishChecksums("eth0"))
	for _, dst := range []netip.Addr{b.Addr4(), b.Addr6()} {
		if good, bad := transfer(dst); good < 700 || bad > 0 { // 1 MiB
			t.Errorf("to %v without the offload: %d segments are finished, %d are not", dst, good, bad)
		}
	}
	for _, iface := range []string{"eth9", "a-name-far-too-long"} {
		if err := a.FinishChecksums(iface); err == nil {
			t.Errorf("there is no %s", iface)
		}
	}
}
