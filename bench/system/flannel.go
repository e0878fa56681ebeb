package system

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// flannelKey is where flanneld looks for the network in etcd: its -etcd-prefix, and
// "config" (Documentation/configuration.md of flannel).
const flannelKey = "/coreos.com/network/config"

// flannelNetwork is the network's configuration. By nftables it needs no br_netfilter,
// which would change what bridges do on the whole machine.
type flannelNetwork struct {
	Network        string
	SubnetLen      int
	EnableNFTables bool
	Backend        flannelBackend
}

// flannelBackend is what carries the packets.
type flannelBackend struct {
	Type string
	VNI  int `json:",omitempty"`
}

// openFlannelUDP is flanneld's own data plane, one packet for each system call.
func openFlannelUDP(ctx context.Context, name string, cfg *Config) (*System, error) {
	return openFlannel(ctx, name, "fludp", cfg, flannelBackend{Type: "udp"})
}

// openFlannelVXLAN is a VXLAN of the kernel that flanneld keeps.
func openFlannelVXLAN(ctx context.Context, name string, cfg *Config) (*System, error) {
	return openFlannel(ctx, name, "flvxlan", cfg, flannelBackend{Type: "vxlan", VNI: 1})
}

func openFlannel(ctx context.Context, name, labName string, cfg *Config, backend flannelBackend) (*System, error) {
	etcd, err := flannelNeeds(cfg)
	if err != nil {
		return nil, err
	}
	s, err := newHosts(labName)
	if err != nil {
		return s, err
	}
	s.Name, s.Detail = name, "its "+backend.Type+" backend as it comes, without masquerading"
	if s.Version, err = flannelVersion(ctx, cfg.Flanneld); err != nil {
		return s, err
	}
	endpoint, err := s.startEtcd(ctx, etcd, flannelNetwork{Network: "100.96.0.0/16", SubnetLen: 24, EnableNFTables: true, Backend: backend})
	if err != nil {
		return s, err
	}
	for i, h := range s.Hosts {
		cmd := exec.Command(cfg.Flanneld, "-etcd-endpoints", "http://"+endpoint.String(), "-iface", "eth0",
			"-subnet-file", subnetFile(h), "-ip-masq=false", "-iptables-forward-rules=false")
		cmd.Env = flannelEnviron()
		p, err := h.Start(cmd, lab.StartOptions{Name: "flanneld"})
		if err != nil {
			return s, err
		}
		s.Daemons[i] = append(s.Daemons[i], p)
	}
	for i, h := range s.Hosts {
		var env lab.SubnetEnv
		err := s.await(ctx, "lease", func() (err error) {
			env, err = lab.ReadSubnetEnv(subnetFile(h))
			return err
		})
		if err != nil {
			return s, err
		}
		if err := s.attach(i, env.Subnets(), env.MTU); err != nil {
			return s, err
		}
	}
	return s, nil
}

func subnetFile(h *lab.Host) string { return filepath.Join(h.Dir(), "flannel", "subnet.env") }

// flannelNeeds looks for what flanneld takes.
func flannelNeeds(cfg *Config) (etcd string, err error) {
	if cfg.Flanneld == "" {
		return "", fmt.Errorf("%w: FLANNELD=path was not given", ErrMissing)
	}
	if etcd = cfg.Etcd; etcd == "" {
		if etcd, err = exec.LookPath("etcd"); err != nil {
			return "", fmt.Errorf("%w: etcd is not installed", ErrMissing)
		}
	}
	// It calls both when it starts, to remove the rules of the one that it does not use.
	for _, program := range []string{"iptables", "nft"} {
		if _, err := exec.LookPath(program); err != nil {
			return "", fmt.Errorf("%w: %s is not installed, which flanneld calls", ErrMissing, program)
		}
	}
	return etcd, nil
}

// flannelEnviron is the environment without settings for another flanneld or etcd.
func flannelEnviron() []string {
	return slices.DeleteFunc(environ(), func(e string) bool {
		return strings.HasPrefix(e, "FLANNELD_") || strings.HasPrefix(e, "ETCD_")
	})
}

func flannelVersion(ctx context.Context, program string) (string, error) {
	cmd := exec.CommandContext(ctx, program, "-version")
	cmd.Env = flannelEnviron()
	out, err := cmd.CombinedOutput() // it is printed on stderr
	if err != nil {
		return "", fmt.Errorf("%s -version: %w: %s", program, err, out)
	}
	return "flanneld " + strings.TrimSpace(string(out)), nil
}

// startEtcd runs etcd on host 1, which keeps the network's configuration and the leases.
func (s *System) startEtcd(ctx context.Context, program string, network flannelNetwork) (netip.AddrPort, error) {
	h := s.Hosts[0]
	endpoint := netip.AddrPortFrom(h.Addr4(), 2379)
	clients, peers := "http://"+endpoint.String(), "http://127.0.0.1:2380"
	cmd := exec.Command(program, "--name", "bench", "--data-dir", filepath.Join(h.Dir(), "etcd"),
		"--listen-client-urls", clients, "--advertise-client-urls", clients,
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "bench="+peers)
	cmd.Env = flannelEnviron()
	etcd, err := h.Start(cmd, lab.StartOptions{Name: "etcd"})
	if err != nil {
		return endpoint, err
	}
	value, err := json.Marshal(network)
	if err != nil {
		return endpoint, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return endpoint, s.await(ctx, "etcd", func() error {
		if !etcd.Running() {
			cancel()
			tail, _ := etcd.Tail(5)
			return fmt.Errorf("it has ended (%v)\n%s", etcd.Err(), tail)
		}
		return putEtcd(ctx, h.Namespace, endpoint, flannelKey, value)
	})
}

// putEtcd writes a value by etcd's JSON gateway, where both are in base64 as bytes are in
// JSON (https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/).
func putEtcd(ctx context.Context, ns *lab.Namespace, endpoint netip.AddrPort, key string, value []byte) error {
	body, err := json.Marshal(struct {
		Key   []byte `json:"key"`
		Value []byte `json:"value"`
	}{[]byte(key), value})
	if err != nil {
		return err
	}
	client := http.Client{
		Timeout: 2 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return ns.Dial(ctx, network, endpoint)
			},
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+endpoint.String()+"/v3/kv/put", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("put %s: %s: %s", key, resp.Status, bytes.TrimSpace(answer))
	}
	return nil
}
