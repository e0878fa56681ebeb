package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/overlayd/overlayd"
)

// defaultStateDir is where attachments are remembered; the stock plugins and
// flannel's keep theirs beside it.
const defaultStateDir = "/var/lib/cni/overlayd-cni"

// object is a JSON object whose keys are not all ours.
type object = map[string]any

// config is a network configuration as the runtime hands it over.
type config struct {
	cniVersion string
	name       string
	runDir     string // of the node, where its control socket is
	subnetFile string
	stateDir   string
	delegate   object // passed through to the bridge plugin
	passed     object // what the runtime or the specification added, for the delegate too
	prevResult types.Result
}

// passedKeys are keys of the specification that the delegate is to see as well.
var passedKeys = []string{"args", "dns", "runtimeConfig"}

// knownKeys are what a configuration may have, but for keys of the runtimes,
// which begin with "cni.dev/".
var knownKeys = append([]string{
	"cniVersion", "name", "type", "capabilities", "prevResult", // the specification's
	"runDir", "subnetFile", "stateDir", "delegate", // ours
}, passedKeys...)

// invalid is one line about a configuration that can never work.
func invalid(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}

// parseConfig reads a network configuration. It is strict, since a key that is
// misspelt would be a silent default. Errors are CNI errors with code 7.
func parseConfig(b []byte) (*config, error) {
	var doc object
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "network configuration: "+err.Error(), "")
	}
	for _, key := range slices.Sorted(maps.Keys(doc)) {
		switch {
		case slices.Contains(knownKeys, key), strings.HasPrefix(key, "cni.dev/"):
		case key == "ipam", key == "ipMasq", key == "mtu", key == "bridge":
			return nil, invalid("%q is for the bridge plugin: write it inside \"delegate\"", key)
		default:
			return nil, invalid("unknown key %q: overlayd-cni has runDir, subnetFile, stateDir and delegate", key)
		}
	}
	var fields struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
		RunDir     string `json:"runDir"`
		SubnetFile string `json:"subnetFile"`
		StateDir   string `json:"stateDir"`
		Delegate   object `json:"delegate"`
	}
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, invalid("network configuration: %v", err)
	}
	c := &config{
		cniVersion: fields.CNIVersion,
		name:       fields.Name,
		runDir:     fields.RunDir,
		subnetFile: fields.SubnetFile,
		stateDir:   stateDirOr(fields.StateDir),
		delegate:   fields.Delegate,
		passed:     object{},
	}
	if c.runDir == "" {
		c.runDir = overlayd.DefaultRunDir
	}
	if c.subnetFile == "" {
		c.subnetFile = filepath.Join(c.runDir, "subnet.env")
	}
	// The run directory first: the subnet's file may be in it.
	for _, given := range []struct{ key, path string }{{"runDir", c.runDir}, {"subnetFile", c.subnetFile}, {"stateDir", c.stateDir}} {
		if !filepath.IsAbs(given.path) {
			return nil, invalid("%s: %q does not begin with a slash", given.key, given.path)
		}
	}
	for _, key := range passedKeys {
		if v, ok := doc[key]; ok {
			c.passed[key] = v
		}
	}
	if err := checkDelegate(c.delegate); err != nil {
		return nil, err
	}
	plain := types.PluginConf{CNIVersion: c.cniVersion}
	if prev, ok := doc["prevResult"].(object); ok {
		plain.RawPrevResult = prev
		if err := version.ParsePrevResult(&plain); err != nil {
			return nil, invalid("%v", err)
		}
		c.prevResult = plain.PrevResult
	}
	return c, nil
}

func stateDirOr(dir string) string {
	if dir == "" {
		return defaultStateDir
	}
	return dir
}

// checkDelegate refuses what a pass-through must not contain: the runtime, or we,
// say it.
func checkDelegate(d object) error {
	for _, key := range []string{"cniVersion", "name", "prevResult", "runtimeConfig", "capabilities"} {
		if _, ok := d[key]; ok {
			return invalid("delegate: %q cannot be given: the plugin takes it from the network configuration", key)
		}
	}
	for _, key := range []string{"type", "bridge"} {
		if v, ok := d[key]; ok {
			if s, isText := v.(string); !isText || s == "" {
				return invalid("delegate: %s: a name is needed", key)
			}
		}
	}
	if v, ok := d["ipam"]; ok {
		ipam, isObject := v.(object)
		if !isObject {
			return invalid("delegate: ipam: an object is needed")
		}
		if t, ok := ipam["type"]; ok {
			if s, isText := t.(string); !isText || s == "" {
				return invalid("delegate: ipam: type: a name is needed")
			}
		}
	}
	return nil
}
