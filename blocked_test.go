package overlayd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/internal/probe"
	"github.com/overlayd/overlayd/membership"
)

// halfNode gossips, holds a subnet and answers probes, if it may.
type halfNode struct {
	member *membership.Member
	silent atomic.Bool // what comes to its data port is dropped
}

func startHalfNode(t *testing.T, i int, seed netip.Addr) *halfNode {
	t.Helper()
	h := &halfNode{}
	addr := testAddr(i)
	var err error
	h.member, err = membership.New(membership.Config{
		StateDir: t.TempDir(), Name: fmt.Sprintf("half%d", i),
		Settings: membership.Settings{Networks: prefixes("100.96.0.0/16", "fd96::/48"), SubnetLens: []int{24, 64}, LeaseTime: DefaultLeaseTime},
		Gossip:   netip.AddrPortFrom(addr, testGossipPort), Seeds: []string{netip.AddrPortFrom(seed, testGossipPort).String()},
		Addrs: []netip.Addr{addr}, Ports: membership.Ports{UDP: testUDPPort}, Caps: membership.CapUDP, MTU: 1300,
		Spread: 500 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.member.Stop(context.Background()) })
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, testUDPPort)))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.member.Start(); err != nil {
		t.Fatal(err)
	}
	prober := probe.New(probe.Config{Self: h.member.ID(), Boot: h.member.Boot(), Send: func(b []byte, _ [16]byte, to netip.AddrPort) error {
		_, err := conn.WriteToUDPAddrPort(b, to)
		return err
	}})
	running, halt := context.WithCancel(context.Background())
	done := make(chan struct{}, 3)
	t.Cleanup(func() {
		halt()
		conn.Close()
		for range 3 {
			<-done
		}
	})
	go func() { prober.Run(running); done <- struct{}{} }()
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			select {
			case <-h.member.Changed():
				var peers []probe.Peer
				for _, p := range h.member.View().Peers {
					if len(p.Addrs) > 0 {
						peers = append(peers, probe.Peer{ID: p.ID, Boot: p.Boot, Endpoint: netip.AddrPortFrom(p.Addrs[0], p.Ports.UDP)})
					}
				}
				prober.SetPeers(peers)
			case <-running.Done():
				return
			}
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		b := make([]byte, 65535)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if !h.silent.Load() {
				prober.Handle(b[:n], encap.Userspace, from)
			}
		}
	}()
	return h
}

// TestBlockedDataPort: gossip lives while data does not arrive.
func TestBlockedDataPort(t *testing.T) {
	check := nothingLeft(t)
	t.Run("mesh", func(t *testing.T) {
		m := startMesh(t, 1, nil)[0]
		h := startHalfNode(t, 2, testAddr(1))
		m.knows(t, "half2")
		m.await(t, "half2 up", peerEvent(EventPeerUp, "half2"))
		if got := m.peerStatus(t, "half2"); got.MTU != 1300 {
			t.Errorf("MTU %d, the smaller of both is 1300", got.MTU)
		}
		dst := m.peerStatus(t, "half2").Subnets[0].Addr().Next()

		h.silent.Store(true)
		blocked := time.Now()
		down := m.await(t, "half2 down", peerEvent(EventPeerDown, "half2"))
		if took := time.Since(blocked); took > 10*time.Second {
			t.Errorf("noticed after %v", took)
		}
		p := m.peerStatus(t, "half2")
		if p.State != "alive" || p.Path != PathNone || p.PathReason != down.Reason || !strings.Contains(p.PathReason, "unanswered") ||
			!strings.Contains(p.PathReason, p.Endpoint) || p.PathSince.Before(blocked) || p.LastProofMS == nil || len(p.Subnets) != 2 {
			t.Errorf("event %+v, status %+v", down, p)
		}
		m.dev.Inject(udpPacket(t, m.host(0, 10), dst, "x"))
		expectUnreachable(t, m, 0, m.host(0, 10), dst)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := m.Ping(ctx, "half2")
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ping: %v", err)
		}
		oneLine(t, err, "half2", p.Endpoint+"/udp")

		h.silent.Store(false)
		m.seen = nil
		m.await(t, "half2 up again", peerEvent(EventPeerUp, "half2"))
		if p := m.peerStatus(t, "half2"); p.Path != PathUserspaceUDP {
			t.Errorf("status %+v", p)
		}
	})
	check()
}
