package api_test

import (
	"testing"

	"github.com/debvisor/debvisor/api"
)

func TestAVMHasADisplayUnlessItSaysOtherwise(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ graphics, video, wantGraphics, wantVideo string }{
		{"", "", "vnc", "virtio"}, {"vnc", "vga", "vnc", "vga"}, {"none", "", "none", "none"},
		{"", "none", "none", "none"}, {"none", "virtio", "none", "virtio"},
	} {
		vm := &api.VM{Meta: api.Meta{Name: "web", Tenant: "default"}, CPUs: 1, MemoryBytes: api.MemoryMin, Graphics: c.graphics, Video: c.video}
		if graphics, video := vm.Screen(); graphics != c.wantGraphics || video != c.wantVideo {
			t.Errorf("graphics %q and video %q mean %q and %q, want %q and %q", c.graphics, c.video, graphics, video, c.wantGraphics, c.wantVideo)
		}
		if err := vm.Validate(); err != nil {
			t.Errorf("graphics %q and video %q: %v", c.graphics, c.video, err)
		}
	}
	for _, c := range [][2]string{{"vnc", "none"}, {"spice", ""}, {"", "cirrus"}, {"VNC", ""}} {
		vm := &api.VM{Meta: api.Meta{Name: "web", Tenant: "default"}, CPUs: 1, MemoryBytes: api.MemoryMin, Graphics: c[0], Video: c[1]}
		if err := vm.Validate(); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("graphics %q and video %q: %v, want CodeInvalid", c[0], c[1], err)
		}
	}
}
