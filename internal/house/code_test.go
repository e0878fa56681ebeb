package house

import (
	"fmt"
	"go/ast"
	"strings"
)

// calls visits every call of the file.
func (s *source) calls(visit func(call *ast.CallExpr)) {
	ast.Inspect(s.tree, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			visit(call)
		}
		return true
	})
}

// callee is the package and the name of a called function; the package is "" for
// one that is called by its name alone.
func (s *source) callee(call *ast.CallExpr) (pkg, name string) {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return "", f.Name
	case *ast.SelectorExpr:
		if x, ok := f.X.(*ast.Ident); ok {
			for _, i := range s.imports {
				if i.name == x.Name {
					return i.path, f.Sel.Name
				}
			}
		}
	}
	return "?", ""
}

// panics are the places where a library may panic.
var panics = map[string]string{
	"internal/kernel/lab/namespace.go": "passes on a panic of the caller's function from another goroutine",
}

// quiet holds that a library neither ends the process nor prints, nor does
// anything before it is called.
func quiet(s *source) (bad []string) {
	if s.test || s.command() {
		return nil
	}
	s.calls(func(call *ast.CallExpr) {
		pkg, name := s.callee(call)
		say := func(why string) {
			bad = append(bad, fmt.Sprintf("line %d: calls %s: %s", s.line(call), name, why))
		}
		switch {
		case pkg == "os" && name == "Exit":
			say("a library does not end the process")
		case pkg == "log" && name != "New":
			say("a library logs to the *slog.Logger that it was given")
		case pkg == "fmt" && strings.HasPrefix(name, "Print"), pkg == "" && (name == "print" || name == "println"):
			say("a library does not print")
		case pkg == "" && name == "panic" && panics[s.path] == "":
			say("a library returns errors")
		}
	})
	for _, d := range s.tree.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			bad = append(bad, fmt.Sprintf("line %d: init: a library does nothing before it is called", s.line(f)))
		}
	}
	return bad
}

// sleepless holds that tests wait for conditions, not for time to pass, unless
// it is the time of a synctest bubble.
func sleepless(s *source) (bad []string) {
	if !s.forTests() || s.nameOf("testing/synctest") != "" {
		return nil
	}
	s.calls(func(call *ast.CallExpr) {
		if pkg, name := s.callee(call); pkg == "time" && name == "Sleep" {
			bad = append(bad, fmt.Sprintf("line %d: time.Sleep: wait for a condition, or use testing/synctest", s.line(call)))
		}
	})
	return bad
}

// reminders are the words that mark what is not done. They are put together
// here, so that this file has none of them.
var reminders = []string{"TO" + "DO", "FIX" + "ME", "XX" + "X"}

// finished holds that nothing is left to be done in a comment.
func finished(s *source) (bad []string) {
	for _, group := range s.tree.Comments {
		for _, c := range group.List {
			for _, word := range reminders {
				if strings.Contains(c.Text, word) {
					bad = append(bad, fmt.Sprintf("line %d: %s: do it, or file an issue", s.line(c), word))
				}
			}
		}
	}
	return bad
}

// maxLines is where a file is looked at for its second idea.
const maxLines = 600

// short holds that no file is too long.
func short(s *source) []string {
	if s.lines <= maxLines {
		return nil
	}
	return []string{fmt.Sprintf("%d lines: at most %d; look for the second idea in it", s.lines, maxLines)}
}

// documented holds that every exported name of a library has a comment, its own
// or that of the group it is declared in. Methods of unexported types are left
// out.
func documented(s *source) (bad []string) {
	if s.test || s.command() {
		return nil
	}
	check := func(n ast.Node, name *ast.Ident, docs ...*ast.CommentGroup) {
		if !name.IsExported() {
			return
		}
		for _, d := range docs {
			if d != nil {
				return
			}
		}
		bad = append(bad, fmt.Sprintf("line %d: %s has no comment", s.line(n), name.Name))
	}
	for _, d := range s.tree.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil || ast.IsExported(receiver(d.Recv.List[0].Type)) {
				check(d, d.Name, d.Doc)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					check(spec, spec.Name, d.Doc, spec.Doc, spec.Comment)
				case *ast.ValueSpec:
					for _, name := range spec.Names {
						check(spec, name, d.Doc, spec.Doc, spec.Comment)
					}
				}
			}
		}
	}
	return bad
}

// receiver is the name of a method's type.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}
