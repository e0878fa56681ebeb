package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// value is what was said of a setting, unparsed, and where.
type value struct {
	items []string
	where string // such as "--udp-port" or "/etc/overlayd.yaml:7: udp_port"
}

// values are the settings that were given or have a default, by flag.
type values map[string]value

// text is the only item of a setting, "" if it was not given.
func (v values) text(flag string) string {
	if items := v[flag].items; len(items) > 0 {
		return items[0]
	}
	return ""
}

// resolve decides every setting of list: a flag wins over its variable, that
// over the config file, that over flannel's net-conf.json, that over the default.
// A setting is taken from one source as a whole: lists of two sources do not mix.
//
// strict also refuses OVERLAYD_* variables that are no setting, since a
// misspelt one would be a silent default. Commands that know a part of the
// settings only are not strict.
func resolve(fs *pflag.FlagSet, env []string, list []*setting, strict bool) (values, error) {
	fromEnv, err := variables(env, list, strict)
	if err != nil {
		return nil, err
	}
	v := values{}
	overlay := func(from values) {
		for flag, val := range from {
			v[flag] = val
		}
	}
	for _, s := range list {
		if s.def != "" {
			v[s.flag] = value{items: s.split(s.def)}
		}
	}
	fromFlags := flagValues(fs)
	var given []values // what wins comes later

	file := fromEnv.text(flagConfig)
	if f, ok := fromFlags[flagConfig]; ok {
		file = f.items[0]
	}
	if file != "" {
		fromFile, err := readConfigFile(file, list)
		if err != nil {
			return nil, err
		}
		given = append(given, fromFile)
	}
	given = append(given, fromEnv, fromFlags)
	var netConf string
	for _, from := range given {
		if f, ok := from[flagNetConf]; ok {
			netConf = f.items[0]
		}
	}
	if netConf != "" {
		fromNetConf, err := readNetConf(netConf)
		if err != nil {
			return nil, err
		}
		overlay(fromNetConf)
	}
	for _, from := range given {
		overlay(from)
	}
	return v, nil
}

func flagValues(fs *pflag.FlagSet) values {
	v := values{}
	fs.Visit(func(f *pflag.Flag) {
		if fv, ok := f.Value.(*flagValue); ok {
			v[f.Name] = value{items: fv.items, where: "--" + f.Name}
		}
	})
	return v
}

// variables reads the OVERLAYD_* variables. One that is set to nothing counts
// as not set, as systemd and compose files do it.
func variables(env []string, list []*setting, strict bool) (values, error) {
	names := make([]string, 0, len(list))
	byName := make(map[string]*setting, len(list))
	for _, s := range list {
		names = append(names, s.variable())
		byName[s.variable()] = s
	}
	v := values{}
	for _, e := range env {
		name, text, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, variablePrefix) || text == "" {
			continue
		}
		s, ok := byName[name]
		if !ok {
			if strict {
				return nil, usagef("unknown variable %s%s", name, didYouMean(name, names))
			}
			continue
		}
		v[s.flag] = value{items: s.split(text), where: name}
	}
	return v, nil
}

// didYouMean returns `: did you mean "x"?` for the name that is nearest to
// what was written, or "" if none is near.
func didYouMean(written string, names []string) string {
	best, bestDistance := "", 3+len(written)/8
	for _, n := range names {
		if d := editDistance(written, n); d < bestDistance {
			best, bestDistance = n, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(": did you mean %q?", best)
}

// editDistance is the number of bytes to insert, remove, replace or swap with
// their neighbour to get from a to b (optimal string alignment).
func editDistance(a, b string) int {
	before, prev := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur := slices.Clone(prev)
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev = prev, cur
	}
	return prev[len(b)]
}
