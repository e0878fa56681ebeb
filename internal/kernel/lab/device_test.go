package lab_test

import (
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// Two hosts whose links have no addresses of each other's subnet reach each other by
// routes into the link.
func TestAddRouteDev(t *testing.T) {
	_, _, hosts := labtest.Hosts(t, 2)
	addrs := [][]netip.Prefix{
		{netip.MustParsePrefix("100.96.1.1/24"), netip.MustParsePrefix("fd96:0:0:1::1/64")},
		{netip.MustParsePrefix("100.96.2.1/24"), netip.MustParsePrefix("fd96:0:0:2::1/64")},
	}
	for i, h := range hosts {
		for _, a := range addrs[i] {
			if err := h.AddAddr("eth0", a); err != nil {
				t.Fatal(err)
			}
		}
		for _, to := range addrs[1-i] {
			if err := h.AddRouteDev(to, "eth0"); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, to := range addrs[1] {
		res, err := hosts[0].Ping(t.Context(), lab.PingConfig{Dst: to.Addr(), Count: 1})
		if err != nil || res.Received != 1 {
			t.Errorf("%v: %d answers (%v), want one", to.Addr(), res.Received, err)
		}
	}
	if err := hosts[0].AddRouteDev(addrs[1][0], "eth7"); err == nil {
		t.Error("a route goes into an interface that is not there")
	}
}
