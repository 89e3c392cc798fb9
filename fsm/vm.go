package fsm

import (
	"crypto/sha256"
	"fmt"

	"github.com/debvisor/debvisor/api"
)

func checkVM(tx *Tx, before, after *api.VM) *api.Error {
	if after == nil {
		return dropVM(tx, before)
	}
	if err := wantTenant(tx, after.Tenant); err != nil {
		return err
	}
	if before == nil {
		if other := first(VMs.By(tx, "id_of", after.ID)); other != nil {
			return api.Invalid("id", "is that of vm %s/%s", other.Tenant, other.Name).Allow("leave it out")
		}
		if Instances.Get(tx, after.ID) != nil {
			return api.Invalid("id", "a guest with this ID is still being removed").Do("wait until it is gone")
		}
	}
	if before != nil && !tx.restoring {
		if t := reverting(tx, api.Key(before.Tenant, before.Name), ""); t != nil {
			return api.Errorf(api.CodeConflict, "is being reverted to a snapshot, by task %s", t.Name).Do("wait for it, or cancel it")
		}
	}
	if err := checkVMSize(tx, after); err != nil {
		return err
	}
	if n := after.Placement.Node; n != "" {
		if node := Nodes.Get(tx, n); node == nil || node.Witness {
			return missing("placement.node", api.KindNode, n)
		}
	}
	if err := checkVMBoot(tx, after); err != nil {
		return err
	}
	if err := checkHardware(tx, after); err != nil {
		return err
	}
	if err := settleNICs(tx, before, after); err != nil {
		return err
	}
	if err := settleDisks(tx, before, after); err != nil {
		return err
	}
	if err := keepBootDisk(tx, before, after); err != nil {
		return err
	}
	return placeDisks(tx, after)
}

// checkVMSize refuses a VM that no node could hold even if it were empty.
func checkVMSize(tx *Tx, vm *api.VM) *api.Error {
	most := largestNode(tx)
	cpus, memory := most.cpus, most.memory
	if cpus == 0 {
		return nil // no node has reported yet
	}
	if vm.CPUs > cpus {
		return api.Errorf(api.CodeLimit, "%d virtual CPUs are more than any node holds", vm.CPUs).
			Allow("at most %d", cpus).Do("make the VM smaller, or raise cpu_overcommit").At("cpus")
	}
	if most := vm.MostMemory(); most > memory {
		field := "memory_bytes"
		if vm.MemoryMax > 0 {
			field = "memory_max_bytes"
		}
		return api.Errorf(api.CodeLimit, "%s is more than any node holds", api.FormatSize(most)).
			Allow("at most %s", api.FormatSize(memory)).Do("make the VM smaller, or raise memory_overcommit").At(field)
	}
	return nil
}

// room is what the largest nodes can give to one guest.
type room struct {
	cpus   int
	memory int64
}

// largestNode looks at the nodes again only when one of them or the settings
// changed: a VM's put must not cost more in a large cluster.
func largestNode(tx *Tx) room {
	if r := tx.b.sys.room; r != nil {
		return *r
	}
	config := settings(tx)
	var r room
	for n := range Nodes.All(tx) {
		if n.Witness || n.Capacity.CPUs == 0 {
			continue
		}
		r.cpus = max(r.cpus, int(float64(n.Capacity.CPUs)*config.CPUOvercommit))
		r.memory = max(r.memory, int64(float64(n.Capacity.MemoryBytes-config.MemoryReserve)*config.MemoryOvercommit))
	}
	tx.b.sys.room = &r
	return r
}

func settings(r Reader) api.Config {
	if c := Configs.Get(r, api.ConfigName); c != nil {
		return c.WithDefaults()
	}
	return api.Config{}.WithDefaults()
}

// Settings are the cluster's settings with every default filled in.
func Settings(r Reader) api.Config { return settings(r) }

func checkVMBoot(tx *Tx, vm *api.VM) *api.Error {
	if vm.Boot == nil {
		return nil
	}
	if Images.Get(tx, api.Key(vm.Tenant, vm.Boot.Kernel)) == nil {
		return missing("boot.kernel", api.KindImage, vm.Boot.Kernel)
	}
	if vm.Boot.Initrd != "" && Images.Get(tx, api.Key(vm.Tenant, vm.Boot.Initrd)) == nil {
		return missing("boot.initrd", api.KindImage, vm.Boot.Initrd)
	}
	return nil
}

// settleNICs checks the networks, and gives every interface without a MAC one
// that is derived from the VM's ID and the position.
func settleNICs(tx *Tx, before, vm *api.VM) *api.Error {
	nics := make([]api.NIC, len(vm.NICs))
	used := map[string]bool{}
	for _, n := range vm.NICs {
		used[n.MAC] = true
	}
	for i, n := range vm.NICs {
		if Networks.Get(tx, api.Key(vm.Tenant, n.Network)) == nil {
			return missing(fmt.Sprintf("nics[%d].network", i), api.KindNetwork, n.Network)
		}
		if n.MAC == "" {
			had := ""
			if before != nil && i < len(before.NICs) {
				had = before.NICs[i].MAC
			}
			n.MAC = chooseMAC(tx, vm.ID, i, had, used)
			used[n.MAC] = true
		}
		if other := otherWithMAC(tx, n.MAC, vm.ID); other != nil {
			return api.Errorf(api.CodeConflict, "%s is used by vm %s/%s", n.MAC, other.Tenant, other.Name).
				Do("choose another address").At(fmt.Sprintf("nics[%d].mac", i))
		}
		nics[i] = n
	}
	if err := settleAddresses(tx, before, vm, nics); err != nil {
		return err
	}
	if err := wantFirewalls(tx, vm); err != nil {
		return err
	}
	if len(nics) > 0 {
		vm.NICs = nics
	}
	return nil
}

func otherWithMAC(tx *Tx, mac, vmID string) *api.VM {
	for other := range VMs.By(tx, "mac", mac) {
		if other.ID != vmID {
			return other
		}
	}
	return nil
}

// macTries bounds the search for an address that nobody has. With 100,000 of
// 2^24 addresses taken, one try in 160 fails.
const macTries = 16

// chooseMAC is the first derived address that nobody has. One that the
// interface had stays, even when the VM that stood in the way of an earlier
// one is gone.
func chooseMAC(tx *Tx, id string, position int, had string, used map[string]bool) string {
	choice := ""
	for try := range macTries {
		mac := deriveMAC(id, position, try)
		if used[mac] || otherWithMAC(tx, mac, id) != nil {
			continue
		}
		if mac == had {
			return mac
		}
		if choice == "" {
			choice = mac
		}
		if had == "" {
			break
		}
	}
	if choice == "" {
		return deriveMAC(id, position, 0) // is refused, and names who has it
	}
	return choice
}

// deriveMAC makes an address under the prefix that QEMU/KVM uses.
func deriveMAC(id string, position, try int) string {
	text := fmt.Appendf(nil, "%s/%d", id, position)
	if try > 0 {
		text = fmt.Appendf(text, "/%d", try)
	}
	sum := sha256.Sum256(text)
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", sum[0], sum[1], sum[2])
}

// settleDisks makes the volumes that the disks describe, checks those that
// they name, and drops the made volumes of disks that are gone.
func settleDisks(tx *Tx, before, vm *api.VM) *api.Error {
	disks := make([]api.Disk, len(vm.Disks))
	used := map[string]bool{}
	for i, d := range vm.Disks {
		at := func(err *api.Error) *api.Error {
			if err.Kind == "" {
				err.Field = fmt.Sprintf("disks[%d].%s", i, err.Field)
			}
			return err
		}
		if d.Volume == "" {
			if err := makeDiskVolume(tx, before, vm, &d); err != nil {
				return at(err)
			}
		}
		if err := growDisk(tx, before, vm, &d); err != nil {
			return at(err)
		}
		key := api.Key(vm.Tenant, d.Volume)
		if Volumes.Get(tx, key) == nil {
			return at(missing("volume", api.KindVolume, d.Volume))
		}
		for other := range VMs.By(tx, "volume", key) {
			if other.ID != vm.ID {
				return at(api.Errorf(api.CodeConflict, "%s is attached to vm %s", d.Volume, other.Name).Do("detach it there first").At("volume"))
			}
		}
		if used[d.Volume] {
			return at(api.Invalid("volume", "%q is attached twice", d.Volume))
		}
		used[d.Volume] = true
		disks[i] = d
	}
	if len(disks) > 0 {
		vm.Disks = disks
	}
	if before == nil {
		return nil
	}
	return dropMadeVolumes(tx, before.ID, used)
}

// makeDiskVolume makes the volume of a disk that describes one, or finds the
// one that an earlier put of the VM made for it.
func makeDiskVolume(tx *Tx, before, vm *api.VM, d *api.Disk) *api.Error {
	pool := d.Pool
	if source := Volumes.Get(tx, api.Key(vm.Tenant, d.Source)); pool == "" && source != nil {
		pool = source.Pool
	}
	if pool == "" {
		pool = DefaultPool
	}
	name := vm.Name + "-" + d.Name
	for have := range Volumes.By(tx, "owner_vm", vm.ID) {
		if have.Name != name {
			continue
		}
		// The volume may have been moved since: only a new description is compared.
		if !described(before, d) && (have.Pool != pool || have.Image != d.Image || have.Source != d.Source) {
			return api.Invalid("pool", "image, source and pool of a made volume are fixed; it lies in pool %s", have.Pool).
				Do("move it with: debvisor volume move; or add another disk")
		}
		d.Volume = name
		return nil
	}
	v := api.Volume{Meta: api.Meta{Name: name, Tenant: vm.Tenant}, Pool: pool, Image: d.Image, SizeBytes: d.SizeBytes, OwnerVM: vm.ID,
		Source: d.Source, Clone: d.Clone}
	tx.making = true
	_, err := Volumes.applyPut(tx, v)
	tx.making = false
	if err != nil {
		return err
	}
	d.Volume = name
	return nil
}

// described reports whether the VM's last put described the disk's volume as
// this one does.
func described(before *api.VM, d *api.Disk) bool {
	if before == nil {
		return false
	}
	for _, had := range before.Disks {
		if had.Name == d.Name {
			return had.Pool == d.Pool && had.Image == d.Image && had.Source == d.Source
		}
	}
	return false
}

func dropMadeVolumes(tx *Tx, vmID string, keep map[string]bool) *api.Error {
	var gone []api.Volume
	for v := range Volumes.By(tx, "owner_vm", vmID) {
		if !keep[v.Name] {
			gone = append(gone, *v)
		}
	}
	tx.dropping = vmID
	defer func() { tx.dropping = "" }()
	for _, v := range gone {
		if _, err := Volumes.applyDelete(tx, Deletion{Tenant: v.Tenant, Name: v.Name, Modified: v.Modified}); err != nil {
			return err
		}
	}
	return nil
}

// dropVM deletes the volumes that were made for the VM. The instance row stays
// until the node that owns it reports that the guest is gone.
func dropVM(tx *Tx, vm *api.VM) *api.Error {
	if i := Instances.Get(tx, vm.ID); i != nil && i.Owner == "" {
		Instances.delete(tx, vm.ID)
	}
	dropSnapshots(tx, vm.ID)
	return dropMadeVolumes(tx, vm.ID, nil)
}

// VMPower is the body of vm.power.
type VMPower struct {
	Tenant string `json:"tenant"`
	Name   string `json:"name"`
	Power  string `json:"power"` // on or off
}

// PowerVM sets what the user wants of the VM's power, whatever its revision. On
// a guest that powered itself off, on asks for a start.
var PowerVM = transition("vm.power", VMs, powerVM).forUsers()

func powerVM(tx *Tx, in VMPower) (*api.VM, *api.Error) {
	key := api.Key(in.Tenant, in.Name)
	vm := VMs.Get(tx, key)
	if vm == nil {
		return nil, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindVM, key)
	}
	if in.Power != api.PowerOn && in.Power != api.PowerOff {
		return nil, api.Invalid("power", "is %q", in.Power).Allow("on, off").On(api.KindVM, key)
	}
	if vm.On() == (in.Power == api.PowerOn) && !stoppedItself(tx, vm) {
		return vm, nil
	}
	after := *vm
	after.Power = in.Power
	return VMs.put(tx, after), nil
}

// stoppedItself reports whether the guest of a VM whose power is on is off. A
// new revision then tells its node to start it.
func stoppedItself(tx *Tx, vm *api.VM) bool {
	i := Instances.Get(tx, vm.ID)
	return vm.On() && i != nil && i.State == api.InstanceStopped
}

func volumesOf(v *api.VM) []string {
	var out []string
	for _, d := range v.Disks {
		out = append(out, keyIn(v.Tenant, d.Volume)...)
	}
	return out
}

func networksOf(v *api.VM) []string {
	var out []string
	for _, n := range v.NICs {
		out = append(out, api.Key(v.Tenant, n.Network))
	}
	return out
}

func macsOf(v *api.VM) []string {
	var out []string
	for _, n := range v.NICs {
		out = append(out, n.MAC)
	}
	return out
}
