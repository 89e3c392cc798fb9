package httpd

import (
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// effects says when the edits of a plan reach the guests that run.
func effects(before, after *fsm.View, changes []api.Change) []api.PlannedEffect {
	var out []api.PlannedEffect
	for _, c := range changes {
		if c.Kind != api.KindVM || c.Action() != "update" {
			continue
		}
		was, now := fsm.VMs.Get(before, c.Key), fsm.VMs.Get(after, c.Key)
		if was == nil || now == nil || was.ID != now.ID {
			continue
		}
		i := fsm.Instances.Get(before, was.ID)
		if i == nil || i.State != api.InstanceRunning && i.State != api.InstancePaused {
			continue
		}
		if e := (api.PlannedEffect{VM: c.Key}); now.On() {
			if e.Online, e.NextStart = was.EffectOn(now); len(e.Online)+len(e.NextStart) > 0 {
				out = append(out, e)
			}
		}
	}
	return out
}
