// Command gen writes docs/objects.md, the reference of all objects, from the
// declarations and comments in package api. With -check it writes nothing and
// fails if the file is not what it would write.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/debvisor/debvisor/e2e/lint"
)

func main() {
	check := flag.Bool("check", false, "compare instead of writing")
	out := flag.String("out", "", "the file to write or to compare; empty: docs/objects.md of this checkout")
	flag.Parse()
	if err := run(*check, *out); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(check bool, name string) error {
	root, err := lint.Root(".")
	if err != nil {
		return err
	}
	source, err := readAPI(filepath.Join(root, "api"))
	if err != nil {
		return err
	}
	page, err := source.page()
	if err != nil {
		return err
	}
	if name == "" {
		name = filepath.Join(root, "docs", "objects.md")
	}
	if !check {
		return os.WriteFile(name, page, 0o644)
	}
	stored, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if !bytes.Equal(stored, page) {
		return fmt.Errorf("%s is not what the comments in api say; run make generate and commit it", name)
	}
	return nil
}
