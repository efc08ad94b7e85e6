//go:build linux

// Treelist prints one line of JSON for every file of a directory tree, for
// comparison with another tree. See the package treecmp.
//
//	treelist [-under dir] root
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/vicsdk/vic-go/internal/treecmp"
)

func main() {
	under := flag.String("under", ".", "list the tree in this `directory` of root, with paths relative to it")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: treelist [-under dir] root")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := list(flag.Arg(0), *under); err != nil {
		fmt.Fprintln(os.Stderr, "treelist:", err)
		os.Exit(1)
	}
}

func list(root, under string) error {
	entries, err := treecmp.List(root)
	if err != nil {
		return err
	}
	entries = treecmp.Under(entries, under)
	if len(entries) == 0 {
		return fmt.Errorf("%s has no %s", root, under)
	}
	return treecmp.Encode(os.Stdout, entries)
}
