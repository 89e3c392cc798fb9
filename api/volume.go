package api

// The formats of volumes and images.
const (
	FormatQCOW2 = "qcow2"
	FormatRaw   = "raw"
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
	SizeBytes int64  `json:"size_bytes,omitzero"` // 0 with an image: the image's own size
	Format    string `json:"format,omitzero"`     // qcow2 (default) or raw
	Image     string `json:"image,omitzero"`      // made as a linked clone of this image of the same tenant
	Node      string `json:"node,omitzero"`       // wanted place in a pool that is not shared; empty: with its first VM
	OwnerVM   string `json:"owner_vm,omitzero"`   // ID of the VM that it was made for and goes away with; set by the kernel
}

// Validate implements Object.
func (v *Volume) Validate() error {
	var p problems
	v.check(&p, true)
	p.addErr(CheckName("pool", v.Pool))
	checkVolumeSize(&p, "size_bytes", v.SizeBytes, v.Image != "")
	checkFormat(&p, "format", v.Format, true)
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

func checkFormat(p *problems, field, format string, emptyAllowed bool) {
	if format == FormatQCOW2 || format == FormatRaw || format == "" && emptyAllowed {
		return
	}
	p.add(field, "is %q", format).Allow("qcow2, raw")
}
