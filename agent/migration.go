package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

const (
	offerMax       = 256 << 10        // bytes of an offer
	commitPatience = 30 * time.Second // for the outcome of a commit, while the guest stands still
	commitGrace    = 2 * time.Second  // of it, once the agent is to end
	commitAgain    = 100 * time.Millisecond
	abortTimeout   = 10 * time.Second
)

// offer is the first line of a control stream: what the guest uses.
type offer struct {
	Files []offeredFile     `json:"files"`
	NICs  []plugins.NICSpec `json:"nics,omitzero"`
}

// offeredFile is a volume or an image, by its path at the source.
type offeredFile struct {
	Path string `json:"path"`
	Kind string `json:"kind"`
	ID   string `json:"id"`
	Copy bool   `json:"copy,omitzero"` // it is filled by the migration
}

// offerAnswer is the line that answers an offer.
type offerAnswer struct {
	Error *api.Error `json:"error,omitzero"`
}

// move is one migration from this node.
type move struct {
	o       *operation
	args    api.MigrateArgs
	to      string
	toEpoch uint64
	epoch   uint64 // of this node
	index   uint64 // that the destination must have: of the entry that began it, or later
	offer   offer
	copies  []string // IDs of the volumes that are copied along
}

// migrate carries out a vm.migrate task. Each try begins a migration anew: one
// that was begun and is not under way any more has been given up before.
func (a *Agent) migrate(ctx context.Context, o *operation) error {
	m, err := a.planMove(ctx, o)
	if err != nil {
		return err
	}
	if err := a.beginMove(ctx, m); err != nil {
		return err
	}
	a.log.Info("migrating guest", "vm", o.row.VM, "id", o.id, "to", m.to, "volumes", len(m.copies))
	err = a.carryOver(ctx, m)
	if err == nil {
		a.log.Info("guest migrated", "vm", o.row.VM, "id", o.id, "to", m.to)
		return nil
	}
	a.log.Warn("migration given up", "vm", o.row.VM, "id", o.id, "to", m.to, "error", err)
	if errors.Is(err, plugins.ErrUndecided) {
		return errAgain
	}
	reason := printable(err.Error())
	if ctx.Err() != nil {
		reason = "it was cancelled, or the agent of " + a.config.Name + " is ending"
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	if given := a.abortMigration(last, o.id, o.row.Gen, reason); given != nil {
		return given // nothing else is done about the VM before that is known
	}
	return err
}

// planMove finds out what has to move, and refuses what cannot.
func (a *Agent) planMove(ctx context.Context, o *operation) (*move, error) {
	m := &move{o: o, epoch: a.epoch()}
	if err := o.args(&m.args); err != nil {
		return nil, err
	}
	if a.config.Migrator == nil {
		return nil, api.Errorf(api.CodeConflict, "node %s moves no guests", a.config.Name).On(api.KindVM, o.row.VM)
	}
	d := o.task.Decision
	if d == nil || d.Node == "" {
		return nil, api.Errorf(api.CodeUnavailable, "the leader has not said where to").On(api.KindTask, o.task.Name)
	}
	to := fsm.Nodes.Get(o.view, d.Node)
	if to == nil || to.Lease != api.NodeLive {
		return nil, api.Errorf(api.CodeUnavailable, "is not live").On(api.KindNode, d.Node)
	}
	m.to, m.toEpoch = to.Name, to.Epoch
	use, err := a.config.Migrator.Describe(ctx, o.id)
	if err != nil {
		return nil, err
	}
	m.offer.NICs = use.NICs
	for _, f := range use.Files {
		file, err := a.offered(ctx, o.view, f)
		if err != nil {
			return nil, err
		}
		if file.Copy {
			m.copies = append(m.copies, file.ID)
		}
		m.offer.Files = append(m.offer.Files, file)
	}
	if len(m.copies) > 0 && !m.args.CopyStorage {
		return nil, api.Errorf(api.CodeConflict, "%d of its disks lie on node %s only", len(m.copies), a.config.Name).On(api.KindVM, o.row.VM).
			Do("allow them to be copied along: copy_storage")
	}
	return m, nil
}

// offered finds out which volume or image a path of this machine is.
func (a *Agent) offered(ctx context.Context, view *fsm.View, f plugins.FileUse) (offeredFile, error) {
	for pool := range fsm.Pools.All(view) {
		if !pool.On(a.config.Name) {
			continue
		}
		storage, spec, err := a.pool(view, pool.Name)
		if err != nil {
			return offeredFile{}, err
		}
		listed, err := storage.List(ctx, spec)
		if err != nil {
			return offeredFile{}, fmt.Errorf("list pool %s: %w", pool.Name, err)
		}
		for _, s := range listed {
			if s.Source.Path == f.Path {
				return offeredFile{Path: f.Path, Kind: s.Kind, ID: s.ID, Copy: s.Kind == api.KindVolume && !pool.Shared}, nil
			}
		}
	}
	return offeredFile{}, api.Errorf(api.CodeConflict, "the guest uses a file that is in no pool of node %s", a.config.Name).
		Do("detach what was attached outside debvisor")
}

// beginMove writes down that a pause of the guest may come from this, and
// begins the migration in the log.
func (a *Agent) beginMove(ctx context.Context, m *move) error {
	o := m.o
	one, _ := a.records.find(o.id)
	one.Gen, one.Moving = max(one.Gen, o.row.Gen), true
	if err := a.records.put(o.id, one); err != nil {
		return err
	}
	o.step(ctx, 0, api.MigrationPhasePrepare)
	var out fsm.Outcome
	var err error
	a.apart(func() {
		out, err = a.propose(ctx, fsm.BeginMigration.Entry(fsm.MigrationBegin{VM: o.id, Gen: o.row.Gen, Node: a.config.Name, Epoch: m.epoch,
			To: m.to, ToEpoch: m.toEpoch, Task: o.task.Name, Volumes: m.copies}))
	})
	if code := api.CodeOf(err); code == api.CodeConflict || code == api.CodeNotFound {
		// The leader looks at it again: it says what else is in the way.
		return api.Errorf(api.CodeUnavailable, "%v", err).On(api.KindVM, o.row.VM)
	}
	m.index = out.Index
	return err
}

// carryOver moves the guest. It returns nil once the guest is the
// destination's.
func (a *Agent) carryOver(ctx context.Context, m *move) (err error) {
	a.apart(func() {
		if err = a.awaitCopies(ctx, m); err != nil {
			return
		}
		var control net.Conn
		if control, err = a.openControl(ctx, m); err != nil {
			return
		}
		defer func() { _ = control.Close() }()
		err = a.config.Migrator.Send(ctx, a.departure(m, control))
	})
	return err
}

func (a *Agent) departure(m *move, control net.Conn) plugins.Departure {
	o := m.o
	d := plugins.Departure{
		ID: o.id, Gen: o.row.Gen, BandwidthMax: m.args.BandwidthBytesMax, AutoConverge: m.args.AutoConverge, Control: control,
		DowntimeLimit: time.Duration(orDefault(m.args.DowntimeLimitMS, api.DowntimeLimitMSDefault)) * time.Millisecond,
		Dial:          func(ctx context.Context, channel string) (net.Conn, error) { return a.dialPeer(ctx, m, channel) },
	}
	for _, f := range m.offer.Files {
		if f.Copy {
			d.Copy = append(d.Copy, f.Path)
		}
	}
	d.Tell = func(p plugins.Progress) {
		percent := 1
		if p.TotalBytes > 0 {
			percent = min(99, max(1, int(100*(p.TotalBytes-p.LeftBytes)/p.TotalBytes)))
		}
		a.tellProgress(o, percent, fmt.Sprintf("%s: %s left of %s", api.MigrationPhaseCopying, api.FormatSize(p.LeftBytes), api.FormatSize(p.TotalBytes)))
	}
	d.Commit = func(ctx context.Context, downtime func() time.Duration) error { return a.commitMove(ctx, m, downtime) }
	return d
}

func orDefault(n, otherwise int64) int64 {
	if n == 0 {
		return otherwise
	}
	return n
}

// tellProgress is operation.step for work that is done apart already.
func (a *Agent) tellProgress(o *operation, percent int, text string) {
	if o.task.Percent == percent && o.task.Step == text {
		return
	}
	within, cancel := context.WithTimeout(context.Background(), proposeTimeout)
	defer cancel()
	r := a.taskReport(o.task)
	r.Percent, r.Step = percent, text
	if _, err := a.propose(within, fsm.ReportTask.Entry(r)); err != nil {
		a.log.Debug("progress not recorded", "task", o.task.Name, "error", err)
		return
	}
	told := *o.task
	told.Percent, told.Step = percent, text
	o.task = &told
}

// awaitCopies waits until the destination has made the volumes that are to be
// filled.
func (a *Agent) awaitCopies(ctx context.Context, m *move) error {
	state := a.config.Cluster.State()
	for {
		advanced := state.Advanced()
		view := a.view()
		ready := 0
		for _, id := range m.copies {
			r := fsm.Replicas.Get(view, api.ReplicaName(id, m.to))
			switch {
			case r == nil || r.Delete:
				return api.Errorf(api.CodeUnavailable, "its copy on node %s is not wanted any more", m.to).On(api.KindVolume, id)
			case r.State == api.ReplicaFailed:
				return api.Errorf(api.CodeUnavailable, "cannot be made on node %s: %s", m.to, r.Reason).On(api.KindVolume, r.Of)
			case r.State == api.ReplicaReady:
				ready++
			}
		}
		if row := fsm.Instances.Get(view, m.o.id); row == nil || row.Migration == nil || row.Gen != m.o.row.Gen {
			return api.Errorf(api.CodeUnavailable, "the migration was given up by node %s", m.to).On(api.KindVM, m.o.row.VM)
		}
		if ready == len(m.copies) {
			// The destination knows of them once it has what this replica has: it may
			// lag behind the leader that has told it so.
			m.index = max(m.index, state.Index())
			return nil
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// openControl opens the control stream and offers the guest.
func (a *Agent) openControl(ctx context.Context, m *move) (net.Conn, error) {
	conn, err := a.dialPeer(ctx, m, channelControl)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	_ = conn.SetDeadline(time.Now().Add(2 * offerTimeout)) // images may have to be fetched
	err = writeLine(conn, m.offer)
	var answer offerAnswer
	if err == nil {
		err = readLine(conn, &answer)
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case err != nil:
		err = api.Errorf(api.CodeUnavailable, "does not answer: %v", err).On(api.KindNode, m.to)
	case answer.Error != nil:
		err = answer.Error
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	return conn, nil
}

func (a *Agent) dialPeer(ctx context.Context, m *move, channel string) (net.Conn, error) {
	return a.config.Peer(ctx, m.to, MigrationStream{VM: m.o.id, Gen: m.o.row.Gen, Index: m.index, Channel: channel})
}

// commitMove makes the destination the owner. The guest stands still at both
// ends meanwhile, so that an outcome which is not known is asked for again at
// once; the same request ID gives the first answer.
func (a *Agent) commitMove(ctx context.Context, m *move, downtime func() time.Duration) error {
	o := m.o
	e := fsm.CommitMigration.Entry(fsm.MigrationCommit{VM: o.id, Gen: o.row.Gen, Node: a.config.Name, Epoch: m.epoch, To: m.to, ToEpoch: m.toEpoch})
	e.RequestID = uuid.NewString()
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitPatience)
	defer cancel()
	defer context.AfterFunc(a.life, func() { // the agent ends: a last moment, or the guest stands still until it is back
		_ = wait(within, commitGrace)
		cancel()
	})()
	for {
		_, err := a.propose(within, e)
		row := fsm.Instances.Get(a.view(), o.id)
		switch {
		case err == nil, row != nil && row.Gen == o.row.Gen+1 && row.Owner == m.to:
			a.log.Info("guest handed on", "vm", o.row.VM, "id", o.id, "to", m.to, "still_ms", downtime().Milliseconds())
			return nil
		case !undecided(err):
			return api.Errorf(api.CodeUnavailable, "the guest was not handed on: %v", err).On(api.KindVM, o.row.VM)
		case row == nil || row.Gen != o.row.Gen || row.Migration == nil:
			return api.Errorf(api.CodeUnavailable, "the migration was given up by node %s", m.to).On(api.KindVM, o.row.VM)
		}
		if !wait(within, commitAgain) {
			return fmt.Errorf("%w: %w", plugins.ErrUndecided, err)
		}
	}
}

// abortMigration gives a migration up in the log. nil says that it is over.
func (a *Agent) abortMigration(ctx context.Context, id string, gen uint64, reason string) error {
	epoch := a.epoch()
	if epoch == 0 {
		return errUnregistered
	}
	_, err := a.propose(ctx, fsm.AbortMigration.Entry(fsm.MigrationAbort{VM: id, Gen: gen, Node: a.config.Name, Epoch: epoch, Reason: reason}))
	if row := fsm.Instances.Get(a.view(), id); row == nil || row.Gen != gen || row.Migration == nil {
		return nil
	}
	return err
}

// partOf is what this node knows of a VM that may be migrating.
func (a *Agent) partOf(id string) part {
	p := part{me: a.config.Name, epoch: a.epoch()} // before the rows
	view := a.view()
	if p.row = fsm.Instances.Get(view, id); p.row != nil {
		p.source = fsm.Nodes.Get(view, p.row.Owner)
	}
	return p
}

// settleMigration does what this node has to do about a migration that nobody
// in this process carries out. done is false when there is nothing.
func (a *Agent) settleMigration(ctx context.Context, s *sight, lost error) (v verdict, done bool) {
	p := a.partOf(s.id)
	_, p.busy = a.arrivals.find(s.id)
	one, _ := a.records.find(s.id)
	p.moving, p.here, p.gen = one.Moving, s.executing(), s.domain.Gen
	switch step := migrationStep(p); {
	case step == stepNone:
		return verdict{}, false
	case step == stepWait:
		return verdict{}, true
	case step == stepAbort:
		var err error
		a.apart(func() {
			err = a.abortMigration(ctx, s.id, p.row.Gen, "the agent of "+a.config.Name+" was interrupted")
		})
		if err == nil {
			err = errAgain
		}
		return verdict{err: err}, true
	case lost != nil:
		return verdict{}, false
	case step == stepDrop:
		return verdict{err: a.dropArrival(ctx, s, p.row)}, true
	case step == stepContinue:
		return verdict{err: a.letGo(ctx, s, p.row)}, true
	}
	return verdict{err: a.forgetMove(ctx, s)}, true
}

// forgetMove notes that nothing of a migration is left, once a new listing has
// shown that the guest does not execute.
func (a *Agent) forgetMove(ctx context.Context, s *sight) error {
	if err := a.fresh(ctx); err != nil {
		return err
	}
	if d, here, err := a.domains.find(s.id); err != nil || here != s.here || here && !sameDomain(d, s.domain) {
		return errors.Join(err, errAgain)
	}
	one, _ := a.records.find(s.id)
	one.Moving = false
	if err := a.records.put(s.id, one); err != nil {
		return err
	}
	return errAgain
}

// dropArrival ends what arrived of a guest whose migration can no longer be
// committed, and then says that nothing of it is here.
func (a *Agent) dropArrival(ctx context.Context, s *sight, row *api.Instance) error {
	if !a.isSynced() {
		return nil
	}
	if s.here {
		a.log.Warn("ending a guest that was arriving", "vm", row.VM, "id", s.id)
		return a.removeDomain(ctx, s)
	}
	if err := a.fresh(ctx); err != nil {
		return err
	}
	if _, here, err := a.domains.find(s.id); err != nil || here {
		return errors.Join(err, errAgain)
	}
	var err error
	a.apart(func() {
		err = a.abortMigration(ctx, s.id, row.Gen, "it can no longer be completed; nothing of the guest is on "+a.config.Name)
	})
	if err != nil {
		return err
	}
	return errAgain
}

// letGo lets a guest of this node go on that a migration had stopped.
func (a *Agent) letGo(ctx context.Context, s *sight, row *api.Instance) error {
	if s.vm != nil && !a.mayContinue(s.vm) {
		return a.report(ctx, row, reportOf(row, api.InstanceStarting, "waits until this node's lease is renewed"))
	}
	within, cancel := context.WithTimeout(ctx, actTimeout)
	defer cancel()
	err := a.config.Migrator.Continue(within, s.id, row.Gen)
	if err != nil && api.CodeOf(err) != api.CodeConflict { // it ended meanwhile
		return fmt.Errorf("let guest %s go on: %w", s.id, err)
	}
	one, _ := a.records.find(s.id)
	one.Moving = false
	if err := a.records.put(s.id, one); err != nil {
		return err
	}
	return a.settle(ctx)
}

// writeLine writes v as one line of JSON.
func writeLine(w io.Writer, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode line: %w", err)
	}
	_, err = w.Write(append(raw, '\n'))
	return err
}

// readLine reads one line of JSON, and not a byte beyond it: others go on
// reading there.
func readLine(r io.Reader, v any) error {
	line := make([]byte, 0, 512)
	for one := make([]byte, 1); ; {
		if _, err := io.ReadFull(r, one); err != nil {
			return err
		}
		if one[0] == '\n' {
			break
		}
		if line = append(line, one[0]); len(line) > offerMax {
			return fmt.Errorf("a line of more than %d bytes", offerMax)
		}
	}
	return json.NewDecoder(bytes.NewReader(line)).Decode(v)
}

// movesTo reports whether an instance is about to arrive at the node.
func movesTo(row *api.Instance, node string) bool {
	return row != nil && row.Migration != nil && row.Migration.To == node
}
