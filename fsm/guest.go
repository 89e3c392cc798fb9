package fsm

import "github.com/debvisor/debvisor/api"

// GuestCallNote is the body of instance.guest_call.
type GuestCallNote struct {
	VM      string `json:"vm"` // key
	Call    string `json:"call"`
	Account string `json:"account,omitzero"`
}

// NoteGuestCall writes down that somebody is about to change something in a
// guest through its agent, so that the journal has it. What is set is never in
// the entry.
var NoteGuestCall = transition("instance.guest_call", Instances, func(tx *Tx, in GuestCallNote) (*api.Instance, *api.Error) {
	vm := VMs.Get(tx, in.VM)
	if vm == nil {
		return nil, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindVM, in.VM)
	}
	have := Instances.Get(tx, vm.ID)
	if have == nil || have.Owner == "" {
		return nil, api.Errorf(api.CodeConflict, "is on no node").On(api.KindVM, in.VM).Do("see why with: debvisor why vm/%s", vm.Name)
	}
	switch in.Call {
	case api.GuestPassword, api.GuestFreeze, api.GuestThaw, api.GuestTime:
	default:
		return nil, api.Invalid("call", "is %q", api.CleanText(in.Call, api.NameLengthMax)).Allow("set-password, freeze, thaw, set-time").On(api.KindVM, in.VM)
	}
	i := *have
	i.GuestCall = &api.GuestCall{Call: in.Call, Account: api.CleanText(in.Account, api.GuestAccountMax), By: tx.By, At: tx.Time}
	return Instances.put(tx, i), nil
}).forUsers().forUsers()
