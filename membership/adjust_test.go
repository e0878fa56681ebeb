package membership

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
)

// TestReserve: what becomes reserved is given up while it is only a claim, and
// refused once it is held; what no longer is can be had.
func TestReserve(t *testing.T) {
	d := drive(t, testID(1), subnets(1), nil)
	d.others(true)
	d.fullSync(d.now, true)
	d.steps()
	first := d.slots[0].claim
	if err := d.reserve([]netip.Prefix{first.Prefix}, d.now); err != nil {
		t.Fatal(err)
	}
	if got := d.record(first.Key).State; got != Released {
		t.Errorf("the claim on what is reserved is %v", got)
	}
	d.steps()
	second := d.slots[0].claim
	if second.Prefix == first.Prefix || second.State != Tentative {
		t.Fatalf("it claims %+v next", second)
	}
	// Now both are, and nothing is left.
	if err := d.reserve([]netip.Prefix{first.Prefix, second.Prefix}, d.now); err != nil {
		t.Fatal(err)
	}
	if got := kinds(d.steps()); got != "publish full" {
		t.Errorf("nothing is free: %q", got)
	}
	if err := d.reserve([]netip.Prefix{second.Prefix}, d.now); err != nil {
		t.Fatal(err)
	}
	d.wait(simSpread)
	held := d.heldClaim()
	if held.Prefix != first.Prefix {
		t.Fatalf("it holds %v", held.Prefix)
	}
	wide := netip.MustParsePrefix("100.96.0.0/16")
	if err := d.reserve([]netip.Prefix{wide}, d.now); !errors.Is(err, ErrReserved) {
		t.Errorf("reserving what is held: %v", err)
	}
	if !slices.Equal(d.reserved, []netip.Prefix{second.Prefix}) || len(d.held()) != 1 {
		t.Errorf("after a refusal %v is reserved, and %v held", d.reserved, d.held())
	}
}
