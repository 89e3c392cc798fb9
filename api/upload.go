package api

// Upload is how much of an image has arrived at one node.
type Upload struct {
	Image       string `json:"image"`
	Node        string `json:"node"`
	OffsetBytes int64  `json:"offset_bytes"` // where to go on
	SizeBytes   int64  `json:"size_bytes"`   // in all, as the catalogue says
}
