package httpd

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Bounds of an explanation.
const (
	whyRecordsMax = 50  // of each object that it looks at
	whyFactsMax   = 200 // the newest are kept
	whyFieldsMax  = 6   // changed fields in one sentence
)

// story gathers the facts of an explanation.
type story struct {
	x     *exchange
	view  *fsm.View
	facts []api.Fact
	seen  map[string]bool
}

func (x *exchange) why(in *PastInput) error {
	res, key := x.past(in)
	view, err := x.barrier(ReadOptions{})
	if err != nil {
		return err
	}
	s := &story{x: x, view: view, seen: map[string]bool{}}
	own, err := s.own(res, key)
	if err != nil {
		return err
	}
	row := res.row(view, key)
	if row == nil && len(own) == 0 {
		return api.Errorf(api.CodeNotFound, "neither exists nor has a history").On(res.kind().Name, key)
	}
	id := s.idOf(res, key, own)
	if err := s.others(res.kind().Name, key, id); err != nil {
		return err
	}
	out := api.Explanation{Kind: res.kind().Name, Key: key, Index: view.Index()}
	out.Summary, out.Decision = s.present(res, key, id, own)
	slices.SortStableFunc(s.facts, func(a, b api.Fact) int { return cmp.Compare(a.Index, b.Index) })
	if over := len(s.facts) - whyFactsMax; over > 0 {
		s.facts = s.facts[over:]
	}
	s.facts = append(s.facts, api.Fact{Time: view.Time(), Text: out.Summary})
	out.Facts = s.facts
	x.index(view.Index())
	return x.answer(http.StatusOK, out)
}

func (s *story) add(r *api.Record, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if at := fmt.Sprintf("%d %s", r.Index, text); !s.seen[at] {
		s.seen[at] = true
		s.facts = append(s.facts, api.Fact{Time: r.Time, Index: r.Index, By: r.By, Text: text})
	}
}

// own tells of the object's own changes, and returns their records.
func (s *story) own(res resourceOf, key string) ([]api.Record, error) {
	kind := res.kind().Name
	return s.tell(kind, key, func(r *api.Record, c *api.Change) {
		switch kind {
		case api.KindInstance:
			s.instance(r, c)
		case api.KindReplica:
			s.replica(r, c)
		case api.KindTask:
			s.task(r, c)
		default:
			s.change(r, res, c)
		}
	})
}

// tell reads the records of an object and hands its change in each to say.
func (s *story) tell(kind, key string, say func(*api.Record, *api.Change)) ([]api.Record, error) {
	records, err := s.x.s.cfg.Journal.History(s.x.ctx(), kind, key, 0, whyRecordsMax)
	if err != nil {
		return nil, err
	}
	for i := range records {
		if c := changeOf(&records[i], kind, key); c != nil {
			say(&records[i], c)
		}
	}
	return records, nil
}

// others tells of what the cluster did for the object.
func (s *story) others(kind, key, id string) error {
	if kind == api.KindVM && id != "" {
		if _, err := s.tell(api.KindInstance, id, s.instance); err != nil {
			return err
		}
		for v := range fsm.Volumes.By(s.view, "owner_vm", id) {
			if err := s.replicas(v.ID); err != nil {
				return err
			}
		}
		if vm := fsm.VMs.Get(s.view, key); vm != nil {
			for _, d := range vm.Disks {
				if v := fsm.Volumes.Get(s.view, api.Key(vm.Tenant, d.Volume)); v != nil && v.OwnerVM == "" {
					if err := s.replicas(v.ID); err != nil {
						return err
					}
				}
			}
		}
	}
	if (kind == api.KindVolume || kind == api.KindImage) && id != "" {
		if err := s.replicas(id); err != nil {
			return err
		}
	}
	told := 0
	for t := range fsm.Tasks.By(s.view, "object", kind+"/"+key) {
		if told++; told > whyRecordsMax {
			break
		}
		if _, err := s.tell(api.KindTask, t.Name, s.task); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) replicas(id string) error {
	for r := range fsm.Replicas.By(s.view, "of_id", id) {
		if _, err := s.tell(api.KindReplica, r.Name, s.replica); err != nil {
			return err
		}
	}
	return nil
}

// idOf is the object's ID, from its row or, when it is gone, from its history.
func (s *story) idOf(res resourceOf, key string, own []api.Record) string {
	if head := res.head(s.view, key); head != nil {
		return head.ID
	}
	for i := range own {
		var head struct {
			ID string `json:"id"`
		}
		if c := changeOf(&own[i], res.kind().Name, key); c != nil && len(c.Before) > 0 && json.Unmarshal(c.Before, &head) == nil {
			return head.ID
		}
	}
	return ""
}

// byText names who did it in a sentence.
func byText(r *api.Record) string {
	if r.By == "" {
		return "by the cluster"
	}
	if name, ok := strings.CutPrefix(r.By, "key:"); ok {
		return "by " + name
	}
	return "by " + r.By
}

// change tells of a change by its fields.
func (s *story) change(r *api.Record, res resourceOf, c *api.Change) {
	name := c.Kind + " " + c.Key
	switch c.Action() {
	case "create":
		s.add(r, "%s was created %s", name, byText(r))
	case "delete":
		s.add(r, "%s was deleted %s", name, byText(r))
	default:
		fields, err := Fields(res.show(c.Before), res.show(c.After))
		if err != nil || len(fields) == 0 {
			return
		}
		s.add(r, "%s was changed %s: %s", name, byText(r), fieldsText(fields))
	}
}

func fieldsText(fields []api.FieldChange) string {
	var parts []string
	for i, f := range fields {
		if i == whyFieldsMax {
			parts = append(parts, fmt.Sprintf("and %d more", len(fields)-i))
			break
		}
		parts = append(parts, fmt.Sprintf("%s from %s to %s", f.Field, valueText(f.Before), valueText(f.After)))
	}
	return strings.Join(parts, ", ")
}

func valueText(raw json.RawMessage) string {
	if len(raw) == 0 {
		return "nothing"
	}
	if len(raw) > 60 {
		return string(raw[:57]) + "..."
	}
	return string(raw)
}

// sides decodes both sides of a change.
func sides[T any](c *api.Change) (before, after T) {
	_ = json.Unmarshal(orEmpty(c.Before), &before)
	_ = json.Unmarshal(orEmpty(c.After), &after)
	return before, after
}

func (s *story) instance(r *api.Record, c *api.Change) {
	was, is := sides[api.Instance](c)
	switch {
	case len(c.After) == 0:
		s.add(r, "the guest was removed from %s", cmp.Or(was.Owner, "no host"))
	case is.Owner != "" && is.Gen != was.Gen:
		s.add(r, "placed on %s: %s", is.Owner, summaryOf(is.Decision))
	case is.Owner == "" && was.Owner != "":
		s.add(r, "taken from %s: %s", was.Owner, cmp.Or(is.Reason, "no reason was given"))
	case is.Owner == "" && is.State == api.InstancePending:
		s.add(r, "waits for a place: %s", summaryOf(is.Decision))
	case is.State != was.State || is.Reason != was.Reason:
		s.add(r, "%s reports %s%s", is.Owner, is.State, reasonText(is.Reason))
	}
	if is.Restarts > was.Restarts {
		s.add(r, "%s started the guest again after it ended by itself (%d times so far)", is.Owner, is.Restarts)
	}
	if len(is.Drift) > 0 && !slices.Equal(was.Drift, is.Drift) {
		s.add(r, "%s found a difference: %s", is.Owner, strings.Join(is.Drift, "; "))
	}
}

func summaryOf(d *api.Decision) string {
	if d == nil || d.Summary == "" {
		return "no reason was recorded"
	}
	return d.Summary
}

func reasonText(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func (s *story) replica(r *api.Record, c *api.Change) {
	was, is := sides[api.Replica](c)
	switch {
	case len(c.After) == 0:
		s.add(r, "the copy of %s %s on %s was removed", was.Kind, was.Of, was.Node)
	case is.State != was.State || is.Reason != was.Reason:
		s.add(r, "the copy of %s %s on %s is %s%s", is.Kind, is.Of, is.Node, is.State, reasonText(is.Reason))
	}
}

func (s *story) task(r *api.Record, c *api.Change) {
	was, is := sides[api.Task](c)
	if len(c.After) == 0 || is.State == was.State {
		return
	}
	switch is.State {
	case api.TaskPending:
		if len(c.Before) == 0 {
			s.add(r, "%s was asked for %s (task %s)", is.Verb, byText(r), is.Name)
			return
		}
		s.add(r, "%s will be tried again (task %s)%s", is.Verb, is.Name, errorText(is.Error))
	case api.TaskRunning:
		s.add(r, "%s began on %s (task %s, attempt %d)", is.Verb, cmp.Or(is.Node, "the leader"), is.Name, is.Attempt)
	default:
		s.add(r, "%s is %s (task %s)%s", is.Verb, is.State, is.Name, errorText(is.Error))
	}
}

func errorText(err *api.Error) string {
	if err == nil {
		return ""
	}
	return ": " + err.Error()
}

// present says in one sentence how the object is now.
func (s *story) present(res resourceOf, key, id string, own []api.Record) (string, *api.Decision) {
	kind := res.kind().Name
	row := res.row(s.view, key)
	if row == nil {
		return fmt.Sprintf("%s %s does not exist: it was deleted %s at index %d", kind, key, byText(&own[0]), own[0].Index), nil
	}
	switch kind {
	case api.KindVM:
		return s.presentVM(key, id)
	case api.KindInstance:
		i := fsm.Instances.Get(s.view, key)
		return fmt.Sprintf("the guest of vm %s is %s%s%s", i.VM, i.State, onNode(i.Owner), reasonText(i.Reason)), i.Decision
	case api.KindNode:
		n := fsm.Nodes.Get(s.view, key)
		return fmt.Sprintf("node %s is %s at epoch %d%s", key, n.Lease, n.Epoch, nodeText(n)), nil
	case api.KindTask:
		t := fsm.Tasks.Get(s.view, key)
		return fmt.Sprintf("task %s (%s) is %s%s%s", key, t.Verb, t.State, onNode(t.Node), errorText(t.Error)), nil
	}
	head := res.head(s.view, key)
	return fmt.Sprintf("%s %s is as it was written at index %d, %s", kind, key, head.Modified, head.ModifiedAt.Format(time.RFC3339)), nil
}

func onNode(node string) string {
	if node == "" {
		return ""
	}
	return " on " + node
}

func nodeText(n *api.Node) string {
	switch {
	case n.Witness:
		return ", a witness that runs no VMs"
	case n.Unschedulable:
		return ", takes no new VMs"
	case !n.Hypervisor.Healthy:
		return ", its hypervisor is not healthy" + reasonText(n.Hypervisor.Reason)
	}
	return ""
}

func (s *story) presentVM(key, id string) (string, *api.Decision) {
	vm, i := fsm.VMs.Get(s.view, key), fsm.Instances.Get(s.view, id)
	want := "on"
	if !vm.On() {
		want = "off"
	}
	if i == nil {
		return fmt.Sprintf("vm %s shall be %s; the cluster has not decided where it runs", key, want), nil
	}
	if i.Owner == "" {
		return fmt.Sprintf("vm %s shall be %s and has no host%s", key, want, reasonText(cmp.Or(i.Reason, summaryOf(i.Decision)))), i.Decision
	}
	since := ""
	if !i.StartedAt.IsZero() && i.State == api.InstanceRunning {
		since = " since " + i.StartedAt.Format(time.RFC3339)
	}
	return fmt.Sprintf("vm %s shall be %s and is %s on %s%s%s", key, want, i.State, i.Owner, since, reasonText(i.Reason)), i.Decision
}
