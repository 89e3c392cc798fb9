package httpd

import (
	"encoding/json"
	"net/http"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

// revert makes an object what it was: by a put, by creating it again, or by
// deleting it.
func (x *exchange) revert(in *revertInput) error {
	var body revertBody
	if err := x.decode(&body); err != nil {
		return err
	}
	res, key := x.past(&in.PastInput)
	k := res.kind()
	if !k.UserEdits {
		return api.Errorf(api.CodeInvalid, "is reported by the cluster and cannot be reverted").On(k.Name, key).Allow("kinds that users edit")
	}
	if body.To == 0 {
		return api.Invalid("to", "is missing").Allow("an index; see the object's history")
	}
	view, err := x.barrier(ReadOptions{})
	if err != nil {
		return err
	}
	past, err := x.rowAt(res, view, key, body.To)
	if err != nil {
		return err
	}
	now, head := res.row(view, key), res.head(view, key)
	var entry fsm.Entry
	switch {
	case past == nil && now == nil:
		return api.Errorf(api.CodeNotFound, "exists neither now nor at index %d", body.To).On(k.Name, key)
	case past == nil:
		if err := x.allowed(authz.Delete, k.Name, x.tenant, in.Name); err != nil {
			return err
		}
		entry = res.remove(x.tenant, in.Name, head.Modified)
	default:
		if fields, err := Fields(now, past); err != nil || len(fields) == 0 && !in.Plan {
			return orUnchanged(x, err, view)
		}
		if entry, err = res.restore(view, past); err != nil {
			return err
		}
	}
	return x.change(in.Plan, entry, func(out fsm.Outcome) error {
		return x.answer(http.StatusOK, api.Applied{Index: out.Index, Changed: 1})
	})
}

// orUnchanged answers a revert that has nothing to do.
func orUnchanged(x *exchange, err error, view *fsm.View) error {
	if err != nil {
		return err
	}
	return x.answer(http.StatusOK, api.Applied{Index: view.Index()})
}

// restore makes the entry that puts a row of the past in the place of what is
// there now.
func (r *resource[T, P]) restore(view *fsm.View, past json.RawMessage) (fsm.Entry, error) {
	var v T
	if err := json.Unmarshal(past, &v); err != nil {
		return fsm.Entry{}, err
	}
	m := P(&v).Head()
	key := r.k.Key(m.Tenant, m.Name)
	if now := r.head(view, key); now != nil {
		m.ID, m.Modified = now.ID, now.Modified
	} else {
		m.Modified = 0
		if r.k.Name != api.KindVM {
			m.ID = "" // copies of the old one may still be going away under the old ID
		}
	}
	if r.revive != nil {
		r.revive(view, &v)
	}
	return r.table.Put(&v)
}

// reviveVM lets the kernel make the volumes anew that went away with the VM or
// with a disk.
func reviveVM(view *fsm.View, vm *api.VM) {
	disks := append([]api.Disk(nil), vm.Disks...)
	for i := range disks {
		d := &disks[i]
		if (d.SizeBytes > 0 || d.Image != "") && fsm.Volumes.Get(view, api.Key(vm.Tenant, d.Volume)) == nil {
			d.Volume = ""
		}
	}
	vm.Disks = disks
}
