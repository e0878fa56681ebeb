package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// pages are all that tell people what to type.
func pages(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"../../*.md", "../../docs/*.md", "../../examples/*/README.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	if len(all) < 8 {
		t.Fatalf("only %q", all)
	}
	return all
}

// foreignFlags are those of other programs that the pages name: flannel's, Weave's,
// podman's and Docker's, Kubernetes', the system's, this module's own tools'.
var foreignFlags = strings.Fields(`
	--etcd-endpoints --iface --iptables-forward-rules --public-ip
	--ipalloc-init --ipalloc-range --password
	--allow-direct-routing --bip --gateway --ipv6 --mtu --opt --rm
	--allocate-node-cidrs --from-literal --namespace
	--home-dir --net --no-create-home --now --preserve-status --purge --shell --system --user-group
	--paths --rounds`)

// TestDocsFlags: each flag on a page exists, or is another program's.
func TestDocsFlags(t *testing.T) {
	known := map[string]bool{"--help": true}
	var collect func(c *cobra.Command)
	collect = func(c *cobra.Command) {
		add := func(f *pflag.Flag) { known["--"+f.Name] = true }
		c.LocalFlags().VisitAll(add)
		c.PersistentFlags().VisitAll(add)
		for _, sub := range c.Commands() {
			collect(sub)
		}
	}
	collect(newRootCommand(nil))
	flag := regexp.MustCompile("(?m)(?:^|[ `\"(\\[{])(--[a-z][a-z0-9-]*)")
	found := 0
	for _, page := range pages(t) {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range flag.FindAllStringSubmatch(string(b), -1) {
			if found++; !known[m[1]] && !slices.Contains(foreignFlags, m[1]) {
				t.Errorf("%s: there is no flag %s", page, m[1])
			}
		}
	}
	if found < 100 {
		t.Errorf("only %d flags are found", found)
	}
}

// TestDocsConfig: each config file that is shown on a page is one.
func TestDocsConfig(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(command(t, nil, "key", "generate").stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	shown := 0
	for _, page := range pages(t) {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		text := ""
		for line := range strings.Lines(string(b) + "\n\n") {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "network: ") || text != "" && line != "" {
				text += line + "\n"
				continue
			}
			if text == "" {
				continue
			}
			file := filepath.Join(t.TempDir(), "overlayd.yaml")
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			if got := command(t, []string{"OVERLAYD_KEY_FILE=" + key}, "config", "check", file); got.code != 0 {
				t.Errorf("%s: %s\n%s", page, got.stderr, text)
			}
			shown, text = shown+1, ""
		}
	}
	if shown == 0 {
		t.Error("no page shows a config file")
	}
}
