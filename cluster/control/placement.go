package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Placer decides on which nodes VMs run.
type Placer interface {
	// Begin takes a picture of the cluster for one round.
	Begin(view *fsm.View) Round
}

// Round is one picture of the cluster. Each decision counts as carried out for
// those that follow in the round. It is used by one goroutine.
type Round interface {
	// Decide finds a node for the VM. A decision without a node says in its
	// summary why there is none.
	Decide(vm *api.VM, now time.Time) api.Decision
	// Move finds the node that the running guest of the VM migrates to, away
	// from its own. A decision without a node carries the reasons with its candidates.
	Move(vm *api.VM, from string, args api.MigrateArgs, now time.Time) api.Decision
}

// Limits of placement.
const (
	placementPause      = 10 * time.Millisecond // at least, between two rounds: what arrives together is placed together
	placementFlightsMax = 64                    // proposals in flight
	roundAssignsMax     = 1024                  // VMs placed in one round; the next one sees a new picture
	reconsiderPause     = time.Second           // between rounds over those held, when little has changed
	holdAgainMin        = 5 * time.Second       // before a new reason replaces the one shown with a VM
	rescanPause         = time.Minute           // between looks at every VM, whatever was noted
	refusalsMax         = 3                     // in a row, before a VM is held with the refusal as its reason
)

// placement is the memory of the loop between rounds. It is only what spares
// work: all of it is made anew by a scan.
type placement struct {
	c *Control

	index   uint64              // records were read through this one
	waiting map[string]struct{} // IDs of VMs that may want a place
	fresh   map[string]struct{} // those of them that no round has looked at
	refused map[string]refusal  // of those that were assigned in vain
	moved   bool                // there may be room that was not there before
	shifted bool                // something changed that may matter to those held

	scanned, whole time.Duration // when everything was scanned, when all that wait were considered
	backoff        backoff
}

// refusal is what Apply answered to the assignments of one VM.
type refusal struct {
	count  int // in a row
	reason string
}

func (c *Control) runPlacement(ctx context.Context) error {
	p := &placement{c: c, refused: map[string]refusal{}}
	for {
		advanced := c.cluster.State().Advanced()
		begun := c.clock.Elapsed()
		p.note()
		next := p.round(ctx)
		// A round that took long makes the next one wait as long, so that the
		// loop never takes more than half of a core.
		pause := max(placementPause, c.clock.Elapsed()-begun)
		if !wait(ctx, next, advanced) || !wait(ctx, pause, nil) {
			return nil
		}
	}
}

// note reads what changed since the last time.
func (p *placement) note() {
	state, now := p.c.cluster.State(), p.c.clock.Elapsed()
	const recordsMax = 4096
	if p.waiting == nil || now-p.scanned > rescanPause {
		p.scan(now)
		return
	}
	for {
		records, ok := state.Recent(p.index, recordsMax)
		if !ok {
			p.scan(now)
			return
		}
		if len(records) == 0 {
			return
		}
		view := state.Read() // not older than the records
		for _, r := range records {
			p.noteRecord(view, r)
			p.index = r.Index
		}
	}
}

// scan looks at every VM.
func (p *placement) scan(now time.Duration) {
	view := p.c.cluster.State().Read()
	p.index, p.scanned, p.moved = view.Index(), now, true
	p.waiting, p.fresh = map[string]struct{}{}, map[string]struct{}{}
	for vm := range fsm.VMs.All(view) {
		if wantsPlace(view, vm) {
			p.waiting[vm.ID] = struct{}{}
		}
	}
}

func wantsPlace(view *fsm.View, vm *api.VM) bool {
	if vm == nil || !vm.On() {
		return false
	}
	i := fsm.Instances.Get(view, vm.ID)
	return i == nil || i.Owner == ""
}

// noteRecord learns from one record who may want a place and whether those
// that have none should be looked at again.
func (p *placement) noteRecord(view *fsm.View, r *api.Record) {
	if r.Op == fsm.HoldInstance.Op() || r.Op == fsm.ReportInstance.Op() {
		return // neither makes room nor asks for it
	}
	for i := range r.Changes {
		ch := &r.Changes[i]
		switch ch.Kind {
		case api.KindVM:
			p.moved = true // it may be gone, or smaller
			if vm := fsm.VMs.Get(view, ch.Key); vm != nil {
				p.noteVM(view, vm)
			}
		case api.KindInstance:
			if r.Op == fsm.AssignInstance.Op() {
				p.shifted = true // others may want to be beside it
				continue
			}
			p.moved = true
			for vm := range fsm.VMs.By(view, "id_of", ch.Key) {
				p.noteVM(view, vm)
			}
		case api.KindNode, api.KindReplica:
			if r.Op == fsm.ReportNode.Op() || r.Op == fsm.ReportReplica.Op() {
				p.shifted = true // they come often and change little
				continue
			}
			p.moved = true
		case api.KindPool, api.KindVolume, api.KindImage, api.KindNetwork, api.KindConfig:
			p.moved = true
		}
	}
}

func (p *placement) noteVM(view *fsm.View, vm *api.VM) {
	if wantsPlace(view, vm) {
		p.waiting[vm.ID], p.fresh[vm.ID] = struct{}{}, struct{}{}
	}
}

// round places what waits, and returns after which time another round is due
// even if nothing changes. In an unchanged world it looks only at those that
// are new: the others did not fit before.
func (p *placement) round(ctx context.Context) time.Duration {
	now := p.c.clock.Elapsed()
	whole := p.moved || p.shifted && now-p.whole >= reconsiderPause
	set := p.fresh
	if whole {
		set = p.waiting
	}
	view := p.c.cluster.State().Read()
	queue := p.queue(view, set)
	p.fresh = map[string]struct{}{}
	if whole {
		p.moved, p.shifted, p.whole = false, false, now
	}
	if len(queue) > 0 {
		if failures := p.place(ctx, view, queue); failures > 0 {
			p.moved = true
			wait(ctx, p.backoff.failed(), nil)
			return 0
		}
		p.backoff.done()
	}
	switch {
	case p.moved:
		return 0
	case p.shifted && len(p.waiting) > 0:
		return max(0, reconsiderPause-(now-p.whole))
	}
	return rescanPause
}

// queue is the VMs of the set that want a place, the most important first,
// then the oldest. Others leave the set of those waiting.
func (p *placement) queue(view *fsm.View, set map[string]struct{}) []*api.VM {
	var queue []*api.VM
	for id := range set {
		var found *api.VM
		for vm := range fsm.VMs.By(view, "id_of", id) {
			found = vm
		}
		if !wantsPlace(view, found) {
			delete(p.waiting, id)
			delete(p.refused, id)
			continue
		}
		queue = append(queue, found)
	}
	slices.SortFunc(queue, func(a, b *api.VM) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.Created, b.Created), cmp.Compare(a.ID, b.ID))
	})
	return queue
}

// answer is what became of one proposal of a round.
type answer struct {
	vm      *api.VM
	assign  bool
	refused bool // by Apply
	err     error
}

// place decides and proposes in one go, with a bounded number of proposals in
// flight, and waits for all of them: the next picture must show what this round
// did. It returns how many VMs have to be tried again.
func (p *placement) place(ctx context.Context, view *fsm.View, queue []*api.VM) int {
	var (
		mu      sync.Mutex
		answers []answer
		flights errgroup.Group
	)
	flights.SetLimit(placementFlightsMax)
	round, assigns := p.c.placer.Begin(view), 0
	for _, vm := range queue {
		if ctx.Err() != nil {
			break
		}
		if assigns >= roundAssignsMax {
			p.moved = true
			break
		}
		e, assign := p.entry(view, round, vm)
		if e == nil {
			continue
		}
		if assign {
			assigns++
		}
		flights.Go(func() error {
			out, err := p.c.propose(ctx, *e)
			mu.Lock()
			defer mu.Unlock()
			answers = append(answers, answer{vm, assign, refused(out, err), err})
			return nil
		})
	}
	_ = flights.Wait() // every answer is in the list
	return p.learn(answers)
}

// entry is what should follow for one VM; nil: nothing. The bool says whether
// it gives the VM a place.
func (p *placement) entry(view *fsm.View, round Round, vm *api.VM) (*fsm.Entry, bool) {
	now := p.c.clock.Now()
	decision := round.Decide(vm, now)
	var have api.Instance
	if i := fsm.Instances.Get(view, vm.ID); i != nil {
		have = *i
	}
	if n := fsm.Nodes.Get(view, decision.Node); n != nil && p.refused[vm.ID].count < refusalsMax {
		e := fsm.AssignInstance.Entry(fsm.Assignment{VM: vm.ID, Gen: have.Gen, Node: n.Name, Epoch: n.Epoch, Decision: decision})
		return &e, true
	}
	if decision.Node != "" {
		decision.Summary = fmt.Sprintf("%s fits, but the assignment was refused: %s", decision.Node, p.refused[vm.ID].reason)
		decision.Node = ""
		delete(p.refused, vm.ID)
		p.shifted = true
	}
	if have.Decision != nil && have.State == api.InstancePending && have.Decision.Node == "" {
		if have.Decision.Summary == decision.Summary {
			return nil, false
		}
		if now.Sub(have.Decision.At) < holdAgainMin {
			p.shifted = true // show the new reason later
			return nil, false
		}
	}
	e := fsm.HoldInstance.Entry(fsm.Hold{VM: vm.ID, Gen: have.Gen, Decision: decision})
	return &e, false
}

// learn takes in the answers of a round and returns how many VMs have to be
// tried again.
func (p *placement) learn(answers []answer) int {
	failures := 0
	for _, a := range answers {
		switch {
		case a.err == nil && a.assign:
			delete(p.waiting, a.vm.ID)
			delete(p.refused, a.vm.ID)
		case a.err != nil:
			failures++
			if a.assign && a.refused {
				p.refused[a.vm.ID] = refusal{p.refused[a.vm.ID].count + 1, api.AsError(a.err).Message}
			}
			p.c.log.Debug("placement not committed", "vm", api.Key(a.vm.Tenant, a.vm.Name), "error", a.err)
		}
	}
	return failures
}
