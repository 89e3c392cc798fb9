package api

import (
	"encoding/hex"
	"net/url"
	"strings"
)

// Limits of an image.
const (
	ImageSizeMax      = 16 * TiB // bytes
	ImageURLLengthMax = 2048
)

// Image is the catalogue entry of a read-only disk, kernel or initial RAM
// disk. Its bytes are uploaded to any node or fetched from a URL by one,
// verified against SHA256, and fetched by other nodes from a peer when a volume
// there needs them; where they are is told by replica rows.
type Image struct {
	Meta
	Format      string `json:"format"`              // qcow2 or raw; kernels and initial RAM disks are raw
	SHA256      string `json:"sha256"`              // of the file, 64 hexadecimal digits
	SizeBytes   int64  `json:"size_bytes,omitzero"` // of the file; 0 with a URL: whatever has the checksum
	URL         string `json:"url,omitzero"`        // https, where a node fetches the file; may be changed when it moves
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
	if i.SizeBytes < 0 || i.SizeBytes > ImageSizeMax || i.SizeBytes == 0 && i.URL == "" {
		p.add("size_bytes", "is %d", i.SizeBytes).Allow("1 to %d; with a url it may be left out", ImageSizeMax)
	}
	checkImageURL(&p, i.URL)
	checkText(&p, "description", i.Description, TextLengthMax)
	return p.err()
}

// checkImageURL refuses what could never be fetched. Where it leads is looked
// at by the node that fetches.
func checkImageURL(p *problems, raw string) {
	if raw == "" {
		return
	}
	const allowed = "https://HOST/PATH, at most 2048 bytes, without user name, password and fragment"
	u, err := url.Parse(raw)
	printable := !strings.ContainsFunc(raw, func(c rune) bool { return c <= ' ' || c >= 0x7f })
	if err != nil || !printable || len(raw) > ImageURLLengthMax || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" ||
		u.User != nil || u.Fragment != "" || u.Opaque != "" {
		p.add("url", "is not one that can be fetched").Allow(allowed) // it is not repeated: it may hold a password
	}
}
