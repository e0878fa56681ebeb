package e2e_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// binaryVariable names a program to be tested instead of a fresh build.
const binaryVariable = "E2E_OVERLAYD"

// parallelLabs is how many tests run at once unless -parallel says otherwise.
// They wait most of the time, so it may exceed the number of processors.
const parallelLabs = 4

// overlayd is the path of the program under test.
var overlayd string

// builds is a directory for what tests build, gone when they end.
var builds string

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		fmt.Fprintln(os.Stderr, playRole(role, os.Args[1:]))
		os.Exit(99)
	}
	flag.Parse()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "overlayd-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	builds = dir
	// Tests also run the daemon as a user without privileges.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if overlayd = os.Getenv(binaryVariable); overlayd == "" {
		overlayd = filepath.Join(dir, "overlayd")
		if out, err := build(overlayd, ""); err != nil {
			fmt.Fprintf(os.Stderr, "build overlayd: %v\n%s", err, out)
			return 1
		}
	}
	if !given("test.parallel") {
		if err := flag.Set("test.parallel", fmt.Sprint(parallelLabs)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// build builds the daemon for an architecture, the machine's own if it is
// empty, in the form in which it is released.
func build(path, arch string) ([]byte, error) {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/overlayd/overlayd/cmd/overlayd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if arch != "" {
		cmd.Env = append(cmd.Env, "GOARCH="+arch)
	}
	return cmd.CombinedOutput()
}

// given tells whether a flag was set on the command line.
func given(name string) bool {
	found := false
	flag.Visit(func(f *flag.Flag) { found = found || f.Name == name })
	return found
}
