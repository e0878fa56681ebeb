package overlayd

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// What WriteSubnetEnv writes is read back.
func TestReadSubnetEnv(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	if _, err := ReadSubnetEnv(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	for _, want := range []SubnetEnv{
		{Networks: prefixes("100.96.0.0/16"), Subnets: prefixes("100.96.1.0/24"), MTU: 1472},
		{Networks: prefixes("fd96::/48"), Subnets: prefixes("fd96:0:0:1::/64"), MTU: 1452, IPMasq: true},
		{Networks: prefixes("100.96.0.0/16", "fd96::/48"), Subnets: prefixes("100.96.0.0/24", "fd96::/64"), MTU: 1422},
	} {
		if err := WriteSubnetEnv(path, want); err != nil {
			t.Fatal(err)
		}
		got, err := ReadSubnetEnv(path)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestReadSubnetEnvErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	const good = "FLANNEL_NETWORK=100.96.0.0/16\nFLANNEL_SUBNET=100.96.1.1/24\nFLANNEL_MTU=1450\n"
	for _, tt := range []struct{ text, want string }{
		{"# flannel\n\n" + good + "FLANNEL_NEW=1\n", ""},
		{"", "neither FLANNEL_SUBNET"},
		{strings.Replace(good, "FLANNEL_MTU=1450", "", 1), "FLANNEL_MTU"},
		{strings.Replace(good, "=1450", "=-1", 1), "FLANNEL_MTU"},
		{strings.Replace(good, "1.1/24", "1.7/24", 1), "100.96.1.7 is not the address after the first of 100.96.1.0/24"},
		{strings.Replace(good, "100.96.1.1/24", "fd96::1/64", 1), "FLANNEL_SUBNET: fd96::1/64 is of the other"},
		{good + "FLANNEL_IPV6_SUBNET=fd96::1\n", "FLANNEL_IPV6_SUBNET"},
		{good + "FLANNEL_IPMASQ=perhaps\n", "FLANNEL_IPMASQ"},
		{good + "what is this\n", `"what is this" is not KEY=VALUE`},
	} {
		if err := os.WriteFile(path, []byte(tt.text), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := ReadSubnetEnv(path)
		if got := ""; err != nil {
			got = err.Error()
			if tt.want == "" || !strings.Contains(got, tt.want) || !strings.Contains(got, path) {
				t.Errorf("%q: %v, want %q", tt.text, err, tt.want)
			}
		} else if tt.want != "" {
			t.Errorf("%q: no error, want %q", tt.text, tt.want)
		}
	}
}
