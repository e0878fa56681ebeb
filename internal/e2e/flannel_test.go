package e2e_test

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// flannelPlugin is flannel's plugin as it was part of the stock plugins until
// v0.9.1, later releases of which are not in Go's module proxies.
const flannelPlugin = "github.com/containernetworking/plugins/plugins/meta/flannel@v0.9.1"

// TestFlannelUsers keeps all that users of flannel have: net-conf.json, flannel's
// CNI plugin with its configuration, and subnet.env.
func TestFlannelUsers(t *testing.T) {
	t.Parallel()
	dirs := []string{filepath.Join(builds, "flannel"), cniDirs(t)[1]}
	install := exec.CommandContext(within(t, leaseLimit), "go", "install", flannelPlugin)
	install.Env = append(os.Environ(), "GOBIN="+dirs[0], "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := install.CombinedOutput(); err != nil {
		t.Skipf("flannel's plugin cannot be had: %v: %s", err, out)
	}
	l, _, nodes := cluster(t, 2)
	netConf := filepath.Join(l.Dir(), "net-conf.json")
	must(t, os.WriteFile(netConf, []byte(`{
		"Network": "100.96.0.0/16", "SubnetMin": "100.96.16.0", "SubnetMax": "100.96.31.0",
		"EnableIPv6": true, "IPv6Network": "fd96::/48",
		"Backend": {"Type": "vxlan", "VNI": 7, "DirectRouting": true}
	}`), 0o644))
	var containers []*lab.Host
	var addrs [][]netip.Addr
	plugins := map[*node]map[string]any{}
	for i, n := range nodes {
		args := []string{"run", "--net-conf", netConf, "--name", n.Name(), "--state-dir", n.stateDir(), "--run-dir", n.runDir(), "--interface", "eth0"}
		if i > 0 {
			args = append(args, "--join", nodes[0].Addr4().String())
		}
		cmd := exec.Command(overlayd, args...)
		cmd.Env = daemonEnv()
		var err error
		n.daemon, err = n.Host.Start(cmd, lab.StartOptions{Name: "overlayd"})
		must(t, err)
		n.networks = 2
		n.lease(t)
		if third := n.env.Subnet4.Addr().As4()[2]; third < 16 || third > 31 {
			t.Errorf("%s has leased %v, which is out of the range", n, n.env.Subnet4)
		}
		plugins[n] = map[string]any{
			"cniVersion": "0.3.1", "type": "flannel", "subnetFile": filepath.Join(n.runDir(), "subnet.env"), "dataDir": filepath.Join(n.Dir(), "cni", cniNetwork),
			"ipam":     map[string]any{"dataDir": filepath.Join(n.Dir(), "leases")},
			"delegate": map[string]any{"isDefaultGateway": true, "hairpinMode": true, "ipMasq": false},
		}
		c, err := l.Host("c-" + n.Name())
		must(t, err)
		containers = append(containers, c)
		addrs = append(addrs, n.cni(t, dirs, "ADD", plugins[n], c))
	}
	awaitMesh(t, nodes...)
	nodes[0].awaitPath(t, proofLimit, nodes[1], "direct")
	for i, c := range containers {
		for _, dst := range addrs[1-i] {
			pingAll(t, c.Namespace, lab.PingConfig{Dst: dst, Size: nodes[i].env.MTU, DontFragment: true})
		}
	}
	for i, n := range nodes {
		n.cni(t, dirs, "DEL", plugins[n], containers[i])
		if left := n.cniLeft(t); len(left) > 0 {
			t.Errorf("%s: left behind:\n%s", n, strings.Join(left, "\n"))
		}
	}
}
