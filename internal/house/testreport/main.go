// Command testreport reads what "go test -json" prints, and prints what a person
// wants to see of it: a line per package, all that a failed test has said, and
// which tests were skipped. It ends with exit code 1 if something has failed, or
// if a test was skipped that is not listed with -may-skip.
//
//	go test -json ./... | go run ./internal/house/testreport -may-skip TestA,TestB
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	maySkip := flag.String("may-skip", "", "tests that may be skipped, separated by commas")
	flag.Parse()
	ok, err := report(os.Stdin, os.Stdout, strings.Split(*maySkip, ","))
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// event is one line of the input (go doc test2json). A test's name has slashes
// between it and its subtests; without a name the event is the package's.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// id names a test among all packages.
type id struct{ pkg, test string }

// under tells whether i is the test other or one of its subtests.
func (i id) under(other id) bool {
	return i.pkg == other.pkg && (i.test == other.test || strings.HasPrefix(i.test, other.test+"/"))
}

// report tells whether all is well.
func report(in io.Reader, out io.Writer, maySkip []string) (ok bool, err error) {
	ok = true
	said := map[id]string{} // by tests that have not passed
	passed, ran := 0, 0
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				fmt.Fprint(out, line) // not the go command's: the shell's, for example
				continue
			}
			who := id{e.Package, e.Test}
			switch {
			case e.Action == "output" || e.Action == "build-output":
				said[who] += e.Output
			case e.Action == "build-fail":
				fmt.Fprint(out, said[who])
				ok = false
			case e.Action == "fail":
				ok = false
				fmt.Fprint(out, tail(said[who]))
				delete(said, who)
			case e.Action == "skip" && e.Test != "":
				allowed := slices.Contains(maySkip, e.Test)
				if !allowed {
					ok = false
				}
				fmt.Fprintf(out, "skipped (allowed: %t): %s\n%s", allowed, e.Package, said[who])
				delete(said, who)
			case e.Action == "pass" && e.Test != "":
				passed++
				delete(said, who)
			case e.Action == "pass":
				ran++
				fmt.Fprint(out, lastLine(said[who]))
				delete(said, who)
			}
			if e.Action == "fail" && e.Test != "" && !strings.Contains(e.Test, "/") {
				// Subtests that had not ended say what they know, too.
				for other, text := range said {
					if other != who && other.under(who) {
						fmt.Fprint(out, tail(text))
						delete(said, other)
					}
				}
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return false, err
		}
	}
	fmt.Fprintf(out, "%d tests and subtests in %d packages passed\n", passed, ran)
	if ran == 0 {
		fmt.Fprintln(out, "no package was tested")
		ok = false
	}
	return ok, nil
}

// maxOutput is how much of a failed test's output is worth a look, in bytes.
const maxOutput = 32 << 10

// tail is the end of a text, from the beginning of a line.
func tail(text string) string {
	if len(text) <= maxOutput {
		return text
	}
	_, text, _ = strings.Cut(text[len(text)-maxOutput:], "\n")
	return "[...]\n" + text
}

// lastLine is the last line of a text.
func lastLine(text string) string {
	i := strings.LastIndexByte(strings.TrimSuffix(text, "\n"), '\n')
	return text[i+1:]
}
