package fsm

import (
	"cmp"
	"encoding/json"
	"time"

	"github.com/debvisor/debvisor/api"
)

// TaskSubmit is the body of task.submit.
type TaskSubmit struct {
	Name     string          `json:"name"` // stamped by the proposer, unique
	Verb     string          `json:"verb"`
	Kind     string          `json:"kind,omitzero"`
	Object   string          `json:"object,omitzero"` // key
	Args     json.RawMessage `json:"args,omitzero"`
	Deadline time.Time       `json:"deadline,omitzero"` // zero: TaskDefaultDeadline from now
}

// SubmitTask asks for something once.
var SubmitTask = transition("task.submit", Tasks, submitTask).forUsers()

func submitTask(tx *Tx, in TaskSubmit) (*api.Task, *api.Error) {
	if err := api.CheckName("name", in.Name); err != nil {
		return nil, err
	}
	if Tasks.Get(tx, in.Name) != nil {
		return nil, api.Errorf(api.CodeConflict, "exists already").On(api.KindTask, in.Name)
	}
	t := api.Task{Meta: api.Meta{Name: in.Name}, Verb: in.Verb, Kind: in.Kind, Object: in.Object, Args: in.Args, By: tx.By,
		Deadline: in.Deadline, State: api.TaskPending}
	verb, _ := api.LookupTaskVerb(in.Verb)
	if t.Deadline.IsZero() {
		t.Deadline = tx.Time.Add(cmp.Or(verb.Deadline, api.TaskDefaultDeadline))
	}
	if left := t.Deadline.Sub(tx.Time); left <= 0 || left > api.TaskDeadlineMax {
		return nil, api.Invalid("deadline", "is %v away", left.Round(time.Second)).Allow("up to %v", api.TaskDeadlineMax).On(api.KindTask, in.Name)
	}
	if err := t.Validate(); err != nil {
		return nil, api.AsError(err).OnMissing(api.KindTask, in.Name)
	}
	if active := tx.counted(activeTasks); active >= api.TasksActiveMax {
		return nil, api.Errorf(api.CodeLimit, "%d tasks have not ended", active).Allow("at most %d", api.TasksActiveMax).Do("wait for some of them, or cancel them")
	}
	if err := checkTaskObject(tx, &t, verb); err != nil {
		return nil, err
	}
	if check := taskRules()[t.Verb]; check != nil {
		if err := check(tx, &t); err != nil {
			return nil, err.OnMissing(t.Kind, t.Object)
		}
	}
	return Tasks.put(tx, t), nil
}

// checkTaskObject refuses a task about another kind than its verb's, or about
// what does not exist. The task belongs to the tenant of its object.
func checkTaskObject(tx *Tx, t *api.Task, verb api.TaskVerb) *api.Error {
	switch {
	case verb.Kind == "" && (t.Kind != "" || t.Object != ""):
		return api.Invalid("kind", "is %q, %s is about no single object", t.Kind, t.Verb).Allow("neither kind nor object").On(api.KindTask, t.Name)
	case t.Kind != verb.Kind:
		return api.Invalid("kind", "is %q, %s is about a %s", t.Kind, t.Verb, verb.Kind).Allow("%s", verb.Kind).On(api.KindTask, t.Name)
	case verb.Kind == "":
		return nil
	}
	if tx.row(t.Kind, t.Object) == nil {
		return api.Errorf(api.CodeNotFound, "does not exist").On(t.Kind, t.Object)
	}
	if kind, _ := api.LookupKind(t.Kind); kind.TenantScope {
		t.Tenant, _ = api.SplitKey(t.Object)
	}
	return nil
}

// taskRules is what must hold for a task of a verb to be taken on, beside what
// its declaration says. A rule may write other rows in the same entry.
func taskRules() map[string]func(tx *Tx, t *api.Task) *api.Error {
	return map[string]func(tx *Tx, t *api.Task) *api.Error{
		api.TaskRestart: func(tx *Tx, t *api.Task) *api.Error {
			if vm := VMs.Get(tx, t.Object); !vm.On() {
				return api.Errorf(api.CodeConflict, "is off").On(api.KindVM, t.Object).Do("start it instead")
			}
			return nil
		},
		api.TaskFetch:    checkFetch,
		api.TaskTemplate: checkTemplate,
		api.TaskStop: func(tx *Tx, t *api.Task) *api.Error {
			vm := VMs.Get(tx, t.Object)
			_, err := powerVM(tx, VMPower{Tenant: vm.Tenant, Name: vm.Name, Power: api.PowerOff})
			return err
		},
		api.TaskMigrate:        submitMigration,
		api.TaskDrain:          drainNode,
		api.TaskBalance:        checkBalance,
		api.TaskSnapshot:       submitSnapshot,
		api.TaskSnapshotRevert: submitRevert,
		api.TaskSnapshotDelete: submitSnapshotDelete,
		api.TaskMoveVolume:     submitMove,
	}
}

// TaskDispatch is the body of task.dispatch.
type TaskDispatch struct {
	Name    string `json:"name"`
	Node    string `json:"node,omitzero"` // empty: the leader does it
	Epoch   uint64 `json:"epoch"`         // of the node, or the leader's term
	Attempt int    `json:"attempt"`       // as the leader saw it

	Decision *api.Decision `json:"decision,omitzero"` // of a vm.migrate: where to
}

// DispatchTask writes a pending task to a node.
var DispatchTask = transition("task.dispatch", Tasks, func(tx *Tx, in TaskDispatch) (*api.Task, *api.Error) {
	t, err := taskIn(tx, in.Name, api.TaskPending)
	if err != nil {
		return nil, err
	}
	if t.Attempt != in.Attempt {
		return nil, api.Errorf(api.CodeConflict, "is at attempt %d", t.Attempt).On(api.KindTask, in.Name)
	}
	if in.Node != "" {
		if _, err := liveNode(tx, in.Node, in.Epoch); err != nil {
			return nil, err
		}
	}
	t.State, t.Node, t.Epoch, t.Attempt, t.StartedAt = api.TaskRunning, in.Node, in.Epoch, t.Attempt+1, tx.Time
	if t.Decision = in.Decision; t.Decision != nil {
		decision := *in.Decision
		decision.At = tx.Time
		t.Decision = &decision
	}
	return Tasks.put(tx, *t), nil
})

func taskIn(tx *Tx, name string, states ...string) (*api.Task, *api.Error) {
	t := Tasks.Get(tx, name)
	if t == nil {
		return nil, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindTask, name)
	}
	for _, s := range states {
		if t.State == s {
			copied := *t
			return &copied, nil
		}
	}
	return nil, api.Errorf(api.CodeConflict, "is %s", t.State).On(api.KindTask, name)
}

// TaskReport is the body of task.report, task.release and task.finish. Node
// and Epoch are those of the dispatch.
type TaskReport struct {
	Name      string     `json:"name"`
	Node      string     `json:"node,omitzero"`
	Epoch     uint64     `json:"epoch"`
	Attempt   int        `json:"attempt"`
	Percent   int        `json:"percent,omitzero"`
	Step      string     `json:"step,omitzero"`
	NotBefore time.Time  `json:"not_before,omitzero"` // release: backoff
	State     string     `json:"state,omitzero"`      // finish: done, failed or cancelled
	Error     *api.Error `json:"error,omitzero"`
}

func taskOf(tx *Tx, in TaskReport) (*api.Task, *api.Error) {
	t, err := taskIn(tx, in.Name, api.TaskRunning)
	if err != nil {
		return nil, err
	}
	if t.Node != in.Node || t.Epoch != in.Epoch || t.Attempt != in.Attempt {
		return nil, api.Errorf(api.CodeConflict, "belongs to %q at epoch %d, attempt %d", t.Node, t.Epoch, t.Attempt).On(api.KindTask, in.Name)
	}
	return t, nil
}

// ReportTask records progress.
var ReportTask = transition("task.report", Tasks, func(tx *Tx, in TaskReport) (*api.Task, *api.Error) {
	t, err := taskOf(tx, in)
	if err != nil {
		return nil, err
	}
	t.Percent, t.Step = in.Percent, api.CleanText(in.Step, api.TextLengthMax)
	if err := t.Validate(); err != nil {
		return nil, api.AsError(err).OnMissing(api.KindTask, in.Name)
	}
	return Tasks.put(tx, *t), nil
}).forAgents()

// ReleaseTask gives a running task back, to be tried again after NotBefore. At
// the last attempt it fails instead. The leader may release a task of a node
// that registered anew.
var ReleaseTask = transition("task.release", Tasks, func(tx *Tx, in TaskReport) (*api.Task, *api.Error) {
	t, err := taskOf(tx, in)
	if err != nil {
		return nil, err
	}
	t.Error = cleanError(in.Error)
	switch {
	case t.Cancel:
		endTask(tx, t, api.TaskCancelled)
	case t.Attempt >= api.TaskAttemptsMax:
		endTask(tx, t, api.TaskFailed)
	default:
		t.State, t.Node, t.Epoch, t.NotBefore = api.TaskPending, "", 0, in.NotBefore
	}
	return Tasks.put(tx, *t), nil
}).forAgents()

// errorDetailsMax is how many details of a failed task's error are kept.
const errorDetailsMax = 20

// cleanError is what is kept of the error of whoever did a task: its texts come
// from machines, and from guests.
func cleanError(err *api.Error) *api.Error {
	if err == nil {
		return nil
	}
	e := cleanDetail(err)
	for _, d := range err.Details[:min(len(err.Details), errorDetailsMax)] {
		if d != nil {
			e.Details = append(e.Details, cleanDetail(d))
		}
	}
	return e
}

func cleanDetail(err *api.Error) *api.Error {
	text := func(s string) string { return api.CleanText(s, api.TextLengthMax) }
	return &api.Error{Code: api.Code(text(string(err.Code))), Message: text(err.Message), Kind: text(err.Kind), Key: text(err.Key),
		Field: text(err.Field), Allowed: text(err.Allowed), Next: text(err.Next), RequestID: text(err.RequestID)}
}

func endTask(tx *Tx, t *api.Task, state string) {
	t.State, t.EndedAt = state, tx.Time
	if state == api.TaskDone {
		t.Percent, t.Error = 100, nil
	}
	endSnapshotTask(tx, t)
}

// FinishTask ends a running task.
var FinishTask = transition("task.finish", Tasks, func(tx *Tx, in TaskReport) (*api.Task, *api.Error) {
	t, err := taskOf(tx, in)
	if err != nil {
		return nil, err
	}
	t.Error = cleanError(in.Error)
	endTask(tx, t, in.State)
	if !t.Ended() {
		return nil, api.Invalid("state", "is %q", in.State).Allow("done, failed, cancelled").On(api.KindTask, in.Name)
	}
	if in.Step != "" {
		t.Step = api.CleanText(in.Step, api.TextLengthMax)
	}
	return Tasks.put(tx, *t), nil
}).forAgents()

// TaskName is the body of task.cancel and task.expire.
type TaskName struct {
	Name string `json:"name"`
}

// CancelTask ends a pending task and asks the doer of a running one to stop.
var CancelTask = transition("task.cancel", Tasks, func(tx *Tx, in TaskName) (*api.Task, *api.Error) {
	t, err := taskIn(tx, in.Name, api.TaskPending, api.TaskRunning)
	if err != nil {
		return nil, err
	}
	if t.Cancel {
		return nil, api.Errorf(api.CodeConflict, "is being cancelled already").On(api.KindTask, in.Name)
	}
	if t.Verb == api.TaskSnapshotRevert && !t.StartedAt.IsZero() {
		return nil, api.Errorf(api.CodeConflict, "has begun, and disks that are put back by half are no use").On(api.KindTask, in.Name).
			Do("wait until it is done, then revert again")
	}
	t.Cancel = true
	if t.State == api.TaskPending {
		endTask(tx, t, api.TaskCancelled)
	}
	return Tasks.put(tx, *t), nil
}).forUsers()

// ExpireTask fails a task whose deadline has passed.
var ExpireTask = transition("task.expire", Tasks, func(tx *Tx, in TaskName) (*api.Task, *api.Error) {
	t, err := taskIn(tx, in.Name, api.TaskPending, api.TaskRunning)
	if err != nil {
		return nil, err
	}
	if tx.Time.Before(t.Deadline) {
		return nil, api.Errorf(api.CodeConflict, "has time until %s", t.Deadline.Format(time.RFC3339)).On(api.KindTask, in.Name)
	}
	if t.Error == nil {
		t.Error = api.Errorf(api.CodeUnavailable, "was not finished by its deadline")
	}
	endTask(tx, t, api.TaskFailed)
	return Tasks.put(tx, *t), nil
})

// TasksTrimMax is how many tasks one task.trim deletes.
const TasksTrimMax = 1000

// TasksTrim is the body of task.trim.
type TasksTrim struct{}

// TrimTasks deletes tasks that ended longer ago than the cluster's task
// retention, at most TasksTrimMax.
var TrimTasks = effect("task.trim", func(tx *Tx, _ TasksTrim) *api.Error {
	floor := tx.Time.Add(-settings(tx).TaskRetention)
	var old []string
	for t := range Tasks.Ordered(tx, "ended") {
		if !t.EndedAt.Before(floor) || len(old) == TasksTrimMax {
			break
		}
		old = append(old, t.Name)
	}
	for _, name := range old {
		Tasks.delete(tx, name)
	}
	return nil
})
