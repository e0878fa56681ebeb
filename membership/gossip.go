package membership

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// What the delegates put into the inbox. Nodes are copies: memberlist changes
// its own.
type (
	nodeUp    struct{ node memberlist.Node } // joined or changed
	nodeDown  struct{ node memberlist.Node }
	gossipMsg struct{ data []byte }
	fullState struct{ data []byte }
	digestMsg struct {
		from   memberlist.Node
		digest digestReading
		clock  time.Time // the other's
	}
	// conflict: another node has our name at another address.
	conflict struct{ addr netip.AddrPort }
)

// delegate is memberlist's view of a Member. Its methods run under memberlist's
// lock or on its receive path: they copy and return.
type delegate struct{ m *Member }

var (
	_ memberlist.Delegate         = delegate{}
	_ memberlist.EventDelegate    = delegate{}
	_ memberlist.AliveDelegate    = delegate{}
	_ memberlist.PingDelegate     = delegate{}
	_ memberlist.ConflictDelegate = delegate{}
)

func (d delegate) NotifyJoin(n *memberlist.Node) {
	d.m.names.add(n.Name)
	d.m.inbox.put(nodeUp{copyNode(n)})
}

func (d delegate) NotifyUpdate(n *memberlist.Node) { d.m.inbox.put(nodeUp{copyNode(n)}) }

func (d delegate) NotifyLeave(n *memberlist.Node) {
	d.m.names.remove(n.Name)
	d.m.inbox.put(nodeDown{copyNode(n)})
}

// nameSet is the names that memberlist takes for alive.
type nameSet struct {
	mu    sync.Mutex
	names map[string]bool
}

func (s *nameSet) add(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names == nil {
		s.names = make(map[string]bool)
	}
	s.names[name] = true
}

func (s *nameSet) remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.names, name)
}

// roomFor reports whether there is room for one more, or the name is there.
func (s *nameSet) roomFor(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.names) < maxMembers || s.names[name]
}

func copyNode(n *memberlist.Node) memberlist.Node {
	c := *n
	c.Meta = append([]byte(nil), n.Meta...)
	c.Addr = append(net.IP(nil), n.Addr...)
	return c
}

// NotifyAlive keeps out what is not an overlayd node, before memberlist spends
// memory on it.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	_, _, _, err := d.m.readNode(n)
	if err == nil && !d.m.names.roomFor(n.Name) {
		err = errRecordFull
	}
	if err != nil {
		d.m.count(err)
	}
	return err
}

func (d delegate) NodeMeta(limit int) []byte { return *d.m.meta.Load() }

func (d delegate) NotifyMsg(b []byte) {
	d.m.inbox.putMessage(gossipMsg{append([]byte(nil), b...)}, len(b))
}

func (d delegate) MergeRemoteState(b []byte, join bool) { d.m.inbox.putState(fullState{b}, len(b)) }

func (d delegate) LocalState(join bool) []byte { return d.m.encodeAll() }

func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.m.nextBroadcasts(overhead, limit)
}

// AckPayload carries the digest of our records in every answer to a ping, so
// that a record that gossip missed is noticed within seconds, and our clock.
func (d delegate) AckPayload() []byte {
	now := time.Now()
	b := d.m.digest.Load().append(make([]byte, 0, digestLen+8), now)
	return binary.BigEndian.AppendUint64(b, unixMilli(now))
}

func (d delegate) NotifyPingComplete(n *memberlist.Node, _ time.Duration, payload []byte) {
	if len(payload) != digestLen+8 {
		return
	}
	if clock, ok := milliTime(binary.BigEndian.Uint64(payload[digestLen:])); ok {
		d.m.inbox.putMessage(digestMsg{copyNode(n), readDigests(payload), clock}, 0)
	}
}

// NotifyConflict is told of two nodes with one name; only our own is of interest.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	if existing.Name != gossipName(d.m.id, d.m.boot) {
		return
	}
	if a, ok := netip.AddrFromSlice(other.Addr); ok {
		d.m.inbox.putMessage(conflict{netip.AddrPortFrom(a.Unmap(), other.Port)}, 0)
	}
}

// readNode decodes and checks another node's gossip entry.
func (m *Member) readNode(n *memberlist.Node) (id NodeID, boot uint64, mt meta, err error) {
	if id, boot, err = parseGossipName(n.Name); err != nil {
		return id, boot, mt, err
	}
	if mt, err = decodeMeta(n.Meta); err != nil {
		return id, boot, mt, err
	}
	gossip, ok := netip.AddrFromSlice(n.Addr)
	if !ok || !usableEndpoint(gossip.Unmap()) || n.Port == 0 {
		return id, boot, mt, errMeta
	}
	for _, a := range append([]netip.Addr{gossip.Unmap()}, mt.addrs...) {
		for _, net := range m.cfg.Settings.Networks {
			if net.Contains(a) {
				return id, boot, mt, errEndpointInside
			}
		}
	}
	return id, boot, mt, nil
}

var errEndpointInside = errors.New("endpoint_inside_overlay")

// transport is memberlist's own with dials and connections that end when the
// Member does: a host that swallows packets, or takes a connection and says
// nothing, must not hold up Stop.
type transport struct {
	*memberlist.NetTransport
	ctx context.Context
}

func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	c, err := d.DialContext(t.ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	return &dialed{c, context.AfterFunc(t.ctx, func() { c.Close() })}, nil
}

// dialed is a connection that is closed when the Member ends.
type dialed struct {
	net.Conn
	forget func() bool // lets go of the Member's context
}

func (d *dialed) Close() error {
	d.forget()
	return d.Conn.Close()
}

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

const (
	// gossipInterval is memberlist's LAN value.
	gossipInterval = 200 * time.Millisecond
	// gossipRetransmit is the multiplier of retransmissions. With memberlist's 4
	// a broadcast misses some node in 1% of cases at 30 nodes, with 8 in 1e-5.
	gossipRetransmit = 8
	// gossipPacket is the largest gossip packet: it fits the smallest IPv6 MTU
	// (RFC 8200 section 5) with room for a tunnel around it.
	gossipPacket = 1200
)

// createMemberlist opens the sockets and starts memberlist.
func (m *Member) createMemberlist(ctx context.Context) (*memberlist.Memberlist, error) {
	c := memberlist.DefaultLANConfig()
	c.Name = gossipName(m.id, m.boot)
	c.BindAddr = m.cfg.Gossip.Addr().String()
	c.BindPort = int(m.cfg.Gossip.Port())
	c.AdvertiseAddr, c.AdvertisePort = c.BindAddr, c.BindPort
	c.TCPTimeout = 5 * time.Second
	c.UDPBufferSize = gossipPacket
	c.GossipInterval = gossipInterval
	c.Label = m.cfg.Cluster
	d := delegate{m}
	c.Delegate, c.Events, c.Alive, c.Ping, c.Conflict = d, d, d, d, d
	c.Logger = log.New(gossipLog{m.log, m.count}, "", 0)
	if len(m.cfg.Keys) > 0 {
		ring, err := memberlist.NewKeyring(m.cfg.Keys, m.cfg.Keys[0])
		if err != nil {
			return nil, fmt.Errorf("gossip keys: %w", err)
		}
		c.Keyring, m.keyring = ring, ring
	}
	if c.Transport = m.cfg.Transport; c.Transport == nil {
		nt, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{c.BindAddr}, BindPort: c.BindPort, Logger: c.Logger,
		})
		if err != nil {
			if strings.Contains(err.Error(), "address already in use") { // memberlist does not wrap it
				return nil, fmt.Errorf("%w: %v: stop the program that has it, or choose another --gossip-port", ErrPortInUse, m.cfg.Gossip)
			}
			return nil, fmt.Errorf("gossip on %v: %w", m.cfg.Gossip, err)
		}
		c.Transport = &transport{nt, ctx}
	}
	list, err := memberlist.Create(c)
	if err != nil {
		c.Transport.Shutdown()
		return nil, fmt.Errorf("gossip: %w", err)
	}
	return list, nil
}

// gossipLog takes memberlist's lines. They are about its inner life; what a
// person must know is said by the Member itself.
type gossipLog struct {
	log *slog.Logger
	// refused is called for each line that says that something from the network
	// was refused; memberlist tells it in no other way.
	refused func(error)
}

var _ io.Writer = gossipLog{}

// errPacket: memberlist could make no sense of what came to its port, or has no
// key for it, or it is of another cluster.
var errPacket = errors.New("packet_refused")

func (g gossipLog) Write(b []byte) (int, error) {
	// net.go: handleConn, ingestPacket, handleCommand, handleCompound and so on.
	for _, what := range []string{"ailed to decode", "ecrypt", "discarding", "not supported", "too short", "failed to receive", "Failed to read remote state", "Failed to receive", "truncated",
		"Failed push/pull merge", "invalid msgType", "invalid checksum", "missing message type", "label header", "ailed to decompress", "size is ("} {
		if bytes.Contains(b, []byte(what)) {
			g.refused(errPacket)
			break
		}
	}
	g.log.Debug("gossip: " + strings.TrimSpace(strings.ToValidUTF8(string(b), "?")))
	return len(b), nil
}

// refusals counts what was refused, by the text of its sentinel error.
type refusals struct {
	counts [len(refusalErrors)]atomic.Uint64
}

var refusalErrors = [...]error{errPacket, errRecordShort, errRecordFormat, errRecordKind, errRecordBad, errRecordNetwork, errRecordFull, errMeta, errEndpointInside}

func (m *Member) count(err error) {
	for i, e := range refusalErrors {
		if errors.Is(err, e) {
			m.refused.counts[i].Add(1)
		}
	}
}

// Health is memberlist's score of this node, 0 when all is well: it rises while its own
// probes and those of others tell that this node is slow. It is 0 before Start.
func (m *Member) Health() int {
	if m.list == nil {
		return 0
	}
	return m.list.GetHealthScore()
}

// Refused returns how much of what gossip brought was refused, by reason. Every
// reason is there, also at 0, and also on a zero Member.
func (m *Member) Refused() map[string]uint64 {
	out := make(map[string]uint64, len(refusalErrors)+1)
	for i, e := range refusalErrors {
		out["gossip_"+e.Error()] = m.refused.counts[i].Load()
	}
	out["gossip_inbox_full"] = 0
	if m.inbox != nil {
		m.inbox.mu.Lock()
		defer m.inbox.mu.Unlock()
		out["gossip_inbox_full"] = m.inbox.dropped
	}
	return out
}
