package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// The pages under docs say what they show in blocks such as
//
//	<!-- on host2, exit 1 -->
//	```console
//	$ overlayd ping host4
//	4 sent, 0 received, 100% loss
//	```
//
// and this is run as it is written, by a shell on that host of the lab in
// docslab_test.go ("repo": in the root of this module, without a lab). Without the
// comment it is host1, and the exit code 0. Lines of output are found in the order
// shown; "..." stands for anything, within a line or by itself. Runs of spaces, and
// what differs from one run to the next (see variable), count for nothing.

// docPatience is how long a command may take, and one that only looks to show what the
// page shows: what it shows comes about meanwhile.
const docPatience = 30 * time.Second

// docCommand is one command of a page.
type docCommand struct {
	page string
	line int
	host string
	exit int
	text string
	want []string
}

func (c docCommand) String() string { return fmt.Sprintf("%s:%d: %s", c.page, c.line, c.text) }

var (
	docMarker = regexp.MustCompile(`^<!-- on (\w+)(?:, exit (\d))? -->$`)
	// docReads are commands that change nothing, and so may be repeated.
	docReads = regexp.MustCompile(`^cat |^overlayd (status|peers|drops|routes|lease list|key list|ping|config check|version)\b`)
)

// docCommands reads the commands of a page.
func docCommands(t *testing.T, path string) (all []docCommand) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	next := docCommand{page: filepath.Base(path), host: "host1"}
	inside := false
	for i, line := range strings.Split(string(b), "\n") {
		switch m := docMarker.FindStringSubmatch(line); {
		case m != nil:
			next.host, next.exit = m[1], 0
			if m[2] != "" {
				next.exit = int(m[2][0] - '0')
			}
		case line == "```console":
			inside = true
		case line == "```" && inside:
			inside = false
			next.host, next.exit = "host1", 0
		case !inside:
		case strings.HasPrefix(line, "$ "):
			c := next
			c.line, c.text = i+1, strings.TrimPrefix(line, "$ ")
			all = append(all, c)
		case len(all) == 0:
			t.Fatalf("%s:%d: output without a command", next.page, i+1)
		case strings.HasPrefix(line, "> "): // the command goes on
			all[len(all)-1].text += "\n" + strings.TrimPrefix(line, "> ")
		default:
			all[len(all)-1].want = append(all[len(all)-1].want, line)
		}
	}
	return all
}

// variable is what differs from one run to the next: lengths and points of time,
// amounts, identities, counters that are not 0.
var variable = regexp.MustCompile(`\b(\d+(\.\d+)? ?(ns|µs|ms|s|m|h|B|KiB|MiB|GiB)(\d+(\.\d+)?s)?( ago)?|\d\d:\d\d:\d\d|[0-9a-f]{32}|[1-9]\d* in a row)(\b|$)|\b[1-9]\d*$`)

// settled is a line without what is variable in it.
func settled(line string) string {
	line = strings.Join(strings.Fields(line), " ")
	return variable.ReplaceAllString(line, "~")
}

// shows tells which line of want is not found in the output, in order.
func shows(output string, want []string) error {
	lines := strings.Split(output, "\n")
	for _, w := range want {
		if strings.TrimSpace(w) == "..." || strings.TrimSpace(w) == "" {
			continue
		}
		parts := strings.Split(settled(w), "...")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		re := regexp.MustCompile("^" + strings.Join(parts, ".*") + "$")
		at := slices.IndexFunc(lines, func(l string) bool { return re.MatchString(settled(l)) })
		if at < 0 {
			return fmt.Errorf("does not show %q", w)
		}
		lines = lines[at+1:]
	}
	return nil
}

// TestShows holds the comparison to what the pages rely on.
func TestShows(t *testing.T) {
	const out = "PEER   PATH    FOR\nhost2  direct  3.9s\ndrops  tx_no_owner 0\nlast\n"
	for want, ok := range map[string]bool{
		"host2 direct 17ms":           true,
		"host2 ... 17ms":              true,
		"PEER PATH FOR\n...\nlast":    true,
		"last\nPEER PATH FOR":         false,
		"host2 kernel-vxlan 3.9s":     false,
		"host2 direct":                false,
		"drops tx_no_owner 1":         false,
		"drops tx_no_owner 0\n...":    true,
		"host2 direct 3.9s\nhost2...": false,
	} {
		if err := shows(out, strings.Split(want, "\n")); (err == nil) != ok {
			t.Errorf("%q: %v", want, err)
		}
	}
}

// TestDocs runs the commands of the pages under docs.
func TestDocs(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("../../docs/*.md")
	must(t, err)
	byHost := map[string][]docCommand{}
	for _, page := range pages {
		for _, c := range docCommands(t, page) {
			byHost[c.host] = append(byHost[c.host], c)
		}
	}
	if len(byHost) == 0 {
		t.Fatal("the pages have no commands")
	}
	d := newDocsLab(t)
	var all sync.WaitGroup
	for _, commands := range byHost {
		all.Go(func() {
			for _, c := range commands {
				if program, _, _ := strings.Cut(c.text, " "); program != "overlayd" && !installed(program) {
					if os.Getenv("CI") != "" {
						t.Errorf("%v: not run: there is no %s", c, program)
					}
					t.Logf("%v: not run: there is no %s", c, program)
				} else if err := c.check(t, d); err != nil {
					t.Errorf("%v (on %s): %v", c, c.host, err)
				}
			}
		})
	}
	all.Wait()
}

func installed(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// check runs a command, more than once if it only looks, and compares what it shows
// and its exit code.
func (c docCommand) check(t *testing.T, d *docsLab) error {
	again := time.NewTicker(700 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(docPatience); ; <-again.C {
		out, code, err := d.run(t, c)
		if err == nil {
			if err = shows(out, c.want); code != c.exit {
				err = fmt.Errorf("exit code %d, want %d", code, c.exit)
			}
		}
		if err == nil || !docReads.MatchString(c.text) || time.Now().After(deadline) {
			if err != nil {
				err = fmt.Errorf("%w\n%s", err, out)
			}
			return err
		}
	}
}

// TestDocsPrograms builds the programs that the pages have in blocks of Go.
func TestDocsPrograms(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("../../docs/*.md")
	must(t, err)
	built := 0
	for _, page := range pages {
		b, err := os.ReadFile(page)
		must(t, err)
		for i, block := range strings.Split(string(b), "\n```go\n")[1:] {
			program, _, _ := strings.Cut(block, "\n```\n")
			file := filepath.Join(t.TempDir(), fmt.Sprintf("program%d.go", i))
			must(t, os.WriteFile(file, []byte(program), 0o644))
			cmd := exec.Command("go", "vet", file)
			cmd.Dir = "../.."
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s, program %d: %v\n%s", filepath.Base(page), i+1, err, out)
			}
			built++
		}
	}
	if built == 0 {
		t.Error("the pages have no programs")
	}
}
