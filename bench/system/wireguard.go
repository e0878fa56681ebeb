package system

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

var wireguardGo = goTool{
	name:     "wireguard-go",
	module:   "golang.zx2c4.com/wireguard",
	packages: []string{"golang.zx2c4.com/wireguard"},
}

const (
	wireguardDevice = "wg0"
	// wireguardMTU is what the device comes with (DefaultMTU in wireguard-go's
	// device/tun.go).
	wireguardMTU  = 1420
	wireguardPort = 51820
)

// openWireGuard is wireguard-go as its README has it: a TUN device and a peer.
func openWireGuard(ctx context.Context, name string, cfg *Config) (*System, error) {
	programs, version, err := wireguardGo.programs(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s, err := newHosts("wireguard")
	if err != nil {
		return s, err
	}
	s.Name, s.Encrypts, s.Version = name, true, "wireguard-go "+version
	s.Detail = "a peer on each host, everything else as it comes"
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return s, err
		}
	}
	for i := range s.Hosts {
		if err := s.startWireGuard(ctx, i, programs["wireguard"], keys[i], keys[1-i].PublicKey()); err != nil {
			return s, err
		}
	}
	return s, nil
}

// subnet4 is the bridge's address on host i where a contender does not lease it.
func subnet4(i int) netip.Prefix { return subnets(i)[0] }

// tunnelAddr is the address of host i on a contender's own device, and its subnet.
func tunnelAddr(i int) netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf("100.96.255.%d/24", i+1))
}

// startWireGuard gives host i a device that leads to the other host's container.
func (s *System) startWireGuard(ctx context.Context, i int, program string, own *ecdh.PrivateKey, peer *ecdh.PublicKey) error {
	h := s.Hosts[i]
	run := filepath.Join(h.Dir(), "run")
	if err := os.Mkdir(run, 0o755); err != nil {
		return err
	}
	p, err := h.Start(wireguardCommand(program, run), lab.StartOptions{Name: "wireguard"})
	if err != nil {
		return err
	}
	s.Daemons[i] = append(s.Daemons[i], p)
	uapi := filepath.Join(run, "wireguard", wireguardDevice+".sock")
	settings := uapiSettings(own, peer, netip.AddrPortFrom(s.Hosts[1-i].Addr4(), wireguardPort),
		netip.PrefixFrom(tunnelAddr(1-i).Addr(), 32), subnet4(1-i).Masked())
	// The socket is there once the device is.
	err = s.await(ctx, "wireguard's socket", func() error { return setUAPI(ctx, uapi, settings) })
	if err != nil {
		return err
	}
	if err := h.SetMTU(wireguardDevice, wireguardMTU); err != nil {
		return err
	}
	if err := h.SetUp(wireguardDevice, true); err != nil {
		return err
	}
	if err := h.AddAddr(wireguardDevice, tunnelAddr(i)); err != nil {
		return err
	}
	if err := h.AddRouteDev(subnet4(1-i), wireguardDevice); err != nil {
		return err
	}
	return s.attach(i, []netip.Prefix{subnet4(i)}, wireguardMTU)
}

// wireguardCommand runs wireguard-go with a directory of the lab for its /var/run. It
// leaves its socket there when it is killed, as the lab does, and ends when the socket is
// removed.
func wireguardCommand(program, run string) *exec.Cmd {
	cmd := exec.Command("/bin/sh", "-c", `mount -o bind "$2" /var/run && exec "$1" -f "$3"`, "sh", program, run, wireguardDevice)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	cmd.Env = append(environ(), "WG_PROCESS_FOREGROUND=1", "LOG_LEVEL=error")
	return cmd
}

// uapiSettings configures a device with one peer (https://www.wireguard.com/xplatform/).
func uapiSettings(own *ecdh.PrivateKey, peer *ecdh.PublicKey, endpoint netip.AddrPort, allowed ...netip.Prefix) string {
	var b strings.Builder
	fmt.Fprintf(&b, "set=1\nprivate_key=%s\nlisten_port=%d\nreplace_peers=true\n", hex.EncodeToString(own.Bytes()), wireguardPort)
	fmt.Fprintf(&b, "public_key=%s\nendpoint=%v\nreplace_allowed_ips=true\n", hex.EncodeToString(peer.Bytes()), endpoint)
	for _, p := range allowed {
		fmt.Fprintf(&b, "allowed_ip=%v\n", p)
	}
	b.WriteString("\n")
	return b.String()
}

// setUAPI sends settings to a daemon and reads its answer.
func setUAPI(ctx context.Context, socket, settings string) error {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte(settings)); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return fmt.Errorf("answer of %s: %w", filepath.Base(socket), err)
	}
	if strings.TrimSpace(answer) != "errno=0" {
		return fmt.Errorf("%s refuses its settings: %s", filepath.Base(socket), strings.TrimSpace(answer))
	}
	return nil
}
