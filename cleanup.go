package overlayd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/overlayd/overlayd/internal/control"
	"github.com/overlayd/overlayd/internal/kernel"
)

// CleanupConfig says where a node that is gone has worked. Empty fields mean
// the defaults of Config, except for SubnetFile.
type CleanupConfig struct {
	RunDir string
	// SubnetFile is Config.SubnetFile. Empty: RunDir/subnet.env.
	SubnetFile string
	Device     string
}

// Cleanup removes what a node left behind that was killed: its device, routes,
// socket and subnet.env. Its identity and its lease stay. It returns what it
// has removed, in words, also along with an error. It refuses, with an error
// that tells, while a node runs in RunDir.
func Cleanup(cfg CleanupConfig) (removed []string, err error) {
	fill(&cfg.RunDir, DefaultRunDir)
	fill(&cfg.Device, DefaultDevice)
	fill(&cfg.SubnetFile, filepath.Join(cfg.RunDir, "subnet.env"))
	if _, err := os.Stat(cfg.RunDir); err == nil {
		return cleanupLocked(cfg)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cleanup: %w", err)
	}
	// No node has run there, or everything is gone but the kernel's part.
	return cleanupAll(cfg)
}

// cleanupLocked cleans up while it keeps nodes from starting.
func cleanupLocked(cfg CleanupConfig) (removed []string, err error) {
	lock, err := control.Acquire(cfg.RunDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	return cleanupAll(cfg)
}

func cleanupAll(cfg CleanupConfig) (removed []string, err error) {
	k, err := kernel.Open(kernel.Config{})
	if err != nil {
		return nil, err
	}
	removed, err = k.Cleanup(cfg.Device)
	err = errors.Join(err, k.Close())
	for _, file := range []string{cfg.SubnetFile, filepath.Join(cfg.RunDir, control.SocketName)} {
		switch rmErr := os.Remove(file); {
		case rmErr == nil:
			removed = append(removed, "file "+file)
		case !errors.Is(rmErr, fs.ErrNotExist):
			err = errors.Join(err, fmt.Errorf("cleanup: %w", rmErr))
		}
	}
	return removed, err
}
