package count

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
)

// tracefs is where the kernel describes its tracepoints.
var tracefs = []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"}

// format is how the record of a tracepoint looks.
type format struct {
	event   string
	offsets map[string]int16
	text    []byte
}

var (
	fieldRule  = regexp.MustCompile(`(?m)field:.*?([A-Za-z0-9_]+)(?:\[[^\]]*\])?;\s*offset:(\d+);`)
	symbolRule = regexp.MustCompile(`\{ (\d+), "(\w+)" \}`)
)

func readFormat(group, event string) (f format, err error) {
	f = format{event: group + ":" + event, offsets: map[string]int16{}}
	for _, root := range tracefs {
		if f.text, err = os.ReadFile(filepath.Join(root, "events", group, event, "format")); err == nil {
			break
		}
	}
	if err != nil {
		return f, err
	}
	for _, m := range fieldRule.FindAllSubmatch(f.text, -1) {
		n, err := strconv.ParseInt(string(m[2]), 10, 16)
		if err != nil {
			return f, fmt.Errorf("%s: %w", f.event, err)
		}
		f.offsets[string(m[1])] = int16(n)
	}
	return f, nil
}

// at is where a field is.
func (f *format) at(field string) (int16, error) {
	n, ok := f.offsets[field]
	if !ok {
		return 0, fmt.Errorf("%s has no field %s", f.event, field)
	}
	return n, nil
}

// symbols are the names that a tracepoint prints for the numbers of a field.
func (f *format) symbols() map[uint32]string {
	names := make(map[uint32]string)
	for _, m := range symbolRule.FindAllSubmatch(f.text, -1) {
		if n, err := strconv.ParseUint(string(m[1]), 10, 32); err == nil {
			names[uint32(n)] = string(m[2])
		}
	}
	return names
}
