package overlayd

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestSubnetEnv(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  SubnetEnv
		want string
	}{
		{
			"IPv4",
			SubnetEnv{Networks: prefixes("100.96.0.0/16"), Subnets: prefixes("100.96.1.0/24"), MTU: 1472},
			"FLANNEL_NETWORK=100.96.0.0/16\nFLANNEL_SUBNET=100.96.1.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n",
		},
		{
			"IPv6",
			SubnetEnv{Networks: prefixes("fd96::/48"), Subnets: prefixes("fd96:0:0:1::/64"), MTU: 1452, IPMasq: true},
			"FLANNEL_IPV6_NETWORK=fd96::/48\nFLANNEL_IPV6_SUBNET=fd96:0:0:1::1/64\nFLANNEL_MTU=1452\nFLANNEL_IPMASQ=true\n",
		},
		{
			"both, IPv6 first",
			SubnetEnv{Networks: prefixes("fd96::/48", "100.96.0.0/16"), Subnets: prefixes("fd96::/64", "100.96.0.0/24"), MTU: 1422},
			"FLANNEL_NETWORK=100.96.0.0/16\nFLANNEL_SUBNET=100.96.0.1/24\nFLANNEL_IPV6_NETWORK=fd96::/48\nFLANNEL_IPV6_SUBNET=fd96::1/64\n" +
				"FLANNEL_MTU=1422\nFLANNEL_IPMASQ=false\n",
		},
		{
			"a family without a subnet is left out",
			SubnetEnv{Networks: prefixes("100.96.0.0/16", "fd96::/48"), Subnets: prefixes("fd96:0:0:ffff::/64"), MTU: 1422},
			"FLANNEL_IPV6_NETWORK=fd96::/48\nFLANNEL_IPV6_SUBNET=fd96:0:0:ffff::1/64\nFLANNEL_MTU=1422\nFLANNEL_IPMASQ=false\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "run", "subnet.env")
			if err := WriteSubnetEnv(path, tt.env); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tt.want {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
			// What users do with it.
			out, err := exec.Command("sh", "-eu", "-c", `. "$0"; set | grep '^FLANNEL_'`, path).CombinedOutput()
			if err != nil {
				t.Fatalf("sh: %v: %s", err, out)
			}
			for line := range strings.Lines(tt.want) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
				if s := string(out); !strings.Contains(s, key+"="+value+"\n") && !strings.Contains(s, key+"='"+value+"'\n") {
					t.Errorf("sh does not see %s=%s in\n%s", key, value, s)
				}
			}
		})
	}
}

func TestSubnetEnvIsReplacedWhole(t *testing.T) {
	// Umask belongs to the process: no parallel tests here.
	defer syscall.Umask(syscall.Umask(0o077))
	dir := t.TempDir()
	path := filepath.Join(dir, "subnet.env")
	first := SubnetEnv{Networks: prefixes("100.96.0.0/16"), Subnets: prefixes("100.96.1.0/24"), MTU: 1472}
	if err := WriteSubnetEnv(path, first); err != nil {
		t.Fatal(err)
	}
	// A reader that has the old file open keeps reading the old content.
	old, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	second := first
	second.Subnets = prefixes("100.96.2.0/24")
	if err := WriteSubnetEnv(path, second); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1024)
	n, _ := old.Read(b)
	if !strings.Contains(string(b[:n]), "100.96.1.1/24") {
		t.Errorf("the old file was changed: %q", b[:n])
	}
	if b, _ := os.ReadFile(path); !strings.Contains(string(b), "100.96.2.1/24") {
		t.Errorf("the new file is %q", b)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, want 0644: %v", fi.Mode(), err)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("left behind: %v", files)
	}
	for range 2 { // the second time there is nothing to remove
		if err := RemoveSubnetEnv(path); err != nil {
			t.Fatal(err)
		}
	}
	if files, _ := os.ReadDir(dir); len(files) != 0 {
		t.Errorf("left behind: %v", files)
	}
}

func TestSubnetEnvFailure(t *testing.T) {
	dir := t.TempDir()
	// A directory in the way of the rename: the error names it, and the
	// temporary file goes.
	if err := os.MkdirAll(filepath.Join(dir, "subnet.env", "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	err := WriteSubnetEnv(filepath.Join(dir, "subnet.env"), SubnetEnv{MTU: 1})
	if err == nil || !strings.HasPrefix(err.Error(), "subnet file: ") {
		t.Errorf("got %v", err)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("left behind: %v", files)
	}
	if err := RemoveSubnetEnv(filepath.Join(dir, "subnet.env")); err == nil {
		t.Error("a directory with files was removed")
	}
}
