package report

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// Keys that other programs read: a new one is added here, none is taken away.
var pathKeys = strings.Fields(`
	name ran reason version detail encrypts
	mtu tcp_gbps tcp4_gbps udp64_kpps udp1400_gbps rtt_us_p50 rtt_us_p99 cpu_s_per_gb cpu_s_per_gb_daemon memory_mib
	copies_to_user_per_packet copies_to_user_per_packet_send copies_to_user_per_packet_recv
	copies_from_user_per_packet copies_from_user_per_packet_send copies_from_user_per_packet_recv
	bytes_copied_per_payload_byte bytes_copied_per_payload_byte_send bytes_copied_per_payload_byte_recv
	syscalls_per_packet syscalls_per_packet_send syscalls_per_packet_recv
	context_switches_per_packet context_switches_per_packet_send context_switches_per_packet_recv
	crossings devices drops calls spread samples skb_copies_to_user_per_packet`)

func TestRoundTrip(t *testing.T) {
	var b strings.Builder
	if err := sample().Write(&b); err != nil {
		t.Fatal(err)
	}
	got, err := Read(strings.NewReader(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample(), got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("what was read is not what was written (-want +got):\n%s", diff)
	}
}

// document is a report as others see it.
type document struct {
	Schema string
	Host   map[string]any
	Paths  []map[string]json.RawMessage
}

func written(t *testing.T, r *Report) document {
	t.Helper()
	var b strings.Builder
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "null") {
		t.Errorf("a null is in it:\n%s", b.String())
	}
	var d document
	if err := json.Unmarshal([]byte(b.String()), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestKeys(t *testing.T) {
	d := written(t, sample())
	if d.Schema != "overlayd.bench/v1" {
		t.Errorf("schema %q", d.Schema)
	}
	host := strings.Fields("date kernel arch cpu cpus go version load rounds seconds took_secs self_check_percent")
	if diff := cmp.Diff(slices.Sorted(slices.Values(host)), slices.Sorted(maps.Keys(d.Host))); diff != "" {
		t.Errorf("keys of the host (-want +got):\n%s", diff)
	}
	for _, p := range d.Paths {
		want := slices.Clone(pathKeys)
		switch string(p["name"]) {
		case `"userspace-udp"`:
		case `"flannel-udp"`: // what did not run has no program
			want = slices.DeleteFunc(want, func(key string) bool { return key == "version" || key == "detail" })
		default:
			continue
		}
		if diff := cmp.Diff(slices.Sorted(slices.Values(want)), slices.Sorted(maps.Keys(p))); diff != "" {
			t.Errorf("keys of %s (-want +got):\n%s", p["name"], diff)
		}
	}
	for _, f := range figures {
		if !slices.Contains(pathKeys, f.key) {
			t.Errorf("%s is no key", f.key)
		}
	}
}

// What has nothing in it is empty, and not null; the report that was written is as before.
func TestNoNull(t *testing.T) {
	r := &Report{Schema: Schema, Paths: []Path{{Name: "nebula", Reason: "x"}, {Name: "direct", Ran: true, Samples: map[string][]float64{"tcp_gbps": nil}}}}
	d := written(t, r)
	for _, p := range d.Paths {
		for key, want := range map[string]string{"crossings": "[]", "devices": "[]", "drops": "{}", "calls": "{}", "spread": "{}"} {
			if got := string(p[key]); got != want {
				t.Errorf("%s of %s is %s, want %s", key, p["name"], got, want)
			}
		}
	}
	if r.Paths[0].Crossings != nil || r.Paths[0].Drops != nil || r.Paths[1].Samples["tcp_gbps"] != nil {
		t.Errorf("writing has changed the report: %+v", r.Paths)
	}
	if d := written(t, &Report{Schema: Schema}); d.Paths == nil {
		t.Error("no paths are no list")
	}
}

func TestReadRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                                      "not a report",
		`{"schema": "other/v1", "paths": [{}]}`: `schema is "other/v1"`,
		`{"schema": "overlayd.bench/v1"}`:       "without paths",
		`{"schema": "overlayd.bench/v1", "paths":`: "not a report",
	} {
		if _, err := Read(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestSpread(t *testing.T) {
	if got := Median([]float64{4, 1, 3, 2}); got != 2.5 {
		t.Errorf("median %g", got)
	}
	if got, want := SpreadOf([]float64{5, 1, 2, 4, 3}), (Spread{1, 2, 4, 5}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := SpreadOf(nil); got != (Spread{}) {
		t.Errorf("%+v of nothing", got)
	}
}
