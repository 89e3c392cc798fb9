package fsm

import (
	"fmt"

	"github.com/debvisor/debvisor/api"
)

// checkHardware is what other rows say about the devices of a VM.
func checkHardware(tx *Tx, after *api.VM) *api.Error {
	for i, c := range after.CDROMs {
		if c.Image == "" {
			continue
		}
		field := fmt.Sprintf("cdroms[%d].image", i)
		image := Images.Get(tx, api.Key(after.Tenant, c.Image))
		if image == nil {
			return missing(field, api.KindImage, c.Image)
		}
		if image.Format != api.FormatRaw {
			return api.Invalid(field, "%s has format %s", c.Image, image.Format).Allow("an image in format raw, as an ISO file is")
		}
	}
	return nil
}

// keepBootDisk refuses to take the disk away that an executing guest has
// booted from: the guest would lose its root under its feet. The volumes of after
// are settled.
func keepBootDisk(tx *Tx, before, after *api.VM) *api.Error {
	if before == nil {
		return nil
	}
	boot := before.BootDisk()
	i := Instances.Get(tx, before.ID)
	if boot == nil || i == nil || i.Owner == "" {
		return nil
	}
	switch i.State {
	case api.InstanceStarting, api.InstanceRunning, api.InstancePaused:
	default:
		return nil
	}
	for _, d := range after.Disks {
		if d.Name == boot.Name && d.Volume == boot.Volume {
			return nil
		}
	}
	return api.Errorf(api.CodeConflict, "the guest has booted from disk %s and is %s", boot.Name, i.State).
		Do("stop the VM first: debvisor vm stop %s", before.Name).At("disks")
}

// placeDisks gives the volumes of disks that were added to a VM which a node
// owns to that node. One that lies elsewhere is refused.
func placeDisks(tx *Tx, vm *api.VM) *api.Error {
	i := Instances.Get(tx, vm.ID)
	if i == nil || i.Owner == "" {
		return nil
	}
	for n, d := range vm.Disks {
		v := Volumes.Get(tx, api.Key(vm.Tenant, d.Volume))
		if v == nil {
			continue
		}
		if err := placeVolume(tx, v, i.Owner); err != nil {
			err.Kind, err.Key = "", ""
			return err.Do("move the VM to that node, or use another volume").At(fmt.Sprintf("disks[%d].volume", n))
		}
	}
	return nil
}

// imagesOf lists the images that a VM needs beside those of its volumes: what
// it boots directly, and the discs in its drives.
func imagesOf(v *api.VM) []string {
	var out []string
	if v.Boot != nil {
		out = append(keyIn(v.Tenant, v.Boot.Kernel), keyIn(v.Tenant, v.Boot.Initrd)...)
	}
	for _, c := range v.CDROMs {
		out = append(out, keyIn(v.Tenant, c.Image)...)
	}
	return out
}
