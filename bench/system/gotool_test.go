package system

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// proxy makes a module proxy of a directory (https://go.dev/ref/mod#goproxy-protocol) with
// releases of example.org/tool, each of which wants a version of Go, and lets the go
// program know no other.
func proxy(t *testing.T, releases ...[2]string) {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "example.org", "tool", "@v")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var list strings.Builder
	for _, r := range releases {
		version, goVersion := r[0], r[1]
		fmt.Fprintln(&list, version)
		mod := "module example.org/tool\n\ngo " + goVersion + "\n"
		write := func(name, text string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write(version+".info", fmt.Sprintf(`{"Version": %q, "Time": "2024-01-01T00:00:00Z"}`, version))
		write(version+".mod", mod)
		var z strings.Builder
		w := zip.NewWriter(&z)
		for name, text := range map[string]string{"go.mod": mod, "main.go": "package main\n\nfunc main() {}\n", "cmd/sign/main.go": "package main\n\nfunc main() {}\n"} {
			f, err := w.Create("example.org/tool@" + version + "/" + name)
			if err == nil {
				_, err = f.Write([]byte(text))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		write(version+".zip", z.String())
	}
	if err := os.WriteFile(filepath.Join(dir, "list"), []byte(list.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOPROXY", "file://"+root)
	t.Setenv("GONOPROXY", "none")
	t.Setenv("GOSUMDB", "off")
	t.Setenv("GOTOOLCHAIN", "local")
	t.Setenv("GOFLAGS", "-modcacherw")
	t.Setenv("GOMODCACHE", t.TempDir())
}

var exampleTool = goTool{name: "tool", module: "example.org/tool", packages: []string{"example.org/tool", "example.org/tool/cmd/sign"}}

// lines keeps what is logged.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) log(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, fmt.Sprintf(format, args...))
}

// Many ask at once, and it is installed once: the newest release that this Go can build.
func TestProgramsInstalled(t *testing.T) {
	proxy(t, [2]string{"v1.0.0", "1.20"}, [2]string{"v1.1.0", "1.20"}, [2]string{"v1.2.0-rc.1", "1.20"}, [2]string{"v1.2.0", "1.999"})
	var logged lines
	cfg := Config{Tools: filepath.Join(t.TempDir(), "tools"), Install: true, Log: logged.log}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			paths, version, err := exampleTool.programs(t.Context(), &cfg)
			if err != nil || version != "v1.1.0" {
				t.Errorf("installed %q (%v), want v1.1.0", version, err)
			}
			for _, name := range []string{"tool", "sign"} {
				if want := filepath.Join(cfg.Tools, name); paths[name] != want {
					t.Errorf("%s is %q, want %q", name, paths[name], want)
				} else if err := exec.Command(want).Run(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if len(logged.all) != 3 || !strings.Contains(logged.all[1], "requires go >= 1.999") || logged.all[2] != "installing tool (example.org/tool@v1.1.0)" {
		t.Errorf("logged %q, want the newest, why it cannot be had, and v1.1.0", logged.all)
	}

	// It stays without a network; when one of its programs is gone, both are missed.
	t.Setenv("GOPROXY", "off")
	if _, version, err := exampleTool.programs(t.Context(), &cfg); err != nil || version != "v1.1.0" {
		t.Errorf("the second time it is %q (%v), want v1.1.0", version, err)
	}
	if err := os.Remove(filepath.Join(cfg.Tools, "sign")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOMODCACHE", t.TempDir())
	_, _, err := exampleTool.programs(t.Context(), &cfg)
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "tool cannot be installed: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("without a network: %v, want a line that wraps ErrMissing", err)
	}
}

// Who does not wait for it any longer gets no installation, and no reason that it is
// missing.
func TestProgramsCanceled(t *testing.T) {
	proxy(t, [2]string{"v1.0.0", "1.20"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	cfg := Config{Tools: t.TempDir(), Install: true}
	if _, _, err := exampleTool.programs(ctx, &cfg); !errors.Is(err, context.Canceled) || errors.Is(err, ErrMissing) {
		t.Errorf("canceled: %v", err)
	}
	unlock, err := lockFile(t.Context(), filepath.Join(cfg.Tools, ".tool.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if _, _, err := exampleTool.programs(ctx, &cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled while another installs it: %v", err)
	}
}

func TestEarlier(t *testing.T) {
	for list, want := range map[string][]string{
		"":                          {},
		"m":                         {},
		"m v1.0.0":                  {},
		"m v1.0.0 v1.1.0":           {"v1.0.0"},
		"m v1.0.0 v1.1.0 v1.2.0-rc": {"v1.0.0"},
		"m v1.0.0 v1.1.0 v1.2.0 v1.3.0 v1.4.0 v1.5.0 v1.6.0": {"v1.5.0", "v1.4.0", "v1.3.0", "v1.2.0"},
	} {
		if got := earlier(strings.Fields(list)); !slices.Equal(got, want) {
			t.Errorf("earlier than the newest of %q: %q, want %q", list, got, want)
		}
	}
}
