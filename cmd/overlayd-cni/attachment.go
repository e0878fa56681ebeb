package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// attachment is what is remembered of an interface from ADD to DEL: what it takes
// to undo it, also when the node is down or has other subnets by then.
type attachment struct {
	ContainerID string         `json:"containerID"`
	IfName      string         `json:"ifName"`
	Netns       string         `json:"netns"`
	Subnets     []netip.Prefix `json:"subnets"`  // the node's, at ADD
	Delegate    object         `json:"delegate"` // what the delegate was given
}

// attachments are those of one network: a directory with one file for each.
type attachments struct{ dir string }

func attachmentsOf(stateDir, network string) attachments {
	return attachments{filepath.Join(stateDir, network)}
}

// file is where an attachment is. Neither part has a slash, and the name of an
// interface has no colon: skel checks both.
func (a attachments) file(containerID, ifName string) string {
	return filepath.Join(a.dir, containerID+":"+ifName)
}

// save writes an attachment, whole or not at all.
func (a attachments) save(at *attachment) error {
	b, err := json.Marshal(at)
	if err != nil {
		return fmt.Errorf("attachment: %w", err)
	}
	if err := os.MkdirAll(a.dir, 0o700); err != nil {
		return fmt.Errorf("attachment: %w", err)
	}
	if err := replace(a.file(at.ContainerID, at.IfName), 0o600, bytes.NewReader(b)); err != nil {
		return fmt.Errorf("attachment: %w", err)
	}
	return nil
}

// load returns nil if there is no such attachment.
func (a attachments) load(containerID, ifName string) (*attachment, error) {
	return a.read(a.file(containerID, ifName))
}

func (a attachments) read(file string) (*attachment, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("attachment: %w", err)
	}
	at := new(attachment)
	if err := json.Unmarshal(b, at); err != nil {
		return nil, fmt.Errorf("attachment %s: %w", file, err)
	}
	return at, nil
}

// remove forgets an attachment, which need not exist.
func (a attachments) remove(at *attachment) error {
	err := os.Remove(a.file(at.ContainerID, at.IfName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("attachment: %w", err)
	}
	return nil
}

// all returns the attachments that can be read, and why others cannot.
func (a attachments) all() ([]*attachment, error) {
	entries, err := os.ReadDir(a.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("attachments: %w", err)
	}
	var list []*attachment
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), temporary) {
			continue
		}
		at, err := a.read(filepath.Join(a.dir, e.Name()))
		if err != nil {
			errs = append(errs, err)
		} else if at != nil {
			list = append(list, at)
		}
	}
	return list, errors.Join(errs...)
}
