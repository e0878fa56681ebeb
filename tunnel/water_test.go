package tunnel_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/tunnel"
)

// What can never work is told before the system is asked: no privilege needed.
func TestOpenWaterBadInput(t *testing.T) {
	for _, name := range []string{
		"", ".", "..", "all", "default", "sixteen-bytes-ab", strings.Repeat("x", 100),
		"a/b", "a b", "a:1", "tun%d", "a\x00b", "a\nb", "a\tb", "\x7f", "naïve", "\xff",
	} {
		dev, err := tunnel.OpenWater(name, 1500)
		if dev != nil || !errors.Is(err, tunnel.ErrName) {
			t.Errorf("OpenWater(%q) = %v, %v; want ErrName", name, dev, err)
			continue
		}
		wantOneLine(t, err)
	}
	for _, size := range []int{-1, 0, 67, 65536} {
		dev, err := tunnel.OpenWater("overlay0", size)
		if dev != nil || err == nil || !strings.Contains(err.Error(), "68 to 65535") {
			t.Errorf("OpenWater with packets of %d bytes = %v, %v", size, dev, err)
			continue
		}
		wantOneLine(t, err)
	}
}

func wantOneLine(t *testing.T, err error) {
	t.Helper()
	if s := err.Error(); strings.ContainsAny(s, "\r\n") || !strings.HasPrefix(s, "tunnel: ") {
		t.Errorf("the error is not one clear line: %q", s)
	}
}
