package kernel_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/internal/kernel"
)

// iptables runs a command of iptables in this thread's namespace, and returns what it
// says.
func (x *host) iptables(line string) string {
	x.Helper()
	words := strings.Fields(line)
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		x.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// TestIptables: what iptables itself makes is understood, and what is made in its chains
// it reads and keeps.
func TestIptables(t *testing.T) {
	_, err := exec.LookPath("iptables-nft")
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("%v: .ci/run should have installed it", err)
	default:
		t.Skipf("%v: install iptables to run this test", err)
	}
	x := healthy(t)
	world := diagnosis
	world.World = true
	for _, tool := range []string{"iptables-nft", "ip6tables-nft"} {
		x.iptables(tool + " -P FORWARD DROP")
		x.iptables(tool + " -A FORWARD -i overlay+ -j ACCEPT")
		x.iptables(tool + " -A FORWARD -o overlay+ -j ACCEPT")
		x.iptables(tool + " -A FORWARD -i cni0 -o eth0 -j ACCEPT")
	}
	x.expect(diagnosis)
	x.expect(world, [2]string{kernel.CodeForwardPolicy, "from the world"}, [2]string{kernel.CodeForwardPolicy, "from the world"})
	x.iptables("iptables-nft -I FORWARD -d 100.96.1.0/24 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
	x.iptables("ip6tables-nft -A FORWARD -m state ! --state NEW,INVALID -j ACCEPT")
	x.expect(world)
	f := forwardRules()
	f.World, f.Devices, f.Underlay = true, []string{"overlay0"}, "eth0"
	x.setRules(f, 0)

	for _, tool := range []string{"iptables-nft", "ip6tables-nft"} {
		x.iptables(tool + " -F FORWARD")
	}
	x.setRules(f, 2)
	saved := x.iptables("iptables-nft -S FORWARD")
	for _, want := range []string{"-A FORWARD -s 100.96.0.0/16", "-A FORWARD -d 100.96.0.0/16", "--comment overlayd-overlay0 -j ACCEPT"} {
		if !strings.Contains(saved, want) {
			t.Errorf("iptables does not show %s: %s", want, saved)
		}
	}
	// It is changed by it, and made anew of what it has saved.
	x.iptables("iptables-nft -A FORWARD -i docker0 -j ACCEPT")
	x.setRules(f, 0)
	restore := exec.Command("iptables-nft-restore")
	restore.Stdin = strings.NewReader(x.iptables("iptables-nft-save"))
	out, err := restore.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	x.setRules(f, 0)
	removed, err := x.k.RemoveForwardRules("overlay0")
	if err != nil || len(removed) != 4 {
		t.Errorf("removed %q, %v", removed, err)
	}
	if saved := x.iptables("iptables-nft -S FORWARD"); saved != "-P FORWARD DROP\n-A FORWARD -i docker0 -j ACCEPT\n" {
		t.Errorf("left is %s", saved)
	}
}
