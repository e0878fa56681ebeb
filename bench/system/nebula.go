package system

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

var nebula = goTool{
	name:     "nebula",
	module:   "github.com/slackhq/nebula",
	packages: []string{"github.com/slackhq/nebula/cmd/nebula", "github.com/slackhq/nebula/cmd/nebula-cert"},
}

// nebulaMTU is its default (DefaultMTU in nebula's overlay/tun.go), which examples/config.yml
// calls safe; it names no better one for a LAN.
const nebulaMTU = 1300

// nebulaConfig is of one host, after nebula's examples/config.yml: what is left out is the
// default. Firewall rules need a local_cidr to hold for unsafe routes, which is what nebula
// calls the subnets behind its hosts.
var nebulaConfig = template.Must(template.New("config.yml").Parse(`
pki:
  ca: {{.Dir}}/ca.crt
  cert: {{.Dir}}/host.crt
  key: {{.Dir}}/host.key
static_host_map:
  "{{.Peer}}": ["{{.PeerUnderlay}}:4242"]
lighthouse:
  am_lighthouse: {{.Lighthouse}}
{{- if not .Lighthouse}}
  hosts: ["{{.Peer}}"]
{{- end}}
listen:
  host: {{.Underlay}}
  port: 4242
routines: 2
tun:
  dev: nebula1
  mtu: {{.MTU}}
  unsafe_routes:
    - route: {{.PeerSubnet}}
      via: {{.Peer}}
logging:
  level: error
firewall:
  outbound:
    - {port: any, proto: any, host: any, local_cidr: 0.0.0.0/0}
  inbound:
    - {port: any, proto: any, host: any, local_cidr: 0.0.0.0/0}
`))

// nebulaHost fills in a nebulaConfig.
type nebulaHost struct {
	Dir                    string
	Lighthouse             bool
	Underlay, PeerUnderlay netip.Addr
	Peer                   netip.Addr // in the overlay
	PeerSubnet             netip.Prefix
	MTU                    int
}

// openNebula is nebula with the container's subnet behind each host.
func openNebula(ctx context.Context, name string, cfg *Config) (*System, error) {
	programs, version, err := nebula.programs(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s, err := newHosts("nebula")
	if err != nil {
		return s, err
	}
	s.Name, s.Encrypts, s.Version = name, true, "nebula "+version
	s.Detail = "two routines, the subnets as unsafe routes, everything else as it comes"
	if err := s.certify(ctx, programs["nebula-cert"]); err != nil {
		return s, err
	}
	for i, h := range s.Hosts {
		file, err := s.configureNebula(i)
		if err != nil {
			return s, err
		}
		cmd := exec.Command(programs["nebula"], "-config", file)
		cmd.Env = environ()
		p, err := h.Start(cmd, lab.StartOptions{Name: "nebula"})
		if err != nil {
			return s, err
		}
		s.Daemons[i] = append(s.Daemons[i], p)
		if err := s.attach(i, []netip.Prefix{subnet4(i)}, nebulaMTU); err != nil {
			return s, err
		}
	}
	return s, nil
}

// certify makes a CA, whose key stays with host 0, and certificates for both hosts.
func (s *System) certify(ctx context.Context, program string) error {
	run := func(args ...string) error {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Env = environ()
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nebula-cert %s: %w: %s", args[0], err, strings.TrimSpace(string(out)))
		}
		return nil
	}
	in := func(i int, file string) string { return filepath.Join(s.Hosts[i].Dir(), file) }
	if err := run("ca", "-name", "bench", "-out-crt", in(0, "ca.crt"), "-out-key", in(0, "ca.key")); err != nil {
		return err
	}
	for i, h := range s.Hosts {
		err := run("sign", "-ca-crt", in(0, "ca.crt"), "-ca-key", in(0, "ca.key"), "-name", h.Name(),
			"-networks", tunnelAddr(i).String(), "-unsafe-networks", subnet4(i).Masked().String(),
			"-out-crt", in(i, "host.crt"), "-out-key", in(i, "host.key"))
		if err != nil {
			return err
		}
	}
	ca, err := os.ReadFile(in(0, "ca.crt"))
	if err != nil {
		return err
	}
	return os.WriteFile(in(1, "ca.crt"), ca, 0o644)
}

// configureNebula writes the configuration of host i.
func (s *System) configureNebula(i int) (file string, err error) {
	var b strings.Builder
	err = nebulaConfig.Execute(&b, nebulaHost{
		Dir:        s.Hosts[i].Dir(),
		Lighthouse: i == 0,
		Underlay:   s.Hosts[i].Addr4(), PeerUnderlay: s.Hosts[1-i].Addr4(),
		Peer: tunnelAddr(1 - i).Addr(), PeerSubnet: subnet4(1 - i).Masked(),
		MTU: nebulaMTU,
	})
	if err != nil {
		return "", err
	}
	file = filepath.Join(s.Hosts[i].Dir(), "nebula.yml")
	return file, os.WriteFile(file, []byte(b.String()), 0o600)
}
