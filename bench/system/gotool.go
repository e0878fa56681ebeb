package system

import (
	"bufio"
	"cmp"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// goTool is a Go module with the programs of a contender. They are not among our own
// requirements, which would make them everybody's.
type goTool struct {
	name     string // that people know it by
	module   string
	packages []string // of the programs, each named like its program
}

// olderTries is how many releases before the newest are tried. The newest may want a
// newer Go than is here, or modules that the proxy does not have.
const olderTries = 4

// programs is where the tool's programs are, by their names, and the version that all of
// them are of. If they are not in cfg.Tools, the newest release is installed there, if
// cfg.Install allows it; the error wraps ErrMissing if that cannot be done.
func (t *goTool) programs(ctx context.Context, cfg *Config) (paths map[string]string, version string, err error) {
	dir, err := filepath.Abs(cmp.Or(cfg.Tools, "."))
	if err != nil {
		return nil, "", err
	}
	if cfg.Tools == "" {
		return nil, "", fmt.Errorf("%w: %s needs a directory to be installed in", ErrMissing, t.name)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, "", err
	}
	unlock, err := lockFile(ctx, filepath.Join(dir, "."+t.name+".lock"))
	if err != nil {
		return nil, "", fmt.Errorf("%s: wait for its installation: %w", t.name, err)
	}
	defer unlock()
	if version, err = t.installed(dir); err != nil {
		if err := t.install(ctx, cfg, dir); err != nil {
			return nil, "", err
		}
		if version, err = t.installed(dir); err != nil {
			return nil, "", fmt.Errorf("%s was installed, but: %w", t.name, err)
		}
	}
	paths = map[string]string{}
	for _, p := range t.packages {
		paths[path.Base(p)] = filepath.Join(dir, path.Base(p))
	}
	return paths, version, nil
}

// installed is the version of the programs in a directory.
func (t *goTool) installed(dir string) (version string, err error) {
	for _, p := range t.packages {
		info, err := buildinfo.ReadFile(filepath.Join(dir, path.Base(p)))
		switch {
		case err != nil:
			return "", err
		case info.Path != p:
			return "", fmt.Errorf("%s is %s", path.Base(p), info.Path)
		case version != "" && info.Main.Version != version:
			return "", fmt.Errorf("%s is %s, not %s", path.Base(p), info.Main.Version, version)
		}
		version = info.Main.Version
	}
	return version, nil
}

// install puts the newest release that can be had into a directory.
func (t *goTool) install(ctx context.Context, cfg *Config, dir string) error {
	if !cfg.Install {
		return fmt.Errorf("%w: %s is not installed, and nothing is to be", ErrMissing, t.name)
	}
	missing := func(why string) error { return fmt.Errorf("%w: %s cannot be installed: %s", ErrMissing, t.name, why) }
	program, err := exec.LookPath("go")
	if err != nil {
		return missing("there is no go program")
	}
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir = "/" // outside any module: what is required there is of no concern
		cmd.Env = append(environ(), "CGO_ENABLED=0", "GOBIN="+dir)
		cmd.WaitDelay = 5 * time.Second // a compiler may outlive go
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		switch {
		case ctx.Err() != nil:
			return "", fmt.Errorf("install %s: %w", t.name, context.Cause(ctx))
		case err != nil:
			return "", errors.New(cmp.Or(complaint(stderr.String()), err.Error()))
		}
		return string(out), nil
	}
	at := func(version string) error {
		cfg.log("installing %s (%s@%s)", t.name, t.module, version)
		args := []string{"install"}
		for _, p := range t.packages {
			args = append(args, p+"@"+version)
		}
		_, err := run(args...)
		return err
	}
	newest := at("latest")
	if newest == nil || ctx.Err() != nil {
		return newest
	}
	out, err := run("list", "-m", "-versions", t.module)
	if ctx.Err() != nil {
		return err
	}
	if err != nil { // there is no network, most probably
		return missing(newest.Error())
	}
	failed := newest
	for _, version := range earlier(strings.Fields(out)) {
		cfg.log("%v", failed)
		if failed = at(version); failed == nil || ctx.Err() != nil {
			return failed
		}
	}
	return missing(newest.Error())
}

// earlier are the releases to try when the newest cannot be installed, newest first, of
// the answer of "go list -m -versions": the module and its versions, oldest first.
func earlier(list []string) []string {
	releases := slices.DeleteFunc(list[min(1, len(list)):], func(v string) bool { return strings.Contains(v, "-") })
	slices.Reverse(releases)
	releases = releases[min(1, len(releases)):]
	return releases[:min(olderTries, len(releases))]
}

// complaint is the first line of what go said that tells what is wrong.
func complaint(stderr string) string {
	sc := bufio.NewScanner(strings.NewReader(stderr))
	for sc.Scan() {
		line := strings.TrimPrefix(strings.TrimSpace(sc.Text()), "go: ")
		if line != "" && !strings.HasPrefix(line, "downloading ") && !strings.HasPrefix(line, "finding ") {
			return line
		}
	}
	return ""
}

// log says what takes long.
func (cfg *Config) log(format string, args ...any) {
	if cfg.Log != nil {
		cfg.Log(format, args...)
	}
}

// lockFile holds a file that only one may hold at a time: of the goroutines that open
// systems at once, and of two benchmarks with the same directory.
func lockFile(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}
