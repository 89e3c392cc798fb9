package control

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Limits of tasks.
const (
	tasksPause       = 20 * time.Millisecond // at least, between two looks
	tasksIdle        = time.Minute           // between looks when nothing changes
	tasksFlightsMax  = 32                    // proposals in flight
	tasksRetryPause  = time.Second           // after a look whose proposals were not all accepted
	taskBackoffMin   = time.Second           // before the second attempt, doubled with each
	taskBackoffLimit = time.Minute
)

// tasks moves every task towards its end: to a node that can do it, back from
// one that cannot, or to a failure with a reason.
type tasks struct {
	c     *Control
	term  uint64
	doing *doing
}

func (c *Control) runTasks(ctx context.Context, term uint64) error {
	t := &tasks{c: c, term: term, doing: newDoing(ctx, c, term)}
	defer t.doing.wait()
	for {
		advanced := c.cluster.State().Advanced()
		next := t.step(ctx)
		if !wait(ctx, next, advanced) || !wait(ctx, tasksPause, nil) {
			return nil
		}
	}
}

// survey is one look at all tasks that have not ended.
type survey struct {
	view    *fsm.View
	now     time.Time
	next    time.Time // when something becomes due by itself; zero: never
	limit   int       // of tasks running at once on one node, and on the leader itself
	busy    map[string]int
	objects map[string]bool // verb and object of what runs
	moves   []move
	round   Round // of placement; nil: nobody asked yet
}

// move is what should follow for one task: entries to be proposed in order.
type move struct {
	task    string
	entries []fsm.Entry
	start   *api.Task // to be done by the leader once the entries are accepted
}

func (s *survey) due(at time.Time) {
	if s.next.IsZero() || at.Before(s.next) {
		s.next = at
	}
}

// step looks at every task and proposes what should follow. It returns how
// long nothing will be due by itself.
func (t *tasks) step(ctx context.Context) time.Duration {
	view := t.c.cluster.State().Read()
	s := &survey{view: view, now: t.c.now(view), limit: fsm.Settings(view).TasksPerNode, busy: map[string]int{}, objects: map[string]bool{}}
	for task := range fsm.Tasks.By(view, "state", api.TaskRunning) {
		t.running(s, task)
	}
	var pending []*api.Task
	for task := range fsm.Tasks.By(view, "state", api.TaskPending) {
		pending = append(pending, task)
	}
	for _, task := range fair(pending) {
		t.pending(s, task)
	}
	next := tasksIdle
	if !s.next.IsZero() {
		next = max(0, min(next, s.next.Sub(s.now)))
	}
	if !t.carryOut(ctx, s.moves) {
		next = min(next, tasksRetryPause)
	}
	return next
}

// carryOut proposes the moves, several at once, and reports whether all of
// them were accepted.
func (t *tasks) carryOut(ctx context.Context, moves []move) bool {
	var flights errgroup.Group
	flights.SetLimit(tasksFlightsMax)
	for _, m := range moves {
		flights.Go(func() error {
			for _, e := range m.entries {
				if _, err := t.c.propose(ctx, e); err != nil {
					t.c.log.Debug("task not moved", "task", m.task, "op", e.Op, "error", err)
					if m.start != nil {
						t.doing.forget(m.task) // were it dispatched all the same, nobody would be at it
					}
					return err
				}
			}
			if m.start != nil {
				t.doing.begin(m.start)
			}
			return nil
		})
	}
	return flights.Wait() == nil
}

// running decides about a task that somebody does.
func (t *tasks) running(s *survey, task *api.Task) {
	report := fsm.TaskReport{Name: task.Name, Node: task.Node, Epoch: task.Epoch, Attempt: task.Attempt}
	if t.expired(s, task) {
		t.doing.cancel(task.Name)
		return
	}
	s.busy[task.Node]++
	s.objects[task.Verb+" "+task.Object] = true
	if reason := t.lost(s.view, task); reason != "" {
		report.Error = api.Errorf(api.CodeUnavailable, "%s", reason)
		report.NotBefore = s.now.Add(taskBackoff(task.Attempt))
		s.moves = append(s.moves, move{task: task.Name, entries: []fsm.Entry{fsm.ReleaseTask.Entry(report)}})
		return
	}
	if task.Node == "" && task.Cancel {
		t.doing.cancel(task.Name)
	}
	if verb, _ := api.LookupTaskVerb(task.Verb); verb.At == api.TaskAtOwner && fsm.VMs.Get(s.view, task.Object) == nil {
		report.State, report.Error = api.TaskFailed, gone(task)
		s.moves = append(s.moves, move{task: task.Name, entries: []fsm.Entry{fsm.FinishTask.Entry(report)}})
	}
}

// lost says why whoever the task was given to will not finish it; empty: it may.
func (t *tasks) lost(view *fsm.View, task *api.Task) string {
	if task.Node == "" {
		if task.Epoch != t.term {
			return "the leader changed"
		}
		if !t.doing.has(task.Name) {
			return "the leader is not at it"
		}
		return ""
	}
	n := fsm.Nodes.Get(view, task.Node)
	switch {
	case n == nil:
		return "node " + task.Node + " was removed"
	case n.Epoch != task.Epoch:
		return "node " + task.Node + " restarted"
	case n.Lease != api.NodeLive:
		return "node " + task.Node + " was lost"
	}
	switch verb, _ := api.LookupTaskVerb(task.Verb); verb.At {
	case api.TaskAtVolume:
		if v := fsm.Volumes.Get(view, task.Object); v != nil && fsm.MoveNode(view, v) != task.Node {
			return "the volume is not with node " + task.Node + " any more"
		}
	case api.TaskAtOwner:
		if i := instanceOf(view, task.Object); i != nil && i.Owner != task.Node {
			return "the VM left node " + task.Node
		}
	}
	return ""
}

// pending decides about a task that waits.
func (t *tasks) pending(s *survey, task *api.Task) {
	if t.expired(s, task) {
		return
	}
	route := t.route(s, task)
	if route.end != "" {
		s.moves = append(s.moves, t.end(task, route))
		return
	}
	if route.wait {
		return
	}
	if task.NotBefore.After(s.now) {
		s.due(task.NotBefore)
		return
	}
	object := task.Verb + " " + task.Object
	if s.busy[route.node] >= s.limit || task.Object != "" && s.objects[object] {
		return // the end of one that runs wakes the loop
	}
	s.busy[route.node]++
	s.objects[object] = true
	m := move{task: task.Name}
	in := fsm.TaskDispatch{Name: task.Name, Node: route.node, Epoch: route.epoch, Attempt: task.Attempt, Decision: route.decision}
	if route.node == "" {
		in.Epoch = t.term
		begun := *task
		begun.Attempt++
		m.start = &begun
		t.doing.reserve(task.Name)
	}
	m.entries = []fsm.Entry{fsm.DispatchTask.Entry(in)}
	s.moves = append(s.moves, m)
}

// expired asks for the end of a task whose deadline has passed.
func (t *tasks) expired(s *survey, task *api.Task) bool {
	if s.now.Before(task.Deadline) {
		s.due(task.Deadline)
		return false
	}
	s.moves = append(s.moves, move{task: task.Name, entries: []fsm.Entry{fsm.ExpireTask.Entry(fsm.TaskName{Name: task.Name})}})
	return true
}

// route is where a pending task should go.
type route struct {
	node  string // empty: the leader
	epoch uint64
	wait  bool       // nobody can do it at the moment
	end   string     // it can end without being done
	err   *api.Error // with end

	decision *api.Decision // of a migration
}

// route tells who should do a pending task.
func (t *tasks) route(s *survey, task *api.Task) route {
	view := s.view
	verb, known := api.LookupTaskVerb(task.Verb)
	switch {
	case task.Verb == api.TaskMigrate:
		return t.routeMigration(s, task)
	case known && verb.At == api.TaskAtOwner:
		return t.routeToOwner(view, task)
	case known && verb.At == api.TaskAtNode:
		return routeToNode(view, task)
	case known && verb.At == api.TaskAtAny:
		return routeToAny(view, task)
	case known && verb.At == api.TaskAtVolume:
		return routeToVolume(view, task)
	case known && t.doers(task.Verb) != nil:
		return route{}
	}
	return route{end: api.TaskFailed, err: api.Errorf(api.CodeInvalid, "nobody carries out %s of kind %q", task.Verb, task.Kind)}
}

// routeToNode sends a task to the node that its arguments name.
func routeToNode(view *fsm.View, task *api.Task) route {
	var args struct {
		Node string `json:"node"`
	}
	if err := json.Unmarshal(task.Args, &args); err != nil || args.Node == "" {
		return route{end: api.TaskFailed, err: api.Invalid("args", "name no node").On(api.KindTask, task.Name)}
	}
	n := fsm.Nodes.Get(view, args.Node)
	switch {
	case n == nil:
		return route{end: api.TaskFailed, err: api.Errorf(api.CodeNotFound, "is not a member").On(api.KindNode, args.Node)}
	case n.Lease != api.NodeLive:
		return route{wait: true} // until it returns, or the deadline
	}
	return route{node: n.Name, epoch: n.Epoch}
}

// routeToVolume sends a task about a volume to the node that works on it.
func routeToVolume(view *fsm.View, task *api.Task) route {
	v := fsm.Volumes.Get(view, task.Object)
	if v == nil {
		return route{end: api.TaskFailed, err: gone(task)}
	}
	n := fsm.Nodes.Get(view, fsm.MoveNode(view, v))
	if n == nil || n.Lease != api.NodeLive {
		return route{wait: true} // until it returns, or the deadline
	}
	return route{node: n.Name, epoch: n.Epoch}
}

// routeToOwner sends a task about a VM to the node that owns it.
func (t *tasks) routeToOwner(view *fsm.View, task *api.Task) route {
	vm := fsm.VMs.Get(view, task.Object)
	if vm == nil {
		return route{end: api.TaskFailed, err: gone(task)}
	}
	if task.Verb == api.TaskRestart && !vm.On() {
		return route{end: api.TaskFailed, err: api.Errorf(api.CodeConflict, "is off").On(api.KindVM, task.Object).Do("start it instead")}
	}
	i := fsm.Instances.Get(view, vm.ID)
	if i == nil || i.Owner == "" {
		if task.Verb == api.TaskStop && !vm.On() {
			return route{end: api.TaskDone} // it runs nowhere
		}
		return route{wait: true}
	}
	n := fsm.Nodes.Get(view, i.Owner)
	if n == nil || n.Lease != api.NodeLive {
		return route{wait: true} // until the node returns, or the deadline
	}
	return route{node: n.Name, epoch: n.Epoch}
}

func instanceOf(view *fsm.View, vmKey string) *api.Instance {
	if vm := fsm.VMs.Get(view, vmKey); vm != nil {
		return fsm.Instances.Get(view, vm.ID)
	}
	return nil
}

// end takes the task for the leader and ends it at once.
func (t *tasks) end(task *api.Task, r route) move {
	return move{task: task.Name, entries: []fsm.Entry{
		fsm.DispatchTask.Entry(fsm.TaskDispatch{Name: task.Name, Epoch: t.term, Attempt: task.Attempt}),
		fsm.FinishTask.Entry(fsm.TaskReport{Name: task.Name, Epoch: t.term, Attempt: task.Attempt + 1, State: r.end, Error: r.err}),
	}}
}

func (t *tasks) doers(verb string) Doer { return t.c.doers[verb] }

func gone(task *api.Task) *api.Error {
	return api.Errorf(api.CodeNotFound, "was deleted before the task was done").On(task.Kind, task.Object)
}

// taskBackoff is how long a task waits after that attempt.
func taskBackoff(attempt int) time.Duration {
	d := taskBackoffMin << min(max(attempt-1, 0), 10)
	return jittered(min(d, taskBackoffLimit))
}

// fair orders tasks so that tenants take turns, each with its oldest first.
func fair(pending []*api.Task) []*api.Task {
	slices.SortFunc(pending, func(a, b *api.Task) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), cmp.Compare(a.Name, b.Name))
	})
	turns := make([]int, len(pending)) // how many of the same tenant come before
	seen := map[string]int{}
	order := make([]int, len(pending))
	for i, t := range pending {
		turns[i], order[i] = seen[t.Tenant], i
		seen[t.Tenant]++
	}
	slices.SortStableFunc(order, func(a, b int) int { return turns[a] - turns[b] })
	out := make([]*api.Task, len(pending))
	for i, at := range order {
		out[i] = pending[at]
	}
	return out
}
