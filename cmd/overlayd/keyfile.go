package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxKeyFile is more than any key file needs.
const maxKeyFile = 64 << 10

// readKeyFile reads the keys of a cluster: one per line in base64 or
// hexadecimal, 16, 24 or 32 bytes long (AES-128, -192 or -256). Empty lines
// and what follows a '#' are ignored. The first key is used for sending, all
// are accepted. Errors never show a key.
func readKeyFile(path string) ([][]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.IsDir() {
		return nil, fmt.Errorf("%s is a directory: give the name of a file in it", path)
	}
	if fi.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("%s is open to everybody (mode %04o): run \"chmod 600 %s\"", path, fi.Mode().Perm(), path)
	}
	b, err := readBounded(path, maxKeyFile)
	if err != nil {
		return nil, err
	}
	return parseKeys(path, bytes.NewReader(b))
}

// parseKeys reads the lines of a key file, which errors call name.
func parseKeys(name string, r io.Reader) ([][]byte, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var keys [][]byte
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		key, ok := decodeKey(line)
		if !ok {
			return nil, fmt.Errorf("%s:%d: not a key: write 16, 24 or 32 bytes in base64 or hexadecimal", name, n)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s holds no key: write 16, 24 or 32 bytes in base64 or hexadecimal on a line", name)
	}
	return keys, nil
}

// decodeKey tries hexadecimal first: the only text that is a key in both forms
// has 32 characters, and a random base64 text of that length has a digit or a
// letter beyond f but once in 2^49.
func decodeKey(line string) ([]byte, bool) {
	if b, err := hex.DecodeString(line); err == nil && keyLength(len(b)) {
		return b, true
	}
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if b, err := enc.DecodeString(line); err == nil && keyLength(len(b)) {
			return b, true
		}
	}
	return nil, false
}

func keyLength(n int) bool { return n == 16 || n == 24 || n == 32 }
