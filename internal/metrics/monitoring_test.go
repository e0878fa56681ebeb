package metrics

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// monitoring are the files for people who watch nodes; they name our metrics, so they
// are tested here.
const monitoring = "../../examples/monitoring"

func readMonitoring(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(monitoring, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestNames: alerts and dashboard speak of metrics that there are, and the dashboard of
// all of them.
func TestNames(t *testing.T) {
	is := map[string]bool{}
	for line := range strings.Lines(scrape(t, snapshot(1))) {
		if f := strings.Fields(line); f[0] == "#" && f[1] == "TYPE" && strings.HasPrefix(f[2], "overlayd_") {
			is[f[2]] = true
			if f[3] == "histogram" {
				is[f[2]+"_bucket"] = true
			}
		}
	}
	name := regexp.MustCompile(`overlayd_[a-z_]+`)
	used := map[string]bool{}
	for _, file := range []string{"rules.yml", "rules_test.yml", "dashboard.json", "README.md"} {
		for _, n := range name.FindAllString(readMonitoring(t, file), -1) {
			used[n] = true
			if !is[n] && n != "overlayd_" && !strings.HasPrefix(n, "overlayd_peer_(") && n != "overlayd_peer_" {
				t.Errorf("%s speaks of %s, which there is not", file, n)
			}
		}
	}
	for n := range is {
		if !used[n] && !used[n+"_bucket"] && n != "overlayd_peers_without_series" {
			t.Errorf("nobody looks at %s", n)
		}
	}
}

// TestDashboard: it can be imported, no panel has the number or the place of another, and
// all ask the chosen Prometheus about the chosen nodes.
func TestDashboard(t *testing.T) {
	type place struct{ X, Y, W, H int }
	var d struct {
		Title         string
		SchemaVersion int
		Panels        []struct {
			ID      int
			Title   string
			GridPos place
			Targets []struct{ Expr string }
		}
		Templating struct{ List []struct{ Name string } }
	}
	if err := json.Unmarshal([]byte(readMonitoring(t, "dashboard.json")), &d); err != nil {
		t.Fatal(err)
	}
	if d.Title != "overlayd" || d.SchemaVersion == 0 || len(d.Panels) < 10 || len(d.Templating.List) != 3 {
		t.Errorf("%q, schema %d, %d panels, %d variables", d.Title, d.SchemaVersion, len(d.Panels), len(d.Templating.List))
	}
	for i, p := range d.Panels {
		if p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("%s: wider than the page", p.Title)
		}
		for _, o := range d.Panels[:i] {
			a, b := p.GridPos, o.GridPos
			if o.ID == p.ID || a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s: it has the number or the place of %s", p.Title, o.Title)
			}
		}
		for _, target := range p.Targets {
			if !strings.Contains(target.Expr, `{job="$job", instance=~"$instance"`) {
				t.Errorf("%s: not of the chosen nodes: %s", p.Title, target.Expr)
			}
		}
	}
}

// TestAlerts: Prometheus takes the rules, and they do what their tests say; each has one.
func TestAlerts(t *testing.T) {
	tests := readMonitoring(t, "rules_test.yml")
	for _, m := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(readMonitoring(t, "rules.yml"), -1) {
		if strings.Count(tests, m[1]) < 2 {
			t.Errorf("%s is not tested both ways", m[1])
		}
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("no promtool in PATH, which is part of Prometheus: the alerts are not tried")
	}
	for _, args := range [][]string{{"check", "config", "prometheus.yml"}, {"check", "rules", "rules.yml"}, {"test", "rules", "rules_test.yml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = monitoring
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// TestPromtoolTakesAScrape: Prometheus' own reader finds nothing wrong with a scrape.
func TestPromtoolTakesAScrape(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("no promtool in PATH, which is part of Prometheus")
	}
	var ours strings.Builder // the process collector's names are not ours to change
	for line := range strings.Lines(scrape(t, snapshot(2))) {
		if strings.Contains(line, "overlayd_") {
			ours.WriteString(line)
		}
	}
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(ours.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
