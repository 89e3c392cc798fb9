package fsm

import (
	"slices"
	"time"

	"github.com/debvisor/debvisor/api"
)

// Assignment is the body of instance.assign.
type Assignment struct {
	VM       string       `json:"vm"`   // the VM's ID
	Gen      uint64       `json:"gen"`  // the instance's gen as the leader saw it; 0: none yet
	Node     string       `json:"node"` // name
	Epoch    uint64       `json:"epoch"`
	Decision api.Decision `json:"decision"`
}

// AssignInstance gives a VM that nobody owns to a live node: gen grows, for an
// ID for ever, and the VM's volumes that exist nowhere yet are to be made there.
var AssignInstance = transition("instance.assign", Instances, assignInstance)

func assignInstance(tx *Tx, in Assignment) (*api.Instance, *api.Error) {
	vm := first(VMs.By(tx, "id_of", in.VM))
	if vm == nil {
		return nil, api.Errorf(api.CodeNotFound, "there is no such VM").On(api.KindInstance, in.VM)
	}
	var i api.Instance
	if have := Instances.Get(tx, in.VM); have != nil {
		i = *have
	}
	if i.Gen != in.Gen {
		return nil, api.Errorf(api.CodeConflict, "is at gen %d, the assignment was made for %d", i.Gen, in.Gen).On(api.KindInstance, in.VM)
	}
	if i.Owner != "" {
		return nil, api.Errorf(api.CodeConflict, "is owned by %s", i.Owner).On(api.KindInstance, in.VM)
	}
	node, err := liveNode(tx, in.Node, in.Epoch)
	if err != nil {
		return nil, err
	}
	if node.Witness {
		return nil, api.Errorf(api.CodeConflict, "is a witness and runs no guests").On(api.KindNode, in.Node)
	}
	for _, d := range vm.Disks {
		if v := Volumes.Get(tx, api.Key(vm.Tenant, d.Volume)); v != nil {
			if err := placeVolume(tx, v, in.Node); err != nil {
				return nil, err
			}
		}
	}
	decision := in.Decision
	decision.At = tx.Time
	gen := i.Gen + 1
	if i.Gen == 0 {
		gen = tx.Index // higher than any gen of a deleted VM that had this ID
	}
	return Instances.put(tx, api.Instance{
		Meta: api.Meta{Name: in.VM, ID: in.VM}, VM: api.Key(vm.Tenant, vm.Name), Gen: gen,
		Owner: in.Node, OwnerEpoch: in.Epoch, Decision: &decision, AssignedAt: tx.Time,
		State: api.InstanceAssigned, Restarts: i.Restarts, SnapshotSlot: i.SnapshotSlot,
	}), nil
}

// Hold is the body of instance.hold.
type Hold struct {
	VM       string       `json:"vm"` // the VM's ID
	Gen      uint64       `json:"gen"`
	Decision api.Decision `json:"decision"`
}

// HoldInstance records why a VM that nobody owns has no place.
var HoldInstance = transition("instance.hold", Instances, func(tx *Tx, in Hold) (*api.Instance, *api.Error) {
	vm := first(VMs.By(tx, "id_of", in.VM))
	if vm == nil {
		return nil, api.Errorf(api.CodeNotFound, "there is no such VM").On(api.KindInstance, in.VM)
	}
	var i api.Instance
	if have := Instances.Get(tx, in.VM); have != nil {
		i = *have
	}
	if i.Gen != in.Gen || i.Owner != "" {
		return nil, api.Errorf(api.CodeConflict, "moved meanwhile").On(api.KindInstance, in.VM)
	}
	decision := in.Decision
	decision.At = tx.Time
	i.Meta = api.Meta{Name: in.VM, ID: in.VM}
	i.VM, i.State, i.Reason, i.Decision = api.Key(vm.Tenant, vm.Name), api.InstancePending, decision.Summary, &decision
	return Instances.put(tx, i), nil
})

// InstanceReport is the body of instance.report: what the owner sees.
type InstanceReport struct {
	VM            string    `json:"vm"` // the VM's ID
	Gen           uint64    `json:"gen"`
	Node          string    `json:"node"`
	Epoch         uint64    `json:"epoch"` // the node's own
	State         string    `json:"state"`
	Reason        string    `json:"reason,omitzero"`
	StartedAt     time.Time `json:"started_at,omitzero"`
	Addresses     []string  `json:"addresses,omitzero"`
	Acceleration  string    `json:"acceleration,omitzero"`
	Simulated     bool      `json:"simulated,omitzero"`
	SpecRevision  uint64    `json:"spec_revision,omitzero"`
	Drift         []string  `json:"drift,omitzero"`
	Pending       []string  `json:"pending,omitzero"`
	Restarts      uint64    `json:"restarts,omitzero"`
	RestartedTask string    `json:"restarted_task,omitzero"`
}

// ReportInstance records what the owner sees. A report of another owner, an
// older gen or a former epoch is refused.
var ReportInstance = transition("instance.report", Instances, func(tx *Tx, in InstanceReport) (*api.Instance, *api.Error) {
	have, err := ownedInstance(tx, in.VM, in.Gen, in.Node, in.Epoch)
	if err != nil {
		return nil, err
	}
	i := *have
	i.OwnerEpoch = in.Epoch
	i.State, i.Reason, i.StartedAt = in.State, api.CleanText(in.Reason, api.TextLengthMax), in.StartedAt
	i.Pending = cleanTexts(in.Pending, api.TextLengthMax)
	i.Addresses, i.Drift = cleanTexts(in.Addresses, addressLengthMax), cleanTexts(in.Drift, api.TextLengthMax)
	i.Acceleration, i.Simulated, i.SpecRevision = api.CleanText(in.Acceleration, api.NameLengthMax), in.Simulated, in.SpecRevision
	if in.RestartedTask != "" {
		if err := api.CheckName("restarted_task", in.RestartedTask); err != nil {
			return nil, err.On(api.KindInstance, in.VM)
		}
	}
	i.Restarts, i.RestartedTask, i.ReportedAt = max(i.Restarts, in.Restarts), in.RestartedTask, tx.Time
	if vm := first(VMs.By(tx, "id_of", in.VM)); vm != nil {
		i.VM = api.Key(vm.Tenant, vm.Name)
	}
	if err := i.Validate(); err != nil {
		return nil, api.AsError(err).OnMissing(api.KindInstance, in.VM)
	}
	return Instances.put(tx, i), nil
}).forAgents()

// addressLengthMax holds an IPv6 address in its longest form.
const addressLengthMax = 45

// cleanTexts is texts of a machine, each fit to be shown. Those that are are
// not copied.
func cleanTexts(texts []string, lengthMax int) []string {
	for i, s := range texts {
		clean := api.CleanText(s, lengthMax)
		if clean == s {
			continue
		}
		out := append(slices.Clone(texts[:i]), clean)
		for _, s := range texts[i+1:] {
			out = append(out, api.CleanText(s, lengthMax))
		}
		return out
	}
	return texts
}

func ownedInstance(tx *Tx, vm string, gen uint64, node string, epoch uint64) (*api.Instance, *api.Error) {
	i := Instances.Get(tx, vm)
	if i == nil {
		return nil, api.Errorf(api.CodeNotFound, "there is no such instance").On(api.KindInstance, vm)
	}
	if i.Owner != node || i.Gen != gen {
		return nil, api.Errorf(api.CodeConflict, "is owned by %q at gen %d, not by %s at gen %d", i.Owner, i.Gen, node, gen).On(api.KindInstance, vm)
	}
	if _, err := liveNode(tx, node, epoch); err != nil {
		return nil, err
	}
	return i, nil
}

// InstanceEnd is the body of instance.forget.
type InstanceEnd struct {
	VM    string `json:"vm"` // the VM's ID
	Gen   uint64 `json:"gen"`
	Node  string `json:"node"`
	Epoch uint64 `json:"epoch"`
}

// ForgetInstance ends the instance of a deleted VM: its owner has removed the
// guest.
var ForgetInstance = effect("instance.forget", func(tx *Tx, in InstanceEnd) *api.Error {
	if _, err := ownedInstance(tx, in.VM, in.Gen, in.Node, in.Epoch); err != nil {
		return err
	}
	if m := Instances.Get(tx, in.VM).Migration; m != nil {
		return api.Errorf(api.CodeConflict, "migrates to %s", m.To).On(api.KindInstance, in.VM)
	}
	if vm := first(VMs.By(tx, "id_of", in.VM)); vm != nil {
		return api.Errorf(api.CodeConflict, "vm %s/%s exists", vm.Tenant, vm.Name).On(api.KindInstance, in.VM)
	}
	Instances.delete(tx, in.VM)
	return nil
}).forAgents()
