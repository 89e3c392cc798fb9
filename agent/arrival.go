package agent

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// MigrationStream asks the agent of the destination to take a stream of a
// migration.
type MigrationStream struct {
	VM      string `json:"vm"` // the VM's ID
	Gen     uint64 `json:"gen"`
	Index   uint64 `json:"index"`   // that the destination must have: the copies are ready there
	Channel string `json:"channel"` // channelControl, or one that the hypervisor's adapter names
}

const (
	channelControl  = "control"
	channelNameMax  = 64
	catchUpTimeout  = 10 * time.Second // for this replica to have the entry that began it
	offerTimeout    = time.Minute      // for the first line of a control stream, and for its answer
	receiveAbortTry = time.Second      // between two tries to give a migration up
)

// arrivals is the guests that are arriving, by ID of the VM.
type arrivals struct {
	mu   sync.Mutex // guards the map
	byID map[string]uint64
}

// begin notes an arrival; false: one is under way.
func (r *arrivals) begin(id string, gen uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, busy := r.byID[id]; busy {
		return false
	}
	if r.byID == nil {
		r.byID = map[string]uint64{}
	}
	r.byID[id] = gen
	return true
}

func (r *arrivals) end(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byID, id)
}

func (r *arrivals) find(id string) (gen uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	gen, ok = r.byID[id]
	return gen, ok
}

// Arrive checks that the replicated state has a migration of that VM under way
// from the node with ID peerID to this one, and returns what serves the stream.
// Every other stream is
// CodeForbidden, or CodeUnavailable where the states of the nodes may differ for a moment.
func (a *Agent) Arrive(ctx context.Context, peerID string, s MigrationStream) (serve func(ctx context.Context, conn net.Conn), err error) {
	if a.config.Migrator == nil {
		return nil, api.Errorf(api.CodeConflict, "node %s takes no migrating guests", a.config.Name)
	}
	if len(s.Channel) == 0 || len(s.Channel) > channelNameMax {
		return nil, api.Invalid("channel", "has %d bytes", len(s.Channel)).Allow("1 to %d", channelNameMax)
	}
	if err := a.catchUp(ctx, s.Index); err != nil {
		return nil, err
	}
	if err := a.expected(peerID, s); err != nil {
		return nil, err
	}
	gen, arriving := a.arrivals.find(s.VM)
	if s.Channel == channelControl {
		if arriving {
			return nil, api.Errorf(api.CodeUnavailable, "is arriving already").On(api.KindInstance, s.VM)
		}
		return func(ctx context.Context, conn net.Conn) { a.receive(ctx, s, conn) }, nil
	}
	if !arriving || gen != s.Gen {
		return nil, api.Errorf(api.CodeUnavailable, "is not arriving").On(api.KindInstance, s.VM)
	}
	return func(ctx context.Context, conn net.Conn) {
		if err := a.config.Migrator.Join(ctx, s.VM, s.Channel, conn); err != nil && ctx.Err() == nil {
			a.log.Debug("a stream of an arriving guest ended", "id", s.VM, "channel", s.Channel, "error", err)
		}
	}, nil
}

// catchUp waits until this replica has the entry at index.
func (a *Agent) catchUp(ctx context.Context, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpTimeout)
	defer cancel()
	state := a.config.Cluster.State()
	for {
		advanced := state.Advanced()
		if state.Index() >= index {
			return nil
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return api.Errorf(api.CodeUnavailable, "node %s has not heard of the migration yet", a.config.Name)
		}
	}
}

// expected refuses a stream that no migration in the replicated state stands
// behind.
func (a *Agent) expected(peerID string, s MigrationStream) error {
	epoch := a.epoch() // before the rows
	view := a.view()
	row := fsm.Instances.Get(view, s.VM)
	if row == nil || row.Migration == nil || row.Gen != s.Gen || row.Migration.To != a.config.Name {
		return api.Errorf(api.CodeUnavailable, "does not migrate to node %s at gen %d", a.config.Name, s.Gen).On(api.KindInstance, s.VM)
	}
	if row.Migration.ToEpoch != epoch {
		return api.Errorf(api.CodeUnavailable, "migrates to epoch %d of node %s, which is at %d", row.Migration.ToEpoch, a.config.Name, epoch).On(api.KindInstance, s.VM)
	}
	if owner := fsm.Nodes.Get(view, row.Owner); owner == nil || owner.ID != peerID {
		return api.Errorf(api.CodeForbidden, "migrates from another node").On(api.KindInstance, s.VM)
	}
	return nil
}

// receive takes a guest in, and stays until the replicated state says whose it
// is.
func (a *Agent) receive(ctx context.Context, s MigrationStream, conn net.Conn) {
	if !a.arrivals.begin(s.VM, s.Gen) {
		return
	}
	defer a.queue.touch(keyInstance + s.VM) // whatever is left of it
	defer a.arrivals.end(s.VM)
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	watch.Go(func() { a.untilDecided(within, s, cancel) })
	if err := a.takeIn(within, s, conn); err != nil {
		a.log.Warn("a guest did not arrive", "id", s.VM, "error", err)
		if ctx.Err() == nil {
			a.giveArrivalUp(ctx, s, printable(err.Error()))
		}
		return
	}
	gone := make(chan struct{})
	defer func() { _ = conn.Close(); <-gone }()
	go func() {
		defer close(gone)
		var one [1]byte
		_, _ = conn.Read(one[:]) // the source says no more: this is its end
	}()
	select {
	case <-within.Done(): // decided, or the end of this process
	case <-gone:
		if a.barrierWithin(ctx) == nil && a.undecided(s) {
			a.giveArrivalUp(ctx, s, "the source ended before it had handed the guest on")
		}
	}
	if ctx.Err() == nil {
		a.goOn(ctx, s)
	}
	// The VM's job is let in once the listing shows the guest: without it the
	// guest would seem to have ended.
	listed, cancelList := context.WithTimeout(ctx, listTimeout)
	defer cancelList()
	if err := a.domains.fresh(listed); err != nil && ctx.Err() == nil {
		a.log.Debug("an arrived guest is not listed yet", "id", s.VM, "error", err)
	}
}

func (a *Agent) barrierWithin(ctx context.Context) error {
	within, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	return a.barrier(within)
}

// undecided reports whether a commit is still possible.
func (a *Agent) undecided(s MigrationStream) bool {
	p := a.partOf(s.VM)
	return p.row != nil && p.row.Gen == s.Gen && p.row.Migration != nil && migrationStep(p) == stepWait
}

// untilDecided calls decided once the migration can no longer be committed, or
// was.
func (a *Agent) untilDecided(ctx context.Context, s MigrationStream, decided func()) {
	state := a.config.Cluster.State()
	for {
		advanced := state.Advanced()
		if !a.undecided(s) {
			decided()
			return
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return
		}
	}
}

// giveArrivalUp says in the log that the guest will not arrive, until that is
// known or decided otherwise.
func (a *Agent) giveArrivalUp(ctx context.Context, s MigrationStream, reason string) {
	for ctx.Err() == nil && a.undecided(s) {
		_, err := a.propose(ctx, fsm.AbortMigration.Entry(fsm.MigrationAbort{VM: s.VM, Gen: s.Gen, Node: a.config.Name, Epoch: a.epoch(), Reason: reason}))
		if err == nil || !wait(ctx, receiveAbortTry) {
			return
		}
	}
}

// goOn lets the guest go on if it is this node's now.
func (a *Agent) goOn(ctx context.Context, s MigrationStream) {
	view := a.view()
	row := fsm.Instances.Get(view, s.VM)
	if row == nil || row.Owner != a.config.Name || row.Gen != s.Gen+1 || row.Migration != nil {
		return
	}
	if vm := vmByID(view, s.VM); vm == nil || !a.mayContinue(vm) {
		return // its job sees to it
	}
	within, cancel := context.WithTimeout(ctx, actTimeout)
	defer cancel()
	if err := a.config.Migrator.Continue(within, s.VM, row.Gen); err != nil {
		a.log.Error("an arrived guest does not go on; it is tried again", "id", s.VM, "error", err)
		return
	}
	a.log.Info("guest arrived", "vm", row.VM, "id", s.VM, "gen", row.Gen)
}

// mayContinue reports whether this node's lease allows the VM to execute.
func (a *Agent) mayContinue(vm *api.VM) bool {
	return vm.HA == "" || vm.HA == api.HANone || a.leased()
}

// takeIn prepares what the guest needs here, and receives it.
func (a *Agent) takeIn(ctx context.Context, s MigrationStream, conn net.Conn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(offerTimeout))
	var o offer
	if err := readLine(conn, &o); err != nil {
		return fmt.Errorf("read what the guest needs: %w", err)
	}
	in, err := a.prepareArrival(ctx, s, &o)
	answer := offerAnswer{Error: api.AsError(err)}
	_ = conn.SetDeadline(time.Now().Add(offerTimeout))
	if told := writeLine(conn, answer); err != nil || told != nil {
		if err == nil {
			err = told
		}
		return err
	}
	_ = conn.SetDeadline(time.Time{})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return a.config.Migrator.Receive(ctx, in, conn)
}

// prepareArrival finds or makes everything that the guest needs on this
// machine, and writes down that it may come.
func (a *Agent) prepareArrival(ctx context.Context, s MigrationStream, o *offer) (plugins.Arrival, error) {
	view := a.view()
	vm := vmByID(view, s.VM)
	if vm == nil {
		return plugins.Arrival{}, api.Errorf(api.CodeNotFound, "there is no such VM").On(api.KindInstance, s.VM)
	}
	in := plugins.Arrival{ID: s.VM, Name: vm.Tenant + "." + vm.Name, Gen: s.Gen + 1, Files: map[string]plugins.Source{}, SeedID: vm.ID}
	if c := fsm.Configs.Get(view, api.ConfigName); c != nil {
		in.ClusterID = c.ClusterID
	}
	if vm.CloudInit != nil {
		seed := *vm.CloudInit
		seed.Hostname = orElse(seed.Hostname, vm.Name)
		in.Seed = &seed
	}
	next := record{Gen: s.Gen + 1, Moving: true}
	for _, f := range o.Files {
		source, err := a.arrivingFile(ctx, view, s, f)
		if err != nil {
			return in, err
		}
		in.Files[f.Path] = source
		if f.Copy {
			in.Copy = append(in.Copy, f.Path)
		}
		if f.Kind == api.KindVolume {
			next.Volumes = union(next.Volumes, []string{f.ID})
		}
	}
	if err := a.arrivingNetworks(ctx, view, vm, o, &next); err != nil {
		return in, err
	}
	if err := a.records.put(s.VM, next); err != nil {
		return in, err
	}
	if err := a.protect(ctx); err != nil {
		return in, err
	}
	if !a.undecided(s) || !a.volumesKept(next.Volumes) {
		return in, api.Errorf(api.CodeUnavailable, "is not wanted here any more").On(api.KindInstance, s.VM)
	}
	return in, nil
}

// arrivingFile finds a file of the guest on this machine.
func (a *Agent) arrivingFile(ctx context.Context, view *fsm.View, s MigrationStream, f offeredFile) (plugins.Source, error) {
	if f.Kind == api.KindImage {
		for image := range fsm.Images.By(view, "id_of", f.ID) {
			out, err, _ := a.imports.Do(fsm.DefaultPool+"/"+image.ID, func() (any, error) { return a.importImage(ctx, image, fsm.DefaultPool) })
			if err != nil {
				return plugins.Source{}, fmt.Errorf("bring image %s: %w", image.Name, err)
			}
			return out.(plugins.Stored).Source, nil
		}
		return plugins.Source{}, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindImage, f.ID)
	}
	for volume := range fsm.Volumes.By(view, "id_of", f.ID) {
		here := fsm.Replicas.Get(view, api.ReplicaName(f.ID, a.config.Name))
		if f.Copy && (here == nil || here.Delete || here.State != api.ReplicaReady || here.From == "") {
			return plugins.Source{}, api.Errorf(api.CodeUnavailable, "is not ready to be filled on node %s", a.config.Name).On(api.KindVolume, api.Key(volume.Tenant, volume.Name))
		}
		if pool := fsm.Pools.Get(view, volume.Pool); !f.Copy && (pool == nil || !pool.Shared) {
			return plugins.Source{}, api.Errorf(api.CodeConflict, "is not in a pool that node %s shares", a.config.Name).On(api.KindVolume, api.Key(volume.Tenant, volume.Name))
		}
		return a.volumeSource(ctx, view, volume)
	}
	return plugins.Source{}, api.Errorf(api.CodeNotFound, "does not exist").On(api.KindVolume, f.ID)
}

// arrivingNetworks makes what the guest's interfaces plug into.
func (a *Agent) arrivingNetworks(ctx context.Context, view *fsm.View, vm *api.VM, o *offer, next *record) error {
	made := map[string]bool{}
	for _, n := range vm.NICs {
		network, err := a.ensureNetwork(ctx, view, api.Key(vm.Tenant, n.Network))
		if err != nil {
			return err
		}
		made[network.Device()] = true
	}
	next.Ports = portsOf(view, vm) // rules are here before the guest is
	for _, n := range o.NICs {
		if !made[n.Bridge] {
			return api.Errorf(api.CodeConflict, "its interface %s is on bridge %q, which no network of the VM has", n.MAC, n.Bridge).
				On(api.KindVM, api.Key(vm.Tenant, vm.Name)).Do("restart the VM, so that it takes up the change of its interfaces")
		}
		if !slices.ContainsFunc(vm.NICs, func(have api.NIC) bool { return have.MAC == n.MAC }) {
			return api.Errorf(api.CodeConflict, "its interface %s is none of the VM's any more: no rules would stand at it", n.MAC).
				On(api.KindVM, api.Key(vm.Tenant, vm.Name)).Do("restart the VM, so that it takes up the change of its interfaces")
		}
		next.Bridges = union(next.Bridges, []string{n.Bridge})
	}
	return nil
}
