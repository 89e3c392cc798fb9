package api

// How the display of a VM can be reached.
const (
	GraphicsVNC  = "vnc"
	GraphicsNone = "none"
)

// The display adapters of a VM.
const (
	VideoVirtio = "virtio"
	VideoVGA    = "vga"
	VideoNone   = "none"
)

// Screen is the VM's graphics and video with nothing left open: a VM has a
// display that VNC reaches unless it says otherwise.
func (v *VM) Screen() (graphics, video string) {
	graphics, video = v.Graphics, v.Video
	if graphics == "" {
		if graphics = GraphicsVNC; video == VideoNone {
			graphics = GraphicsNone
		}
	}
	if video == "" {
		if video = VideoVirtio; graphics == GraphicsNone {
			video = VideoNone
		}
	}
	return graphics, video
}

func (v *VM) checkScreen(p *problems) {
	checkOneOf(p, "graphics", v.Graphics, "", GraphicsVNC, GraphicsNone)
	checkOneOf(p, "video", v.Video, "", VideoVirtio, VideoVGA, VideoNone)
	if v.Graphics == GraphicsVNC && v.Video == VideoNone {
		p.add("video", "is %q, and graphics is %q: there would be nothing to show", v.Video, v.Graphics).Allow("%s, %s; or graphics = %q", VideoVirtio, VideoVGA, GraphicsNone)
	}
}
