package plugins

import "context"

// Templates makes images of volumes.
type Templates interface {
	// MakeImage copies the volume into a new image of the same pool, which stands
	// on its own: qcow2, without the volume's image behind it. No guest executes
	// with the volume meanwhile: the caller sees to it. The image appears when it is
	// complete; an interrupted copy leaves nothing. An image of that ID that is
	// there already is found. progress is called now and then with 0 to 100.
	MakeImage(ctx context.Context, pool PoolSpec, volumeID, imageID string, progress func(percent int)) (MadeImage, error)
}

// MadeImage is an image that was made here, so that its checksum is news.
type MadeImage struct {
	Stored
	SHA256 string // of the file, in hexadecimal digits
}
