package agent_test

import (
	"strings"
	"testing"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// off is a VM that has run and is off.
func (h *host) off(name string) string {
	h.t.Helper()
	id := h.run(vm(name))
	h.power(name, api.PowerOff)
	h.untilState(id, api.InstanceStopped)
	return id
}

func (h *host) foundImage(name string) *api.Image {
	return fsm.Images.Get(h.log.f.Read(), api.Key(api.DefaultTenant, name))
}

func TestATemplateIsMadeOfAVM(t *testing.T) {
	t.Parallel()
	h := one(t)
	h.off("web")
	h.task("copy", api.TaskTemplate, "web", `{"image":"golden","description":"of web","labels":{"app":"web"}}`)
	h.untilTask("copy", api.TaskDone)
	image := h.foundImage("golden")
	if image == nil || image.Description != "of web" || image.Labels["app"] != "web" || image.Format != api.FormatQCOW2 {
		t.Fatalf("the image is %+v", image)
	}
	replica := fsm.Replicas.Get(h.log.f.Read(), api.ReplicaName(image.ID, h.name))
	if replica == nil || replica.State != api.ReplicaReady || replica.FileBytes != image.SizeBytes {
		t.Fatalf("the copy is %+v", replica)
	}
	clone := vm("clone")
	clone.Disks = []api.Disk{{Name: "root", Image: "golden"}}
	h.run(clone)
	_, err := h.log.apply(fsm.Images.Delete(image.Tenant, image.Name, image.Modified))
	if api.CodeOf(err) != api.CodeConflict {
		t.Errorf("a template in use is deleted: %v", err)
	}
}

func TestATemplateOfAVMThatRunsIsRefused(t *testing.T) {
	t.Parallel()
	h := one(t)
	h.run(vm("web"))
	submit := func(args string) error {
		_, err := h.log.apply(fsm.SubmitTask.Entry(fsm.TaskSubmit{Name: "copy", Verb: api.TaskTemplate, Kind: api.KindVM, Object: "default/web", Args: []byte(args)}))
		return err
	}
	if err := submit(`{"image":"golden"}`); api.CodeOf(err) != api.CodeConflict || !strings.Contains(api.AsError(err).Next, "vm stop") {
		t.Errorf("of a running VM: %v", err)
	}
	for _, args := range []string{`{}`, `{"image":"../x"}`, `{"image":"golden","disk":"other"}`, `[]`, `{"image":"golden","description":"\u001b[2J"}`} {
		if err := submit(args); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: got %v, want invalid", args, err)
		}
	}
}

func TestAStartWaitsForTheTemplate(t *testing.T) {
	t.Parallel()
	h := one(t)
	id := h.off("web")
	h.task("copy", api.TaskTemplate, "web", `{"image":"golden"}`)
	h.power("web", api.PowerOn)
	h.until("the task has ended", func(v *fsm.View) bool { return fsm.Tasks.Get(v, "copy").Ended() })
	h.untilState(id, api.InstanceRunning)
	done := fsm.Tasks.Get(h.log.f.Read(), "copy").State == api.TaskDone
	if made := h.foundImage("golden") != nil; made != done {
		t.Errorf("the task is done: %v, the image exists: %v", done, made)
	}
}

// TestATemplateIsMadeOnceHoweverOftenTheAgentDies ends the answer to each
// proposal of the task in turn, carried out or not.
func TestATemplateIsMadeOnceHoweverOftenTheAgentDies(t *testing.T) {
	t.Parallel()
	for _, applied := range []bool{true, false} {
		h := one(t)
		h.off("web")
		lost := func(e fsm.Entry) (bool, error) {
			if e.Op == fsm.MakeImage.Op() {
				h.log.twist.Store(nil)
				return applied, api.Errorf(api.CodeUnknown, "the answer was lost")
			}
			return true, nil
		}
		h.log.twist.Store(&lost)
		h.task("copy", api.TaskTemplate, "web", `{"image":"golden"}`)
		h.until("the answer was lost", func(*fsm.View) bool { return h.log.twist.Load() == nil })
		h.until("the task is done or waits", func(v *fsm.View) bool { return fsm.Tasks.Get(v, "copy").State != api.TaskRunning })
		h.end()
		h.start()
		if fsm.Tasks.Get(h.log.f.Read(), "copy").State == api.TaskPending {
			h.dispatch("copy")
		}
		h.untilTask("copy", api.TaskDone)
		if h.foundImage("golden") == nil {
			t.Errorf("applied %v: there is no image", applied)
		}
	}
}
