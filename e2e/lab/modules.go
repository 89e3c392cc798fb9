package lab

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// moduleTree is the modules of one kernel by name, with "-" written as "_".
type moduleTree map[string]string

func findModules(root string) (moduleTree, error) {
	tree := moduleTree{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if name, _, ok := strings.Cut(filepath.Base(path), ".ko"); ok {
			tree[moduleName(name)] = path
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find kernel modules: %w", err)
	}
	return tree, nil
}

func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

// module is one module with its bytes, unpacked.
type module struct {
	name    string
	content []byte
}

// resolve returns the wanted modules and what they need, each after its needs.
// A module that is not there is taken to be built into the kernel.
func (t moduleTree) resolve(wanted []string) ([]module, error) {
	var out []module
	seen := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		name = moduleName(name)
		if seen[name] || t[name] == "" {
			return nil
		}
		seen[name] = true
		content, err := readModule(t[name])
		if err != nil {
			return err
		}
		needs, err := moduleNeeds(content)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, need := range needs {
			if err := visit(need); err != nil {
				return err
			}
		}
		out = append(out, module{name: name, content: content})
		return nil
	}
	for _, name := range wanted {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func readModule(path string) ([]byte, error) {
	if !strings.HasSuffix(path, ".xz") {
		return os.ReadFile(path)
	}
	out, err := exec.Command("xz", "-dc", path).Output()
	if err != nil {
		return nil, fmt.Errorf("unpack module %s: %w", filepath.Base(path), err)
	}
	return out, nil
}

// moduleNeeds reads what a module says itself that it depends on, which is
// what depmod would write into modules.dep.
func moduleNeeds(content []byte) ([]string, error) {
	file, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	section := file.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
