package api

import (
	"encoding/hex"
	"strings"
)

// ImageSizeMax is the largest image, in bytes.
const ImageSizeMax = 16 * TiB

// Image is the catalogue entry of a read-only disk, kernel or initial RAM
// disk. Its bytes are uploaded to any node, verified against SHA256, and
// fetched by other nodes from a peer when a volume there needs them; where
// they are is told by replica rows.
type Image struct {
	Meta
	Format      string `json:"format"`     // qcow2 or raw; kernels and initial RAM disks are raw
	SHA256      string `json:"sha256"`     // of the file, 64 hexadecimal digits
	SizeBytes   int64  `json:"size_bytes"` // of the file
	Description string `json:"description,omitzero"`
}

// Validate implements Object.
func (i *Image) Validate() error {
	var p problems
	i.check(&p, true)
	checkFormat(&p, "format", i.Format, false)
	if raw, err := hex.DecodeString(i.SHA256); err != nil || len(raw) != 32 || strings.ToLower(i.SHA256) != i.SHA256 {
		p.add("sha256", "is %q", i.SHA256).Allow("64 lower-case hexadecimal digits, as sha256sum prints")
	}
	if i.SizeBytes < 1 || i.SizeBytes > ImageSizeMax {
		p.add("size_bytes", "is %d", i.SizeBytes).Allow("1 to %d", ImageSizeMax)
	}
	checkText(&p, "description", i.Description, TextLengthMax)
	return p.err()
}
