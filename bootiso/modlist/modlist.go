// Package modlist is the list of kernel modules in a container VM's initial
// RAM disk: bootiso writes it and the tether loads by it. A line is
//
//	WHEN FILE NEEDS [PARAMETER...]
//
// where WHEN is "early" (before the root disk is looked for) or "late" (once
// the container's process runs), FILE is a path below the list's directory
// and NEEDS are the files of the modules it needs, separated by commas, or
// "-". A module stands after those that it needs.
package modlist

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"strings"
)

// Path of the list in the initial RAM disk; module files are below its
// directory.
const Path = "/lib/modules/vic.list"

// maxModules bounds a list.
const maxModules = 1024

// Module is one line of a list.
type Module struct {
	File       string // below the list's directory
	Needs      []string
	Parameters string // as finit_module(2) takes them
	Late       bool
}

// Write writes a list; what Parse would refuse is an error.
func Write(w io.Writer, modules []Module) error {
	var b strings.Builder
	for _, m := range modules {
		when, needs := "early", "-"
		if m.Late {
			when = "late"
		}
		if len(m.Needs) > 0 {
			needs = strings.Join(m.Needs, ",")
		}
		fmt.Fprintf(&b, "%s %s %s", when, m.File, needs)
		if m.Parameters != "" {
			b.WriteString(" " + m.Parameters)
		}
		b.WriteByte('\n')
	}
	if _, err := Parse(strings.NewReader(b.String())); err != nil {
		return err
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Parse reads a list. The error names the line.
func Parse(r io.Reader) ([]Module, error) {
	var list []Module
	early := make(map[string]bool)
	sc := bufio.NewScanner(r)
	for n := 1; sc.Scan(); n++ {
		f := strings.Fields(sc.Text())
		if len(f) == 0 {
			continue
		}
		if len(f) < 3 {
			return nil, fmt.Errorf("module list: line %d: fewer than three fields", n)
		}
		if len(list) == maxModules {
			return nil, fmt.Errorf("module list: line %d: more than %d modules", n, maxModules)
		}
		m := Module{File: f[1], Late: f[0] == "late", Parameters: strings.Join(f[3:], " ")}
		if f[0] != "early" && f[0] != "late" {
			return nil, fmt.Errorf("module list: line %d: %.20q is neither early nor late", n, f[0])
		}
		if path.Clean("/"+m.File) != "/"+m.File || strings.Contains(m.File, ",") {
			return nil, fmt.Errorf("module list: line %d: file %.80q is not a clean relative path", n, m.File)
		}
		if _, twice := early[m.File]; twice {
			return nil, fmt.Errorf("module list: line %d: %.80q stands twice", n, m.File)
		}
		if f[2] != "-" {
			m.Needs = strings.Split(f[2], ",")
		}
		for _, need := range m.Needs {
			isEarly, ok := early[need]
			if !ok {
				return nil, fmt.Errorf("module list: line %d: %.80q does not stand before it", n, need)
			}
			if !isEarly && !m.Late {
				return nil, fmt.Errorf("module list: line %d: early, but needs the late %.80q", n, need)
			}
		}
		early[m.File] = !m.Late
		list = append(list, m)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("module list: %w", err)
	}
	return list, nil
}
