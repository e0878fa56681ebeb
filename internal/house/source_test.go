package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// module is the path of this module.
const module = "github.com/overlayd/overlayd"

// source is one Go file.
type source struct {
	path    string // from the module's root, with slashes
	dir     string // of path; "." for the root package
	test    bool   // ends in _test.go
	pkg     string // the name in its package clause
	lines   int
	imports []imported
	fset    *token.FileSet
	tree    *ast.File
}

// imported is one import of a file.
type imported struct {
	path string
	name string // in this file
	line int
}

// command tells whether the file belongs to a program.
func (s *source) command() bool { return s.pkg == "main" }

// forTests tells whether the file is a test, or in a package that exists for
// tests, whose name says so.
func (s *source) forTests() bool {
	return s.test || strings.HasSuffix(s.dir, "test")
}

// nameOf returns the name by which the file knows a package, "" if it does not
// import it.
func (s *source) nameOf(pkg string) string {
	for _, i := range s.imports {
		if i.path == pkg {
			return i.name
		}
	}
	return ""
}

// line is the line of a node.
func (s *source) line(n ast.Node) int { return s.fset.Position(n.Pos()).Line }

// parse reads the text of a file; name is its path from the module's root.
func parse(t *testing.T, name, text string) *source {
	t.Helper()
	s := &source{path: name, dir: path.Dir(name), test: strings.HasSuffix(name, "_test.go"), fset: token.NewFileSet()}
	tree, err := parser.ParseFile(s.fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	s.tree, s.pkg = tree, tree.Name.Name
	s.lines = strings.Count(text, "\n")
	for _, spec := range tree.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		i := imported{path: p, name: path.Base(p), line: s.line(spec)}
		if spec.Name != nil {
			i.name = spec.Name.Name
		}
		s.imports = append(s.imports, i)
	}
	return s
}

// moduleRoot is the directory of go.mod.
func moduleRoot(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatal(err)
	}
	return root
}

// sources reads the whole module.
func sources(t *testing.T) []*source {
	t.Helper()
	root := moduleRoot(t)
	var all []*source
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		// The go command leaves these out as well (go help packages).
		hidden := p != root && strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "_")
		if d.IsDir() && (hidden || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || hidden || filepath.Ext(p) != ".go" {
			return nil
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		all = append(all, parse(t, filepath.ToSlash(name), string(text)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
