package agent_test

import (
	"context"
	"testing"
	"time"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// reluctant is guests whose agents do not answer, or whose file systems thaw
// too early.
type reluctant struct {
	plugins.GuestAgent
	silent bool
	thaws  *int
}

func (r reluctant) FreezeGuest(ctx context.Context, id string, limit time.Duration) (int, error) {
	if r.silent {
		return 0, api.Errorf(api.CodeConflict, "no agent answers in the guest")
	}
	n, err := r.GuestAgent.FreezeGuest(ctx, id, limit)
	if err == nil && r.thaws == nil {
		_, err = r.GuestAgent.ThawGuest(ctx, id)
	}
	return n, err
}

func (r reluctant) ThawGuest(ctx context.Context, id string) (int, error) {
	if r.thaws != nil {
		*r.thaws++
	}
	return r.GuestAgent.ThawGuest(ctx, id)
}

func TestQuiescedMeansFrozenAtThatMoment(t *testing.T) {
	t.Parallel()
	thaws := 0
	for _, c := range []struct {
		name  string
		guest reluctant
		slot  string
		state string // of the task
		quiet bool   // the snapshot is quiesced
	}{
		{"frozen", reluctant{thaws: &thaws}, "", api.TaskDone, true},
		{"silent", reluctant{silent: true}, "", api.TaskFailed, false},
		{"silent, scheduled", reluctant{silent: true}, `,"slot":"2026-01-02T03:04:00Z"`, api.TaskDone, false},
		{"thawed too early, scheduled", reluctant{}, `,"slot":"2026-01-02T03:04:00Z"`, api.TaskDone, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := one(t, func(h *host) {
				h.change = func(config *agent.Config) { c.guest.GuestAgent = config.Guests; config.Guests = c.guest }
			})
			id := h.run(vm("web"))
			h.task("t1", api.TaskSnapshot, "web", `{"name":"one","quiesce":true`+c.slot+`}`)
			h.untilTask("t1", c.state)
			s := h.snapshot("web", "one")
			if (s != nil) != (c.state == api.TaskDone) || s != nil && (s.Quiesced != c.quiet || (s.Reason == "") != c.quiet) {
				t.Errorf("the snapshot is %+v", s)
			}
			if info, err := h.hv.GuestInfo(t.Context(), id); err != nil || info.Frozen {
				t.Errorf("the guest is left %+v: %v", info, err)
			}
		})
	}
	if thaws != 1 {
		t.Errorf("the guest was thawed %d times", thaws)
	}
}

func TestGuestsOfOthersAreNotAsked(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.run(vm("web"))
	out, err := h.agent.AskGuest(t.Context(), id, api.GuestRequest{})
	if err != nil || out.Info == nil || out.Info.Hostname == "" {
		t.Errorf("the guest says %+v: %v", out, err)
	}
	if _, err := h.agent.AskGuest(t.Context(), id, api.GuestRequest{Call: "sing"}); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("an unknown call: %v", err)
	}
	if _, err := h.agent.AskGuest(t.Context(), "11111111-1111-4111-8111-111111111112", api.GuestRequest{}); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("a guest of nobody: %v", err)
	}
	set := api.GuestPasswordSet{Account: "nobody", Password: "a-secret-of-the-test"}
	if _, err := h.agent.AskGuest(t.Context(), id, api.GuestRequest{Call: api.GuestPassword, Password: &set}); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("an account that is not there: %v", err)
	}
	if fsm.Instances.Get(h.log.f.Read(), id).GuestCall != nil {
		t.Error("the agent wrote down what only the API does")
	}
}
