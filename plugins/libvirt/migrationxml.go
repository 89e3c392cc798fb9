package libvirt

import (
	"encoding/xml"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// element is any XML, for definitions that must survive as they are but for
// what differs between two machines.
type element struct {
	XMLName  xml.Name
	Attrs    []xml.Attr `xml:",any,attr"`
	Text     string     `xml:",chardata"`
	Children []*element `xml:",any"`
}

const elementsMax = 20000 // of one definition

func parseElement(text string) (*element, error) {
	var e element
	if err := xml.Unmarshal([]byte(text), &e); err != nil {
		return nil, fmt.Errorf("decode definition: %w", err)
	}
	count := 0
	e.walk(func(child *element) {
		count++
		if len(child.Children) > 0 {
			child.Text = "" // white space between elements
		}
	})
	if count > elementsMax {
		return nil, api.Errorf(api.CodeLimit, "a definition has %d elements", count).Allow("at most %d", elementsMax)
	}
	return &e, nil
}

func (e *element) walk(see func(*element)) {
	see(e)
	for _, c := range e.Children {
		c.walk(see)
	}
}

// child finds the element at a path of names, or nil.
func (e *element) child(path ...string) *element {
	for _, name := range path {
		i := slices.IndexFunc(e.Children, func(c *element) bool { return c.XMLName.Local == name })
		if i < 0 {
			return nil
		}
		e = e.Children[i]
	}
	return e
}

func (e *element) drop(name string) {
	e.Children = slices.DeleteFunc(e.Children, func(c *element) bool { return c.XMLName.Local == name })
}

func (e *element) attr(name string) *string {
	for i := range e.Attrs {
		if e.Attrs[i].Name.Local == name {
			return &e.Attrs[i].Value
		}
	}
	return nil
}

// immovable lists the devices of a guest that are tied to its machine.
func immovable(d *element) []string {
	devices := d.child("devices")
	if devices == nil {
		return nil
	}
	var out []string
	for _, c := range devices.Children {
		switch c.XMLName.Local {
		case "hostdev", "filesystem", "redirdev", "shmem", "nvdimm", "memory", "lease", "parallel":
			out = append(out, c.XMLName.Local)
		case "disk":
			if kind := c.attr("type"); kind == nil || *kind != "file" {
				out = append(out, "disk that is no file")
			}
		case "interface":
			if kind := c.attr("type"); kind == nil || *kind != "bridge" {
				out = append(out, "interface that is on no bridge")
			}
		}
	}
	return out
}

// filesOf lists the files of volumes and images that a definition names. The
// guest's own files are made anew by the destination.
func filesOf(d *element, own string) []plugins.FileUse {
	var out []plugins.FileUse
	for _, name := range []string{"kernel", "initrd"} {
		if e := d.child("os", name); e != nil {
			out = append(out, plugins.FileUse{Path: e.Text})
		}
	}
	for _, disk := range disksOf(d) {
		source := disk.child("source")
		if source == nil || source.attr("file") == nil {
			continue
		}
		if path := *source.attr("file"); !strings.HasPrefix(path, own+"/") {
			out = append(out, plugins.FileUse{Path: path, Writable: disk.child("readonly") == nil})
		}
	}
	return out
}

func disksOf(d *element) []*element {
	var out []*element
	if devices := d.child("devices"); devices != nil {
		for _, c := range devices.Children {
			if c.XMLName.Local == "disk" {
				out = append(out, c)
			}
		}
	}
	return out
}

// targetsOf names the drives whose files are to be copied.
func targetsOf(d *element, paths []string) []string {
	var out []string
	for _, disk := range disksOf(d) {
		source, target := disk.child("source"), disk.child("target")
		if source == nil || target == nil || source.attr("file") == nil || target.attr("dev") == nil {
			continue
		}
		if slices.Contains(paths, *source.attr("file")) {
			out = append(out, *target.attr("dev"))
		}
	}
	return out
}

// here is what a definition from another machine becomes on this one.
type here struct {
	in       plugins.Arrival
	theirDir string // of the guest's own files at the other end
	dir      string // here
	emulator string
	virtType string
}

// rewrite makes the definition of another machine one of this machine: the
// files of volumes and images where they are here, the guest's own files in this
// machine's directory, and the mark with the new gen. Whatever else it names of
// its machine is refused.
func (h here) rewrite(text string) (string, error) {
	d, err := parseElement(text)
	if err != nil {
		return "", err
	}
	typed, err := decodeDomain(text)
	if err != nil {
		return "", err
	}
	wrong := func(format string, args ...any) error {
		return api.Errorf(api.CodeConflict, format, args...).On(api.KindVM, h.in.Name)
	}
	old := typed.markOf(h.in.ClusterID)
	switch {
	case d.XMLName.Local != "domain" || typed.UUID != h.in.ID || old == nil:
		return "", wrong("another guest was sent")
	case typed.Type != h.virtType:
		return "", wrong("the guest runs on %q, this machine has %q", typed.Type, h.virtType)
	}
	if found := immovable(d); len(found) > 0 {
		return "", wrong("it has devices that cannot move: %s", strings.Join(found, ", "))
	}
	if e := d.child("devices", "emulator"); e != nil {
		e.Text = h.emulator
	}
	for _, name := range []string{"kernel", "initrd"} {
		if e := d.child("os", name); e != nil {
			source, ok := h.in.Files[e.Text]
			if !ok {
				return "", wrong("its %s was not announced", name)
			}
			e.Text = source.Path
		}
	}
	for _, disk := range disksOf(d) {
		disk.drop("backingStore")
		disk.drop("mirror")
		source := disk.child("source")
		if source == nil || source.attr("file") == nil {
			continue
		}
		path := source.attr("file")
		if strings.HasPrefix(*path, h.theirDir+"/") {
			continue // below
		}
		found, ok := h.in.Files[*path]
		if !ok {
			return "", wrong("it uses a disk that was not announced")
		}
		*path = found.Path
	}
	d.walk(h.moveOwn)
	m := *old
	m.Gen, m.Wanted.Disks = h.in.Gen, slices.Clone(old.Wanted.Disks)
	for i := range m.Wanted.Disks {
		if found, ok := h.in.Files[m.Wanted.Disks[i].Path]; ok {
			m.Wanted.Disks[i].Path = found.Path
		}
	}
	if old.Wanted.hash() == old.Hash { // an edit of the mark goes on to show
		m.Hash = m.Wanted.hash()
	}
	return h.finish(d, &m)
}

// moveOwn turns the paths of the guest's own files.
func (h here) moveOwn(e *element) {
	turn := func(s string) string {
		if rest, ok := strings.CutPrefix(s, h.theirDir+"/"); ok && filepath.IsLocal(rest) {
			return filepath.Join(h.dir, rest)
		}
		return s
	}
	if len(e.Children) == 0 {
		e.Text = turn(e.Text)
	}
	for i := range e.Attrs {
		e.Attrs[i].Value = turn(e.Attrs[i].Value)
	}
}

// finish writes the definition with its mark.
func (h here) finish(d *element, m *mark) (string, error) {
	m.XMLName = markName()
	raw, err := xml.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("encode mark: %w", err)
	}
	var marked element
	if err := xml.Unmarshal(raw, &marked); err != nil {
		return "", fmt.Errorf("decode mark: %w", err)
	}
	d.drop("metadata")
	d.Children = append(d.Children, &element{XMLName: xml.Name{Local: "metadata"}, Children: []*element{&marked}})
	d.walk(func(e *element) {
		e.Attrs = slices.DeleteFunc(e.Attrs, func(a xml.Attr) bool { return a.Name.Local == "xmlns" || a.Name.Space == "xmlns" })
	})
	out, err := xml.Marshal(d)
	if err != nil {
		return "", fmt.Errorf("encode definition: %w", err)
	}
	return string(out), nil
}
