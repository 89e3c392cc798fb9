package api

// TemplateArgs are the arguments of vm.template: which disk of the VM becomes
// which image.
type TemplateArgs struct {
	Image       string            `json:"image"`                // name of the image to be made, in the VM's tenant
	Disk        string            `json:"disk,omitzero"`        // of the VM; empty: its first
	Description string            `json:"description,omitzero"` // of the image
	Labels      map[string]string `json:"labels,omitzero"`      // of the image
}

// Disk finds a disk of the VM by its name; the empty name is the first.
func (v *VM) Disk(name string) (Disk, bool) {
	for _, d := range v.Disks {
		if name == "" || d.Name == name {
			return d, true
		}
	}
	return Disk{}, false
}
