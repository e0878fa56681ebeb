package e2e_test

import (
	"debug/elf"
	"os"
	"path/filepath"
	"testing"
)

// TestBinary checks what is released: its size, that it needs no libraries,
// and that it builds for the other architecture too.
func TestBinary(t *testing.T) {
	const limit = 20 << 20
	dir := t.TempDir()
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		path := filepath.Join(dir, arch)
		if out, err := build(path, arch); err != nil {
			t.Fatalf("%s: %v\n%s", arch, err, out)
		}
		info, err := os.Stat(path)
		must(t, err)
		if info.Size() > limit {
			t.Errorf("%s: %d bytes, want at most %d", arch, info.Size(), limit)
		}
		f, err := elf.Open(path)
		must(t, err)
		if f.Machine != machine {
			t.Errorf("%s: built for %v", arch, f.Machine)
		}
		if libs, err := f.ImportedLibraries(); err != nil || len(libs) > 0 {
			t.Errorf("%s: needs %q, %v", arch, libs, err)
		}
		must(t, f.Close())
	}
}
