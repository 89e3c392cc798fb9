package api

// The formats of volumes and images.
const (
	FormatQCOW2 = "qcow2"
	FormatRaw   = "raw"
)

// How a volume is made from another one.
const (
	CloneFull   = "full"   // a copy, which shares nothing with its source
	CloneLinked = "linked" // shares what the source held; made at once, takes space as it is written to
)

// Bounds of a volume.
const (
	VolumeSizeMin = 1 * MiB
	VolumeSizeMax = 256 * TiB
)

// Volume is a disk. Where it lies is told by its replica rows: in a pool that
// is not shared it is placed with the first VM that uses it.
type Volume struct {
	Meta
	Pool      string `json:"pool"`
	SizeBytes int64  `json:"size_bytes,omitzero"` // 0 with an image or source: its size; a larger one grows the volume, in a running guest too
	Format    string `json:"format,omitzero"`     // qcow2 (default) or raw
	Image     string `json:"image,omitzero"`      // made as a linked clone of this image of the same tenant
	Source    string `json:"source,omitzero"`     // made as a clone of this volume of the same tenant, whose VM is off
	Clone     string `json:"clone,omitzero"`      // with a source: full (default) or linked
	Node      string `json:"node,omitzero"`       // wanted place in a pool that is not shared; empty: with its first VM
	OwnerVM   string `json:"owner_vm,omitzero"`   // ID of the VM that it was made for and goes away with; set by the kernel
}

// VolumeMove is the argument of a task of verb TaskMoveVolume.
type VolumeMove struct {
	Pool string `json:"pool"`
	From string `json:"from,omitzero"` // the pool where it lay; set by the kernel
}

// Validate implements Object.
func (v *Volume) Validate() error {
	var p problems
	v.check(&p, true)
	p.addErr(CheckName("pool", v.Pool))
	checkVolumeSize(&p, "size_bytes", v.SizeBytes, v.Image != "" || v.Source != "")
	checkFormat(&p, "format", v.Format, true)
	checkSource(&p, "", v.Source, v.Clone, v.Image)
	if v.Image != "" {
		p.addErr(CheckName("image", v.Image))
	}
	if v.Node != "" {
		p.addErr(CheckName("node", v.Node))
	}
	return p.err()
}

func checkVolumeSize(p *problems, field string, bytes int64, hasImage bool) {
	if bytes == 0 && hasImage {
		return
	}
	if bytes < VolumeSizeMin || bytes > VolumeSizeMax {
		p.add(field, "is %d", bytes).Allow("%d (1 MiB) to %d (256 TiB)", VolumeSizeMin, VolumeSizeMax)
	}
}

// checkSource judges what a volume is cloned from. at begins the names of fields.
func checkSource(p *problems, at, source, clone, image string) {
	if source == "" {
		if clone != "" {
			p.add(at+"clone", "is %q without a source", clone).Allow("leave it out, or name the source")
		}
		return
	}
	p.addErr(CheckName(at+"source", source))
	checkOneOf(p, at+"clone", clone, "", CloneFull, CloneLinked)
	if image != "" {
		p.add(at+"source", "is set beside an image").Allow("one of both")
	}
}

func checkFormat(p *problems, field, format string, emptyAllowed bool) {
	if format == FormatQCOW2 || format == FormatRaw || format == "" && emptyAllowed {
		return
	}
	p.add(field, "is %q", format).Allow("qcow2, raw")
}
