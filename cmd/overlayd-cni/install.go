package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// installUsage is for people; runtimes give no arguments.
const installUsage = "usage: overlayd-cni install BIN-DIR [CONFLIST NET-DIR]: copies the plugin to BIN-DIR, and the network configuration to NET-DIR"

// installing is install as a command; it returns the exit code.
func installing(args []string, stderr io.Writer) int {
	if args[0] != "install" || len(args) != 2 && len(args) != 4 {
		fmt.Fprintln(stderr, installUsage)
		return 2
	}
	if err := install(args[1:]); err != nil {
		fmt.Fprintln(stderr, "overlayd-cni:", err)
		return 1
	}
	return 0
}

// install copies this program to where a runtime looks for plugins, and a network
// configuration to where it looks for those. An image without a shell can do it for its
// host. The program comes first: a configuration without it is an error for every container.
func install(args []string) error {
	path, err := exec.LookPath(os.Args[0]) // an image may have no /proc
	if err != nil {
		return err
	}
	self, err := os.Open(path)
	if err != nil {
		return err
	}
	defer self.Close()
	if len(args) == 1 {
		return replace(filepath.Join(args[0], "overlayd-cni"), 0o755, self)
	}
	b, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	var conf struct {
		Name    string
		Plugins []struct{ Type string }
	}
	if err := json.Unmarshal(b, &conf); err != nil {
		return fmt.Errorf("%s: %w", args[1], err)
	}
	if conf.Name == "" || len(conf.Plugins) == 0 || conf.Plugins[0].Type != "overlayd-cni" {
		return fmt.Errorf(`%s is not the configuration of a network by overlayd-cni: it needs a "name" and "plugins", the first with "type": "overlayd-cni"`, args[1])
	}
	if err := replace(filepath.Join(args[0], "overlayd-cni"), 0o755, self); err != nil {
		return err
	}
	return replace(filepath.Join(args[2], filepath.Base(args[1])), 0o644, bytes.NewReader(b))
}

// temporary is how the names of unfinished files begin; no container's does, and no
// runtime reads one.
const temporary = "."

// replace writes a file, whole or not at all.
func replace(file string, mode fs.FileMode, from io.Reader) error {
	f, err := os.CreateTemp(filepath.Dir(file), temporary)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync() // what is empty after a power failure could be neither undone nor run
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
