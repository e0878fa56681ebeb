package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
	yamlv2 "sigs.k8s.io/yaml/goyaml.v2"
)

// maxConfigFile is more than any config file needs.
const maxConfigFile = 1 << 20

// readConfigFile reads a config file: a flat YAML mapping whose keys are those
// of the settings. Unknown keys, keys given twice and values of a wrong type
// are errors that name the line.
func readConfigFile(path string, list []*setting) (values, error) {
	b, err := readBounded(path, maxConfigFile)
	if err != nil {
		return nil, usagef("config file: %w", err)
	}
	return parseConfig(path, b, list)
}

func parseConfig(path string, b []byte, list []*setting) (values, error) {
	useNumber := func(d *json.Decoder) *json.Decoder { d.UseNumber(); return d }
	var doc any
	if err := yaml.UnmarshalStrict(b, &doc, useNumber); err != nil {
		return nil, usagef("%s", yamlError(path, err))
	}
	if err := onlyDocument(path, b); err != nil {
		return nil, err
	}
	if doc == nil { // nothing but comments
		return nil, nil
	}
	keys, ok := doc.(map[string]any)
	if !ok {
		return nil, usagef("%s: not a mapping: write one \"key: value\" per line", path)
	}
	lines := keyLines(b)
	// Complain about what stands first.
	inOrder := make([]string, 0, len(keys))
	for k := range keys {
		inOrder = append(inOrder, k)
	}
	slices.SortFunc(inOrder, func(x, y string) int {
		if d := lines[x] - lines[y]; d != 0 {
			return d
		}
		return strings.Compare(x, y)
	})

	byKey := make(map[string]*setting, len(list))
	names := make([]string, 0, len(list))
	for _, s := range list {
		if s.flag != flagConfig {
			byKey[s.key()] = s
			names = append(names, s.key())
		}
	}
	v := values{}
	for _, k := range inOrder {
		at := path
		if n := lines[k]; n > 0 {
			at = fmt.Sprintf("%s:%d", path, n)
		}
		s, ok := byKey[k]
		if !ok {
			return nil, usagef("%s: unknown key %q%s", at, k, didYouMean(strings.ReplaceAll(k, "-", "_"), names))
		}
		items, err := s.fromYAML(keys[k])
		if err != nil {
			return nil, usagef("%s: %s: %w", at, k, err)
		}
		v[s.flag] = value{items: items, where: at + ": " + k}
	}
	return v, nil
}

// fromYAML turns a decoded YAML value into the items that the same text on the
// command line would give.
func (s *setting) fromYAML(val any) ([]string, error) {
	elems, ok := val.([]any)
	if !ok || !s.isList() {
		elems = []any{val}
	}
	items := make([]string, 0, len(elems))
	for _, e := range elems {
		item, err := s.scalar(e)
		if err != nil {
			return nil, err
		}
		items = append(items, s.split(item)...)
	}
	return items, nil
}

func (s *setting) scalar(val any) (string, error) {
	switch val := val.(type) {
	case string:
		if s.kind == number || s.kind == boolean {
			return "", fmt.Errorf("%q is not %s", val, s.wanted())
		}
		return val, nil
	case json.Number:
		if s.kind == number || s.kind == numbers {
			return val.String(), nil
		}
		return "", fmt.Errorf("%s is not %s", val, s.wanted())
	case bool:
		if s.kind == boolean {
			return strconv.FormatBool(val), nil
		}
		// YAML 1.1 reads a bare on and off as true and false.
		if s.kind == oneOf && slices.Contains(s.choices, "off") {
			if !val {
				return "off", nil
			}
			if slices.Contains(s.choices, "on") {
				return "on", nil
			}
		}
		return "", fmt.Errorf("%t is not %s", val, s.wanted())
	case nil:
		return "", fmt.Errorf("no value: write %s, or remove the key", s.wanted())
	case []any:
		return "", fmt.Errorf("a list is not %s", s.wanted())
	}
	return "", fmt.Errorf("a mapping is not %s", s.wanted())
}

// wanted says what a setting's value in the config file is.
func (s *setting) wanted() string {
	switch s.kind {
	case number:
		return "a number"
	case numbers:
		return "a number or a list of numbers"
	case boolean:
		return "true or false"
	case oneOf:
		return "one of " + strings.Join(s.choices, ", ")
	case list, repeated:
		return "a text or a list of texts (texts like numbers or yes and no need quotes)"
	}
	return "a text (texts like numbers or yes and no need quotes)"
}

// unknownField is how the YAML package reports a key that the struct which it
// decodes into does not have.
var unknownField = regexp.MustCompile(`^line (\d+): field (.*) not found in type `)

// keyLines returns the line of each top-level key. The YAML package tells
// lines in its errors only, so it is asked to decode into a struct without
// fields, where each key is one.
func keyLines(b []byte) map[string]int {
	lines := map[string]int{}
	err := yamlv2.UnmarshalStrict(b, &struct{}{})
	var te *yamlv2.TypeError
	if !errors.As(err, &te) {
		return lines
	}
	for _, e := range te.Errors {
		if m := unknownField.FindStringSubmatch(e); m != nil {
			lines[m[2]], _ = strconv.Atoi(m[1])
		}
	}
	return lines
}

// onlyDocument refuses a second document, which decoding ignores.
func onlyDocument(path string, b []byte) error {
	d := yamlv2.NewDecoder(bytes.NewReader(b))
	var doc any
	if err := d.Decode(&doc); err != nil {
		return nil // an empty file; anything else was found before
	}
	if err := d.Decode(&doc); !errors.Is(err, io.EOF) {
		return usagef("%s: more than one document: keep what stands before the second \"---\"", path)
	}
	return nil
}

var (
	yamlDuplicate = regexp.MustCompile(`line (\d+): key (".*?") already set in map`)
	yamlLine      = regexp.MustCompile(`line (\d+): (.*)`)
)

// yamlError puts the line in front of an error of the YAML package.
func yamlError(path string, err error) string {
	msg := err.Error()
	if m := yamlDuplicate.FindStringSubmatch(msg); m != nil {
		return fmt.Sprintf("%s:%s: key %s is given twice", path, m[1], m[2])
	}
	if m := yamlLine.FindStringSubmatch(msg); m != nil {
		return fmt.Sprintf("%s:%s: not YAML: %s", path, m[1], m[2])
	}
	_, msg, _ = strings.Cut(msg, "yaml: ")
	return fmt.Sprintf("%s: not YAML: %s", path, msg)
}

// readBounded reads a regular file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.IsDir() {
		return nil, fmt.Errorf("%s is a directory", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, limit)
	}
	return b, nil
}
