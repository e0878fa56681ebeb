// Package house keeps the house in order: its tests read every Go file of the
// module and hold it to the rules of CONTRIBUTING.md, of which most say who may
// import whom. It has no code of its own.
//
// The files are parsed, not compiled, so that those for other systems and those
// behind a build tag are read too.
package house
