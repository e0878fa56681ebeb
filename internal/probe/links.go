package probe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/internal/path"
)

// Link is a device of a kernel path, with this node's overlay addresses.
type Link struct {
	Device string
	Kind   path.Kind
	Addrs  []netip.Addr
}

// linkSources is from how many ports probes are sent by each device and family: the
// underlay spreads flows by them, so that a way that only some flows take is tried too.
const linkSources = 8

// LinksConfig describes Links. All fields are required.
type LinksConfig struct {
	// Port is where probes arrive.
	Port uint16
	// In runs f in the network namespace of the devices.
	In func(f func() error) error
	// Handle gets the control frames that arrive, as of Prober.Handle.
	Handle func(b []byte, by encap.Path, from netip.AddrPort)
	// Echoed gets the answers to echoes.
	Echoed func(peer [16]byte, k path.Kind, round uint64)
}

// Links are the sockets for kernel paths: each is bound to a device, so that it
// hears what came by that device alone, and what it sends leaves by no other. They are
// made and replaced by Set. Its methods may be called by any goroutine.
type Links struct {
	cfg    LinksConfig
	secret [8]byte // in our echoes, so that nobody answers what was not asked

	mu     sync.Mutex
	socks  map[linkKey]*linkSocks
	closed bool
	wg     sync.WaitGroup // the readers
}

type linkKey struct {
	device string
	is6    bool
}

// linkSocks are the sockets of a device and an inner family.
type linkSocks struct {
	kind  path.Kind
	index int // of the device: a new one of the same name is another
	addr  netip.Addr
	recv  *net.UDPConn
	send  []*net.UDPConn
	echo  *net.IPConn
	next  int // of send
}

// errNoLink is why nothing can be sent.
var errNoLink = errors.New("no socket on the device")

// NewLinks returns Links without a socket.
func NewLinks(cfg LinksConfig) *Links {
	l := &Links{cfg: cfg, socks: map[linkKey]*linkSocks{}}
	rand.Read(l.secret[:]) // never fails (crypto/rand)
	return l
}

// Set makes the sockets of links, and closes those that are not wanted any more or
// whose device is another now. A device that does not exist has none. It returns the
// first error of those that could not be made; they are tried again by the next Set.
func (l *Links) Set(links []Link) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	return l.cfg.In(func() error {
		var errs error
		stays := map[linkKey]bool{}
		for _, want := range links {
			iface, err := net.InterfaceByName(want.Device)
			if err != nil {
				continue
			}
			for _, a := range want.Addrs {
				key := linkKey{want.Device, a.Is6()}
				if s := l.socks[key]; s != nil && s.index == iface.Index && s.addr == a && s.kind == want.Kind {
					stays[key] = true
					continue
				}
				l.drop(key)
				s, err := l.open(want, iface.Index, a)
				if err != nil {
					errs = errors.Join(errs, fmt.Errorf("probes of %v by %s: %w", a, want.Device, err))
					continue
				}
				l.socks[key], stays[key] = s, true
			}
		}
		for key := range l.socks {
			if !stays[key] {
				l.drop(key)
			}
		}
		return errs
	})
}

// Send sends a control frame by a device, with DF and from one source port after the
// other.
func (l *Links) Send(device string, b []byte, to netip.AddrPort) error {
	l.mu.Lock()
	s := l.socks[linkKey{device, to.Addr().Is6()}]
	var c *net.UDPConn
	if s != nil {
		s.next = (s.next + 1) % len(s.send)
		c = s.send[s.next]
	}
	l.mu.Unlock()
	if c == nil {
		return errNoLink
	}
	_, err := c.WriteToUDPAddrPort(b, to)
	return err
}

// Echo sends an ICMP echo request by a device.
func (l *Links) Echo(device string, peer [16]byte, to netip.Addr, round uint64) error {
	l.mu.Lock()
	s := l.socks[linkKey{device, to.Is6()}]
	l.mu.Unlock()
	if s == nil || s.echo == nil {
		return errNoLink
	}
	var kind icmp.Type = ipv4.ICMPTypeEcho
	if to.Is6() {
		kind = ipv6.ICMPTypeEchoRequest
	}
	data := append(append([]byte(nil), l.secret[:]...), peer[:]...)
	data = binary.BigEndian.AppendUint64(data, round)
	// Linux fills in ICMPv6's checksum itself (RFC 3542 section 3.1).
	b, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{ID: int(round & 0xffff), Data: data}}).Marshal(nil)
	if err != nil {
		return err
	}
	_, err = s.echo.WriteToIP(b, &net.IPAddr{IP: to.AsSlice()})
	return err
}

// Close closes all sockets and waits for their readers.
func (l *Links) Close() {
	l.mu.Lock()
	l.closed = true
	for key := range l.socks {
		l.drop(key)
	}
	l.mu.Unlock()
	l.wg.Wait()
}

// drop closes sockets. The caller holds l.mu.
func (l *Links) drop(key linkKey) {
	if s := l.socks[key]; s != nil {
		s.close()
		delete(l.socks, key)
	}
}

func (s *linkSocks) close() {
	if s.recv != nil {
		s.recv.Close()
	}
	for _, c := range s.send {
		c.Close()
	}
	if s.echo != nil {
		s.echo.Close()
	}
}

// open makes the sockets of a device and an address, and starts their readers. The
// caller holds l.mu.
func (l *Links) open(want Link, index int, a netip.Addr) (*linkSocks, error) {
	s := &linkSocks{kind: want.Kind, index: index, addr: a}
	udp, raw := "udp4", "ip4:icmp"
	if a.Is6() {
		udp, raw = "udp6", "ip6:ipv6-icmp"
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		closed := c.Control(func(fd uintptr) { err = bindToDevice(int(fd), want.Device, a.Is6()) })
		return errors.Join(closed, err)
	}}
	ctx := context.Background()
	for i := range 1 + linkSources {
		at := netip.AddrPortFrom(a, 0)
		if i == 0 {
			at = netip.AddrPortFrom(a, l.cfg.Port)
		}
		pc, err := lc.ListenPacket(ctx, udp, at.String())
		if err != nil {
			s.close()
			return nil, err
		}
		if i == 0 {
			s.recv = pc.(*net.UDPConn)
		} else {
			s.send = append(s.send, pc.(*net.UDPConn))
		}
	}
	l.wg.Go(func() { l.receive(s) })
	// Without the right to a raw socket a silent daemon cannot be told from a dead host.
	pc, err := lc.ListenPacket(ctx, raw, a.String())
	if errors.Is(err, unix.EPERM) {
		return s, nil
	}
	if err != nil {
		s.close()
		return nil, err
	}
	s.echo = pc.(*net.IPConn)
	l.wg.Go(func() { l.hear(s) })
	return s, nil
}

// bindToDevice prepares a socket for one device. Our IPv6 address need not be that
// device's, for which bind(2) would refuse it (inet6_bind in linux/net/ipv6/af_inet6.c).
// What is sent has DF and is never held back for a path MTU that was learned: whether it
// arrives is what a probe finds out.
func bindToDevice(fd int, device string, is6 bool) error {
	if err := unix.BindToDevice(fd, device); err != nil {
		return err
	}
	if !is6 {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE),
		)
	}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1),
	)
}

// receive reads control frames until the socket is closed.
func (l *Links) receive(s *linkSocks) {
	buf := make([]byte, maxFrame+1)
	for {
		n, from, err := s.recv.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			l.cfg.Handle(buf[:n], pathOf(s.kind), netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		}
	}
}

// hear reads answers to echoes until the socket is closed.
func (l *Links) hear(s *linkSocks) {
	buf := make([]byte, 512)
	protocol := 1 // of ICMP, for ParseMessage
	if s.addr.Is6() {
		protocol = 58
	}
	for {
		n, _, err := s.echo.ReadFromIP(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		m, err := icmp.ParseMessage(protocol, buf[:n])
		if err != nil || m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply {
			continue
		}
		e, ok := m.Body.(*icmp.Echo)
		if !ok || len(e.Data) != 32 || [8]byte(e.Data) != l.secret {
			continue
		}
		l.cfg.Echoed([16]byte(e.Data[8:24]), s.kind, binary.BigEndian.Uint64(e.Data[24:]))
	}
}
