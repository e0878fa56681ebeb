package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// The manual pages are made of the commands by a test, so that what makes them is not in
// the program:
//
//	go test ./cmd/overlayd -run TestManPages -man DIR
var manDir = flag.String("man", "", "directory for the manual pages")

func TestManPages(t *testing.T) {
	dir := *manDir
	if dir == "" {
		dir = t.TempDir()
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	root := newRootCommand(nil)
	root.DisableAutoGenTag = true // it has the date
	// The date in the head would make each build another one.
	date := time.Unix(0, 0).UTC()
	if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "overlayd", Manual: "overlayd", Date: &date}, dir); err != nil {
		t.Fatal(err)
	}
	var check func(c *cobra.Command)
	check = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" {
			return
		}
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			return
		}
		for _, part := range []string{".SH NAME", ".SH SYNOPSIS", c.Short} {
			if !strings.Contains(string(b), strings.ReplaceAll(part, "-", `\-`)) && !strings.Contains(string(b), part) {
				t.Errorf("%s has no %q", name, part)
			}
		}
		for _, sub := range c.Commands() {
			check(sub)
		}
	}
	check(root)
}
