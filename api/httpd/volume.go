package httpd

import (
	"encoding/json"
	"net/http"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
	"github.com/debvisor/debvisor/fsm"
)

// volumeInput are the parameters of a verb on a volume.
type volumeInput struct {
	WriteOptions
	Name   string `path:"name" maxLength:"63" doc:"name of the volume"`
	Tenant string `query:"tenant" maxLength:"63" doc:"of the volume; default when left out"`
}

// moveVolumeBody is the body of a volume's move.
type moveVolumeBody struct {
	Pool string `json:"pool" doc:"name of the pool where it is to lie"`
}

func (s *Server) registerVolumes() error {
	return handle(s, route{method: http.MethodPost, path: "/v1/volumes/{name}/move",
		right:  authz.Right{Verb: authz.Update, Kind: api.KindVolume, Scope: authz.ScopeTenant},
		change: true, body: moveVolumeBody{}, bytes: VerbBytesMax, answer: api.Task{}, summary: "Move a volume to another pool",
		about: "The answer is the task that does it, under the guest if one runs. Cancelling the task leaves the volume where it was."}, (*exchange).moveVolume)
}

func (x *exchange) moveVolume(in *volumeInput) error {
	var body moveVolumeBody
	if err := x.decode(&body); err != nil {
		return err
	}
	if err := api.CheckName("pool", body.Pool); err != nil {
		return err
	}
	args, err := json.Marshal(api.VolumeMove{Pool: body.Pool})
	if err != nil {
		return err
	}
	entry := fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: x.derivedName("task"), Verb: api.TaskMoveVolume, Kind: api.KindVolume,
		Object: api.Key(x.tenant, in.Name), Args: args})
	return x.change(in.Plan, entry, func(out fsm.Outcome) error {
		return x.answer(http.StatusOK, fsm.Tasks.Get(x.s.cfg.Cluster.State().Read(), out.Key))
	})
}
