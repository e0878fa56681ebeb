package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/overlayd/overlayd"
)

func TestKeyGenerate(t *testing.T) {
	seen := map[string]bool{}
	for range 3 {
		got := command(t, nil, "key", "generate")
		keys, err := parseKeys("output", strings.NewReader(got.stdout))
		if err != nil || len(keys) != 1 || len(keys[0]) != 32 || got.code != 0 || seen[got.stdout] {
			t.Errorf("%+v: %v", got, err)
		}
		seen[got.stdout] = true
	}
}

// TestKeepKeys: what a change writes is read again by the next start, closed to
// others, and whole at any time.
func TestKeepKeys(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "key")
	if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := [][]byte{bytes.Repeat([]byte{1}, 16), bytes.Repeat([]byte{2}, 24), bytes.Repeat([]byte{3}, 32)}
	if err := keepKeys(file)(want); err != nil {
		t.Fatal(err)
	}
	got, err := readKeyFile(file)
	if err != nil || len(got) != 3 {
		t.Fatal(got, err)
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("key %d: %x", i, got[i])
		}
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", fi.Mode(), err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("files left: %v", left)
	}
	if err := keepKeys(filepath.Join(dir, "none", "key"))(want); err == nil {
		t.Error("no error for a directory that does not exist")
	}
}

func TestKeyChanges(t *testing.T) {
	d := startDaemon(t, "full")
	key := bytes.Repeat([]byte{7}, 32)
	file := filepath.Join(t.TempDir(), "key")
	if err := keepKeys(file)([][]byte{key}); err != nil {
		t.Fatal(err)
	}
	d.set("POST /v1/keys", document(t, "keys-full"))
	if got := command(t, nil, "key", "add", file, "--run-dir", d.dir); got.code != 0 || got.stdout != overlayd.KeyID(key)+" is accepted\n" {
		t.Errorf("add: %+v", got)
	}
	for _, verb := range []string{"use", "remove"} {
		if got := command(t, nil, "key", verb, "0011", "--run-dir", d.dir); got.code != 0 || got.stdout != "" || got.stderr != "" {
			t.Errorf("%s: %+v", verb, got)
		}
	}
	for args, code := range map[string]int{
		"key": 2, "key add": 2, "key use": 2, "key remove a b": 2, "key add " + filepath.Join(d.dir, "none"): 1,
	} {
		if got := command(t, nil, append(strings.Fields(args), "--run-dir", d.dir)...); got.code != code || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%s: %+v", args, got)
		}
	}
}
