package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/overlayd/overlayd"
)

// executed is one run of a stock plugin.
type executed struct {
	plugin string
	env    map[string]string // CNI_*
	conf   object
}

// stock stands for the stock plugins.
type stock struct {
	version.PluginDecoder
	missing  bool
	versions []string
	fail     map[string]error // by command
	runs     []executed       // without those of VERSION
}

func (s *stock) FindInPath(plugin string, paths []string) (string, error) {
	if s.missing {
		return "", fmt.Errorf("failed to find plugin %q in path %s", plugin, paths)
	}
	return filepath.Join("/stock", plugin), nil
}

func (s *stock) ExecPlugin(_ context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	x := executed{plugin: filepath.Base(path), env: map[string]string{}}
	for _, e := range environ {
		if key, value, _ := strings.Cut(e, "="); strings.HasPrefix(key, "CNI_") {
			x.env[key] = value
		}
	}
	if x.env["CNI_COMMAND"] == "VERSION" {
		return json.Marshal(object{"cniVersion": s.versions[len(s.versions)-1], "supportedVersions": s.versions})
	}
	if err := json.Unmarshal(stdin, &x.conf); err != nil {
		return nil, err
	}
	s.runs = append(s.runs, x)
	if err := s.fail[x.env["CNI_COMMAND"]]; err != nil {
		return nil, err
	}
	return json.Marshal(object{"cniVersion": x.conf["cniVersion"], "ips": []any{object{"address": "100.96.1.2/24"}}})
}

// commands are what was run, in order.
func (s *stock) commands() (out []string) {
	for _, x := range s.runs {
		out = append(out, x.env["CNI_COMMAND"])
	}
	return out
}

// bed is a plugin with stock plugins that are none.
type bed struct {
	*plugin
	t     *testing.T
	stock *stock
	out   *bytes.Buffer
	dir   string
}

func newBed(t *testing.T, versions ...string) *bed {
	b := &bed{t: t, stock: &stock{versions: versions, fail: map[string]error{}}, out: new(bytes.Buffer), dir: t.TempDir()}
	b.plugin = &plugin{exec: b.stock, stdout: b.out, alive: func(string) error { return nil }}
	b.clear = func(string, overlayd.SubnetEnv) error { return nil }
	return b
}

// hold writes subnet.env.
func (b *bed) hold(subnets ...string) {
	b.t.Helper()
	if err := overlayd.WriteSubnetEnv(filepath.Join(b.dir, "subnet.env"), env(subnets...)); err != nil {
		b.t.Fatal(err)
	}
}

// args are those of a command for eth0 of a container.
func (b *bed) args(container string, more object) *skel.CmdArgs {
	b.t.Helper()
	conf := object{"cniVersion": "1.1.0", "name": "overlay", "type": "overlayd-cni", "runDir": b.dir, "stateDir": filepath.Join(b.dir, "state")}
	maps.Copy(conf, more)
	stdin, err := json.Marshal(conf)
	if err != nil {
		b.t.Fatal(err)
	}
	if container == "" { // of all
		return &skel.CmdArgs{Path: "/stock", StdinData: stdin}
	}
	return &skel.CmdArgs{ContainerID: container, Netns: "/netns/" + container, IfName: "eth0", Args: "K=V", Path: "/stock", StdinData: stdin}
}

// saved are the containers that are remembered.
func (b *bed) saved() (out []string) {
	b.t.Helper()
	entries, err := os.ReadDir(filepath.Join(b.dir, "state", "overlay"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		b.t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func (b *bed) want(err error, code uint, text string) {
	b.t.Helper()
	var e *types.Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Msg, text) {
		b.t.Errorf("got %v, want code %d and %q", err, code, text)
	}
}

func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

var (
	spec10  = []string{"0.3.1", "0.4.0", "1.0.0"} // what Debian 12's stock plugins speak
	specAll = append(slices.Clone(spec10), spec11)
)

// While the node holds nothing, ADD says "try again later" and STATUS "not
// available"; DEL and GC work.
func TestNotReady(t *testing.T) {
	b := newBed(t, specAll...)
	b.want(b.add(b.args("c1", nil)), types.ErrTryAgainLater, "overlayd holds no subnet (yet)")
	b.want(b.status(b.args("", nil)), types.ErrPluginNotAvailable, "overlayd holds no subnet (yet)")
	b.must(b.del(b.args("c1", nil)))
	b.must(b.gc(b.args("", object{validKey: nil})))
	if len(b.stock.runs) > 0 || len(b.saved()) > 0 {
		t.Errorf("ran %v, saved %v", b.stock.runs, b.saved())
	}
	b.must(os.WriteFile(filepath.Join(b.dir, "subnet.env"), []byte("FLANNEL_MTU=1450\n"), 0o644))
	b.want(b.add(b.args("c1", nil)), types.ErrTryAgainLater, "neither FLANNEL_SUBNET")
}

// DEL undoes what ADD did, though the node is down by then, or holds another
// subnet, or the configuration has become invalid.
func TestDelNeedsNoNode(t *testing.T) {
	b := newBed(t, specAll...)
	for _, later := range []func() *skel.CmdArgs{
		func() *skel.CmdArgs { return b.args("c1", nil) },
		func() *skel.CmdArgs { return b.args("c1", object{"unknown": true}) },
		func() *skel.CmdArgs { b.hold("100.96.9.0/24"); return b.args("c1", nil) },
		func() *skel.CmdArgs {
			b.must(overlayd.RemoveSubnetEnv(filepath.Join(b.dir, "subnet.env")))
			return b.args("c1", nil)
		},
	} {
		b.stock.runs = nil
		b.hold("100.96.1.0/24", "fd96:0:0:1::/64")
		b.must(b.add(b.args("c1", nil)))
		if got := b.saved(); !slices.Equal(got, []string{"c1:eth0"}) {
			t.Errorf("saved %v", got)
		}
		args := later()
		args.Netns = ""
		b.must(b.del(args))
		if got := b.saved(); len(got) > 0 {
			t.Errorf("left %v", got)
		}
		b.must(b.del(args)) // again
		if got := b.stock.commands(); !slices.Equal(got, []string{"ADD", "DEL"}) {
			t.Fatalf("ran %v", got)
		}
		add, del := b.stock.runs[0], b.stock.runs[1]
		if a, d := fmt.Sprint(add.conf), fmt.Sprint(del.conf); a != d || add.plugin != bridgePlugin || del.plugin != bridgePlugin {
			t.Errorf("%s was given %s, %s for DEL %s", add.plugin, a, del.plugin, d)
		}
		for key, want := range map[string]string{"CNI_CONTAINERID": "c1", "CNI_NETNS": "/netns/c1", "CNI_IFNAME": "eth0", "CNI_ARGS": "K=V", "CNI_PATH": "/stock"} {
			if add.env[key] != want {
				t.Errorf("ADD had %s=%s, want %s", key, add.env[key], want)
			}
		}
		if del.env["CNI_NETNS"] != "" {
			t.Errorf("DEL had the namespace %s", del.env["CNI_NETNS"])
		}
	}
}

// DEL undoes what ADD did though what was remembered of it is lost or spoilt, from
// the result that the runtime has kept.
func TestDelOfForgotten(t *testing.T) {
	b := newBed(t, specAll...)
	prev := object{"prevResult": object{"cniVersion": "1.1.0", "ips": []any{
		object{"address": "100.96.1.2/24"}, object{"address": "fd96:0:0:1::2/64"}}}}
	for _, spoil := range []func(file string) error{
		os.Remove,
		func(file string) error { return os.WriteFile(file, []byte(`{"contai`), 0o600) },
	} {
		b.stock.runs = nil
		b.hold("100.96.1.0/24", "fd96:0:0:1::/64")
		b.must(b.add(b.args("c1", nil)))
		b.must(spoil(filepath.Join(b.dir, "state", "overlay", "c1:eth0")))
		b.hold("100.96.9.0/24")
		b.stock.fail["DEL"] = errors.New("busy")
		if err := b.del(b.args("c1", prev)); err == nil {
			t.Error("DEL says nothing")
		}
		delete(b.stock.fail, "DEL")
		b.must(b.del(b.args("c1", prev)))
		if got := b.saved(); len(got) > 0 {
			t.Errorf("left %v", got)
		}
		b.must(b.del(b.args("c1", nil))) // again, and the runtime knows nothing either
		if got := b.stock.commands(); !slices.Equal(got, []string{"ADD", "DEL", "DEL"}) {
			t.Fatalf("ran %v", got)
		}
		add, del := b.stock.runs[0].conf["ipam"].(object), b.stock.runs[2].conf["ipam"].(object)
		if !slices.EqualFunc(add["ranges"].([]any), del["ranges"].([]any), func(x, y any) bool { return fmt.Sprint(x) == fmt.Sprint(y) }) {
			t.Errorf("ADD had the ranges %v, DEL %v", add["ranges"], del["ranges"])
		}
		if got := b.stock.runs[2].env["CNI_NETNS"]; got != "/netns/c1" {
			t.Errorf("DEL had the namespace %q", got)
		}
	}
}

// A failed ADD is undone by the DEL that follows; one that was attached before
// stays as it was.
func TestFailedAdd(t *testing.T) {
	b := newBed(t, specAll...)
	b.hold("100.96.1.0/24")
	b.stock.fail["ADD"] = types.NewError(types.ErrInternal, "no address is free", "")
	b.want(b.add(b.args("c1", nil)), types.ErrInternal, "no address is free")
	b.stock.fail["DEL"] = errors.New("busy")
	if err := b.del(b.args("c1", nil)); err == nil {
		t.Error("DEL says nothing")
	}
	delete(b.stock.fail, "DEL")
	b.must(b.del(b.args("c1", nil)))
	if got := b.stock.commands(); !slices.Equal(got, []string{"ADD", "DEL", "DEL"}) || len(b.saved()) > 0 {
		t.Errorf("ran %v, left %v", got, b.saved())
	}

	delete(b.stock.fail, "ADD")
	b.must(b.add(b.args("c1", nil)))
	b.hold("100.96.9.0/24")
	b.stock.fail["ADD"] = errors.New("exists")
	if err := b.add(b.args("c1", nil)); err == nil {
		t.Error("the second ADD says nothing")
	}
	at, err := attachmentsOf(filepath.Join(b.dir, "state"), "overlay").load("c1", "eth0")
	b.must(err)
	if at == nil || at.Subnets[0].String() != "100.96.1.0/24" {
		t.Errorf("remembered is %+v", at)
	}
}

// A container that is begun anew in another namespace, as after a restart of the
// host, is attached anew: what was leased for it before is given back first.
func TestAnew(t *testing.T) {
	b := newBed(t, specAll...)
	b.hold("100.96.1.0/24")
	b.must(b.add(b.args("c1", nil)))
	b.hold("100.96.9.0/24")
	later := b.args("c1", nil)
	later.Netns = "/netns/another"
	b.stock.fail["DEL"] = errors.New("busy")
	if err := b.add(later); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("what was before cannot be undone: %v", err)
	}
	delete(b.stock.fail, "DEL")
	b.must(b.add(later))
	if got := b.stock.commands(); !slices.Equal(got, []string{"ADD", "DEL", "DEL", "ADD"}) {
		t.Fatalf("ran %v", got)
	}
	if del := b.stock.runs[2]; del.env["CNI_NETNS"] != "" || fmt.Sprint(del.conf) != fmt.Sprint(b.stock.runs[0].conf) {
		t.Errorf("DEL had the namespace %q and was given %v", del.env["CNI_NETNS"], del.conf)
	}
	at, err := attachmentsOf(filepath.Join(b.dir, "state"), "overlay").load("c1", "eth0")
	b.must(err)
	if at == nil || at.Netns != "/netns/another" || at.Subnets[0].String() != "100.96.9.0/24" {
		t.Errorf("remembered is %+v", at)
	}
}

// A runtime of spec 1.1 works with stock plugins that speak 1.0 at most, and the
// other way round.
func TestVersions(t *testing.T) {
	for _, tt := range []struct {
		stock        []string
		wanted, said string
	}{
		{spec10, "1.1.0", "1.0.0"},
		{spec10, "0.4.0", "0.4.0"},
		{specAll, "1.1.0", "1.1.0"},
		{specAll, "1.0.0", "1.0.0"},
		{spec10[:1], "1.0.0", "0.3.1"},
	} {
		b := newBed(t, tt.stock...)
		b.hold("100.96.1.0/24")
		b.must(b.add(b.args("c1", object{"cniVersion": tt.wanted})))
		var result struct {
			CNIVersion string `json:"cniVersion"`
		}
		b.must(json.Unmarshal(b.out.Bytes(), &result))
		if got := b.stock.runs[0].conf["cniVersion"]; got != tt.said || result.CNIVersion != tt.wanted {
			t.Errorf("%s with %v: the delegate is spoken to in %v, the result is %s", tt.wanted, tt.stock, got, result.CNIVersion)
		}
		prev := object{}
		b.must(json.Unmarshal(b.out.Bytes(), &prev))
		b.must(b.check(b.args("c1", object{"cniVersion": tt.wanted, "prevResult": prev})))
		if got := b.stock.runs[1].conf["prevResult"].(object)["cniVersion"]; got != tt.said {
			t.Errorf("%s with %v: CHECK has a prevResult of %v", tt.wanted, tt.stock, got)
		}
	}
	b := newBed(t, "9.0.0")
	b.hold("100.96.1.0/24")
	b.want(b.add(b.args("c1", nil)), types.ErrIncompatibleCNIVersion, "[bridge host-local] speak no version up to 1.1.0")
}

func TestCheck(t *testing.T) {
	b := newBed(t, spec10...)
	b.hold("100.96.1.0/24")
	prev := object{"prevResult": object{"cniVersion": "1.1.0", "ips": []any{}}}
	b.want(b.check(b.args("c1", nil)), types.ErrInvalidNetworkConfig, "prevResult")
	b.want(b.check(b.args("c1", prev)), types.ErrUnknownContainer, "eth0 of container c1 is not attached to overlay")
	b.want(b.add(b.args("c1", prev)), types.ErrInvalidNetworkConfig, "has to be the first plugin")
	b.must(b.add(b.args("c1", nil)))
	b.must(b.check(b.args("c1", prev)))
	b.hold("100.96.9.0/24")
	if err := b.check(b.args("c1", prev)); err == nil || !strings.Contains(err.Error(), "had [100.96.1.0/24]") {
		t.Errorf("with another subnet: %v", err)
	}
}

func TestStatus(t *testing.T) {
	b := newBed(t, spec10...)
	b.hold("100.96.1.0/24")
	b.must(b.status(b.args("", nil)))
	if len(b.stock.runs) > 0 {
		t.Errorf("a plugin without STATUS was asked: %v", b.stock.runs)
	}
	b.stock.versions = specAll
	b.must(b.status(b.args("", nil)))
	b.stock.fail["STATUS"] = types.NewError(types.ErrPluginNotAvailable, "full", "")
	b.want(b.status(b.args("", nil)), types.ErrPluginNotAvailable, "full")
	b.alive = func(runDir string) error {
		if runDir != b.dir {
			t.Errorf("asked for a node in %s, want %s", runDir, b.dir)
		}
		return overlayd.ErrNotRunning
	}
	b.want(b.status(b.args("", nil)), types.ErrLimitedConnectivity, "")
	b.stock.missing = true
	b.want(b.status(b.args("", nil)), types.ErrPluginNotAvailable, "install the stock CNI plugins")
}

func TestGC(t *testing.T) {
	b := newBed(t, specAll...)
	b.hold("100.96.1.0/24")
	for _, c := range []string{"c1", "c2", "c3", "c4", "c5"} {
		args := b.args(c, nil)
		switch c {
		case "c3":
			args.Netns = filepath.Join(b.dir, "ns") // it exists
			b.must(os.Symlink("/proc/thread-self/ns/net", args.Netns))
		case "c4":
			args.Netns = "/proc/self/ns/net"
		case "c5":
			args.Netns = filepath.Join(b.dir, "subnet.env") // no namespace
		}
		b.must(b.add(args))
	}
	b.stock.runs = nil
	b.want(b.gc(b.args("", nil)), types.ErrInvalidNetworkConfig, validKey)
	valid := []any{object{"containerID": "c2", "ifname": "eth0"}, object{"containerID": "c3", "ifname": "eth1"}}
	b.must(b.gc(b.args("", object{validKeyOld: valid})))
	if got := b.saved(); !slices.Equal(got, []string{"c2:eth0"}) {
		t.Errorf("left %v", got)
	}
	var did []string
	for _, x := range b.stock.runs {
		did = append(did, x.env["CNI_COMMAND"]+" "+x.env["CNI_CONTAINERID"]+" "+x.env["CNI_NETNS"])
	}
	if want := []string{"DEL c1 ", "DEL c3 " + filepath.Join(b.dir, "ns"), "DEL c4 ", "DEL c5 ", "GC  "}; !slices.Equal(did, want) {
		t.Errorf("did %q, want %q", did, want)
	}
	if got := b.stock.runs[4].conf[validKey]; fmt.Sprint(got) != fmt.Sprint(valid) {
		t.Errorf("the delegate's list is %v", got)
	}
}
