package httpd

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

// snapshotBody asks for a snapshot.
type snapshotBody struct {
	Name    string `json:"name" doc:"its own, unique among those of the VM"`
	Memory  bool   `json:"memory,omitempty" doc:"with the memory of the guest, which must run"`
	Quiesce bool   `json:"quiesce,omitempty" doc:"let the guest's agent freeze its file systems meanwhile"`
}

// putBackBody asks for a revert.
type putBackBody struct {
	Safety string `json:"safety,omitempty" doc:"own name of a snapshot of the disks that is taken before; empty: none"`
}

// snapshotInput are the parameters of a verb on a snapshot of a VM.
type snapshotInput struct {
	WriteOptions
	Name     string `path:"name" maxLength:"63" doc:"name of the VM"`
	Snapshot string `path:"snapshot" maxLength:"63" doc:"own name of the snapshot"`
	Tenant   string `query:"tenant" maxLength:"63" doc:"of the VM; default when left out"`
}

// snapshotsInput are the parameters of a list of the snapshots of a VM.
type snapshotsInput struct {
	Name   string `path:"name" maxLength:"63" doc:"name of the VM"`
	Tenant string `query:"tenant" maxLength:"63" doc:"of the VM; default when left out"`
	Stale  bool   `query:"stale" doc:"this node's own state, without asking the leader"`
}

func (s *Server) registerSnapshots() error {
	const path = "/v1/vms/{name}/snapshots"
	right := func(v authz.Verb) authz.Right {
		return authz.Right{Verb: v, Kind: api.KindVM, Scope: authz.ScopeTenant}
	}
	return errors.Join(
		handle(s, route{method: http.MethodGet, path: path, right: right(authz.Read), answer: page[api.Snapshot]{}, summary: "List the snapshots of a VM"}, (*exchange).snapshots),
		handle(s, route{method: http.MethodPost, path: path, right: right(authz.Snapshot), change: true, body: snapshotBody{}, bytes: VerbBytesMax,
			answer: api.Action{}, summary: "Take a snapshot of a VM"}, (*exchange).takeSnapshot),
		handle(s, route{method: http.MethodPost, path: path + "/{snapshot}/revert", right: right(authz.Revert), change: true, body: putBackBody{}, bytes: VerbBytesMax,
			answer: api.Action{}, summary: "Put a VM back to a snapshot", about: "Disks and definition become what they were; a guest whose memory was kept goes on from there. What was written since is lost, unless safety names a snapshot that is taken before."},
			(*exchange).revertSnapshot),
		handle(s, route{method: http.MethodDelete, path: path + "/{snapshot}", right: right(authz.Snapshot), change: true, bytes: VerbBytesMax,
			answer: api.Action{}, summary: "Delete a snapshot of a VM", about: "Snapshots that descend from it stay."}, (*exchange).deleteSnapshot))
}

func (x *exchange) snapshots(in *snapshotsInput) error {
	view, err := x.barrier(ReadOptions{Stale: in.Stale})
	if err != nil {
		return err
	}
	key := api.Key(x.tenant, in.Name)
	vm := fsm.VMs.Get(view, key)
	if vm == nil {
		return api.Errorf(api.CodeNotFound, "does not exist").On(api.KindVM, key)
	}
	out := page[api.Snapshot]{Items: []api.Snapshot{}, Index: view.Index()}
	for s := range fsm.Snapshots.By(view, "vm_id", vm.ID) {
		out.Items = append(out.Items, *s)
	}
	x.index(view.Index())
	return x.answer(http.StatusOK, out)
}

func (x *exchange) takeSnapshot(in *vmInput) error {
	var body snapshotBody
	if err := x.decode(&body); err != nil {
		return err
	}
	return x.guestTask(in.Plan, in.Name, api.TaskSnapshot, api.SnapshotArgs{Name: body.Name, Memory: body.Memory, Quiesce: body.Quiesce})
}

func (x *exchange) revertSnapshot(in *snapshotInput) error {
	var body putBackBody
	if err := x.decodeOptional(&body); err != nil {
		return err
	}
	if err := api.CheckName("snapshot", in.Snapshot); err != nil {
		return err
	}
	return x.guestTask(in.Plan, in.Name, api.TaskSnapshotRevert, api.SnapshotRevertArgs{Name: in.Snapshot, Safety: body.Safety})
}

func (x *exchange) deleteSnapshot(in *snapshotInput) error {
	if err := x.decodeOptional(&struct{}{}); err != nil {
		return err
	}
	if err := api.CheckName("snapshot", in.Snapshot); err != nil {
		return err
	}
	return x.guestTask(in.Plan, in.Name, api.TaskSnapshotDelete, api.SnapshotDeleteArgs{Name: in.Snapshot})
}

// guestTask submits a task about a VM, and answers with both.
func (x *exchange) guestTask(plan bool, vm, verb string, arguments any) error {
	args, err := json.Marshal(arguments)
	if err != nil {
		return err
	}
	key := api.Key(x.tenant, vm)
	entry := fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: x.derivedName("task"), Verb: verb, Kind: api.KindVM, Object: key, Args: args})
	return x.change(plan, entry, func(out fsm.Outcome) error {
		view := x.s.cfg.Cluster.State().Read()
		return x.answer(http.StatusOK, api.Action{VM: fsm.VMs.Get(view, key), Task: fsm.Tasks.Get(view, out.Key)})
	})
}
