package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/debvisor/debvisor/api"
)

// goodExport is a directory that could be imported.
func goodExport(t testing.TB) (dir string, in exported) {
	t.Helper()
	dir = t.TempDir()
	in = exported{Version: exportVersion,
		VM:     api.VM{Meta: api.Meta{Name: "web"}, CPUs: 1, MemoryBytes: 128 * api.MiB, Power: api.PowerOff, Disks: []api.Disk{{Name: "root", Image: "web-root"}}},
		Images: []exportedFile{{Name: "web-root", File: "web-root.raw", Format: api.FormatRaw, SHA256: "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", SizeBytes: 5}},
	}
	if err := os.WriteFile(filepath.Join(dir, "web-root.raw"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, in
}

func writeExport(t testing.TB, dir string, in any) {
	t.Helper()
	raw, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, exportManifest), raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// tryImport reads and verifies an export, as far as that needs no cluster.
func tryImport(t testing.TB, dir string) error {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	in, err := readExport(root)
	if err != nil {
		return err
	}
	im := &importing{a: &app{errOut: &strings.Builder{}, now: time.Now}, root: root, in: in}
	im.settle()
	return im.verify()
}

func TestAnExportIsVerified(t *testing.T) {
	t.Parallel()
	dir, in := goodExport(t)
	writeExport(t, dir, in)
	if err := tryImport(t, dir); err != nil {
		t.Fatal(err)
	}
}

func TestABadExportIsRefused(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(dir string, in *exported){
		"another version":      func(_ string, in *exported) { in.Version = 2 },
		"a path":               func(_ string, in *exported) { in.Images[0].File = "../web-root.raw" },
		"an absolute path":     func(_ string, in *exported) { in.Images[0].File = "/etc/passwd" },
		"a name with a path":   func(_ string, in *exported) { in.Images[0].Name, in.Images[0].File = "../x", "../x.raw" },
		"a file twice":         func(_ string, in *exported) { in.Images = append(in.Images, in.Images[0]) },
		"a missing disk":       func(_ string, in *exported) { in.VM.Disks[0].Image = "other" },
		"a volume":             func(_ string, in *exported) { in.VM.Disks[0] = api.Disk{Name: "root", Volume: "theirs"} },
		"another's volume":     func(_ string, in *exported) { in.VM.Disks[0] = api.Disk{Name: "root", Source: "theirs"} },
		"an ID":                func(_ string, in *exported) { in.VM.ID = "00000000-0000-4000-8000-000000000001" },
		"power":                func(_ string, in *exported) { in.VM.Power = api.PowerOn },
		"no memory":            func(_ string, in *exported) { in.VM.MemoryBytes = 0 },
		"another checksum":     func(_ string, in *exported) { in.Images[0].SHA256 = strings.Repeat("0", 64) },
		"no checksum":          func(_ string, in *exported) { in.Images[0].SHA256 = "" },
		"another size":         func(_ string, in *exported) { in.Images[0].SizeBytes = 4 },
		"a negative size":      func(_ string, in *exported) { in.Images[0].SizeBytes = -1 },
		"thousands of files":   func(_ string, in *exported) { in.Images = make([]exportedFile, 5000) },
		"a file that is short": func(dir string, _ *exported) { _ = os.Truncate(filepath.Join(dir, "web-root.raw"), 4) },
		"a file that is gone":  func(dir string, _ *exported) { _ = os.Remove(filepath.Join(dir, "web-root.raw")) },
		"a link": func(dir string, _ *exported) {
			path := filepath.Join(dir, "web-root.raw")
			_ = os.Rename(path, path+".real")
			_ = os.Symlink("web-root.raw.real", path)
		},
		"a directory": func(dir string, _ *exported) {
			path := filepath.Join(dir, "web-root.raw")
			_ = os.Remove(path)
			_ = os.Mkdir(path, 0o700)
		},
	} {
		dir, in := goodExport(t)
		spoil(dir, &in)
		writeExport(t, dir, in)
		if err := tryImport(t, dir); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
	for name, text := range map[string]string{"unknown field": `{"version":1,"evil":true}`, "two values": `{"version":1}{}`, "no JSON": "x", "huge": strings.Repeat(" ", manifestBytesMax+1)} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, exportManifest), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := tryImport(t, dir); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: got %v, want invalid", name, err)
		}
	}
	dir, in := goodExport(t)
	writeExport(t, dir, in)
	if err := os.Rename(filepath.Join(dir, exportManifest), filepath.Join(dir, "m")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("m", filepath.Join(dir, exportManifest)); err != nil {
		t.Fatal(err)
	}
	if err := tryImport(t, dir); err == nil {
		t.Error("a manifest that is a link was taken")
	}
}

// FuzzNoManifestNamesAnotherFile: whatever the manifest says, what passes names
// files of the directory itself.
func FuzzNoManifestNamesAnotherFile(f *testing.F) {
	f.Add([]byte(`{"version":1,"images":[{"name":"a","file":"a.raw","format":"raw","sha256":"` + strings.Repeat("0", 64) + `","size_bytes":1}],"vm":{"name":"a","cpus":1,"memory_bytes":134217728,"power":"off"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, exportManifest), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = root.Close() }()
		in, err := readExport(root)
		for _, file := range in.Images {
			if err == nil && (!filepath.IsLocal(file.File) || filepath.Base(file.File) != file.File) {
				t.Errorf("%q passes", file.File)
			}
		}
	})
}
