package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

const (
	registerTimeout = 10 * time.Second
	registerPause   = 5 * time.Second // most between two tries
	renewTimeout    = 2 * time.Second // for one renewal
	statusTimeout   = 10 * time.Second
	freeChangeMin   = 100         // a change of free space counts from one part in this many of the pool
	freeReportEvery = time.Minute // most often that free space alone is reported
)

// nodeState is this node's registration.
type nodeState struct {
	mu      sync.Mutex // guards below
	epoch   uint64     // 0: not registered
	last    uint64     // of this process, 0: none yet
	leaseTo time.Time  // until when the last committed renewal is good

	kick    chan struct{} // holds a token when the node's row has changed
	measure chan struct{} // holds a token when the machine is to be measured
}

// epoch is that of this registration, or 0.
func (a *Agent) epoch() uint64 {
	a.node.mu.Lock()
	defer a.node.mu.Unlock()
	return a.node.epoch
}

func (a *Agent) setEpoch(epoch uint64) {
	a.node.mu.Lock()
	defer a.node.mu.Unlock()
	a.node.epoch, a.node.leaseTo = epoch, time.Time{}
}

// leased reports whether the lease holds for at least another second.
func (a *Agent) leased() bool {
	a.node.mu.Lock()
	defer a.node.mu.Unlock()
	return a.node.epoch != 0 && a.node.leaseTo.Sub(a.config.Clock()) >= time.Second
}

func (a *Agent) kickLease() {
	select {
	case a.node.kick <- struct{}{}:
	default:
	}
}

func (a *Agent) remeasure() {
	select {
	case a.node.measure <- struct{}{}:
	default:
	}
}

// keepLease registers the node, renews its lease, and registers anew when it
// was fenced.
func (a *Agent) keepLease(ctx context.Context) error {
	for {
		epoch, err := a.register(ctx)
		if err != nil {
			return err
		}
		a.setEpoch(epoch)
		a.log.Info("registered", "node", a.config.Name, "epoch", epoch)
		a.remeasure()
		if !a.config.Witness {
			a.addAll() // what could not be reported before
		}
		if err := a.renew(ctx, epoch); err != nil {
			return err
		}
		a.setEpoch(0)
		a.log.Warn("this node was fenced: registering again", "epoch", epoch)
	}
}

// register begins a new epoch. It tries until ctx ends or the identity proves
// to be lost.
func (a *Agent) register(ctx context.Context) (uint64, error) {
	var open registration // whose outcome is unknown
	complaint := ""
	for failures := 0; ; {
		epoch, err := a.tryRegister(ctx, &open)
		if err == nil {
			return epoch, nil
		}
		if errors.Is(err, ErrRemoved) || errors.Is(err, ErrIdentity) || ctx.Err() != nil {
			return 0, err
		}
		if complaint != err.Error() {
			complaint = err.Error()
			a.log.Warn("cannot register", "error", err)
		}
		failures++
		if !wait(ctx, backoff(failures, registerPause)) {
			return 0, ctx.Err()
		}
	}
}

// registration is one try to register. Its entry is proposed again until its
// outcome is known.
type registration struct {
	entry fsm.Entry
	prev  uint64
}

func (a *Agent) newRegistration(ctx context.Context) (registration, error) {
	row, err := a.readNode(ctx)
	if err != nil {
		return registration{}, err
	}
	a.node.mu.Lock()
	last := a.node.last
	a.node.mu.Unlock()
	if last != 0 && row.Epoch > last {
		return registration{}, fmt.Errorf("%w: epoch %d was ours, %d is registered; stop the other one, or empty its data directory and join it anew",
			ErrIdentity, last, row.Epoch)
	}
	r := registration{prev: row.Epoch}
	r.entry = fsm.RegisterNode.Entry(fsm.NodeRegister{
		ID: a.config.ID, PrevEpoch: row.Epoch, Nonce: uuid.NewString(), Address: a.config.Address,
		Version: a.config.Version, ClusterVersion: fsm.VersionMax,
	})
	r.entry.By = a.principal()
	r.entry.RequestID = uuid.NewString() // a repetition gets the first answer
	return r, nil
}

func (a *Agent) tryRegister(ctx context.Context, open *registration) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	if open.entry.Op == "" {
		made, err := a.newRegistration(ctx)
		if err != nil {
			return 0, err
		}
		*open = made
	}
	out, err := a.config.Cluster.Propose(ctx, open.entry)
	if err == nil && out.Err != nil {
		err = out.Err
	}
	if undecided(err) {
		return 0, err
	}
	epoch := open.prev + 1
	*open = registration{}
	switch api.CodeOf(err) {
	case "":
		a.node.mu.Lock()
		a.node.last = epoch
		a.node.mu.Unlock()
		return epoch, nil
	case api.CodeConflict:
		return 0, fmt.Errorf("%w: %w", ErrIdentity, err)
	}
	return 0, err // refused for another reason: the next try reads why
}

// removed is ErrRemoved with the reason when the replica says so.
func (a *Agent) removed(view *fsm.View) error {
	if removed := fsm.RemovedNodes.Get(view, a.config.ID); removed != nil {
		return fmt.Errorf("%w: %w", ErrRemoved, api.Errorf(api.CodeForbidden, "was removed from the cluster: %s", removed.Reason).
			On(api.KindNode, removed.Node).Do("empty its data directory and join again"))
	}
	return nil
}

// readNode reads this node's row through the leader.
func (a *Agent) readNode(ctx context.Context) (*api.Node, error) {
	if err := a.barrier(ctx); err != nil {
		return nil, err
	}
	view := a.view()
	if err := a.removed(view); err != nil {
		return nil, err
	}
	for n := range fsm.Nodes.By(view, "id_of", a.config.ID) {
		return n, nil
	}
	return nil, api.Errorf(api.CodeNotFound, "is not a member").On(api.KindNode, a.config.Name).Do("join it to the cluster")
}

// barrier makes the local replica as new as the cluster is at the call.
func (a *Agent) barrier(ctx context.Context) error {
	index, err := a.config.Cluster.ReadIndex(ctx)
	if err != nil {
		return fmt.Errorf("read through the leader: %w", err)
	}
	if err := a.config.Cluster.State().Wait(ctx, index); err != nil {
		return err
	}
	a.syncOnce.Do(func() { close(a.synced) })
	return nil
}

// renew renews the lease until this epoch has ended.
func (a *Agent) renew(ctx context.Context, epoch uint64) error {
	ticker := time.NewTicker(a.config.Timings.Renew)
	defer ticker.Stop()
	for seq := uint64(1); ; seq++ {
		if a.epochEnded(epoch) {
			return nil
		}
		sent := a.config.Clock() // before sending: the lease counts from here
		within, cancel := context.WithTimeout(ctx, renewTimeout)
		err := a.config.Renew(within, fsm.Renewal{Node: a.config.Name, Epoch: epoch, Seq: seq})
		cancel()
		if err == nil && !a.epochEnded(epoch) {
			a.node.mu.Lock()
			a.node.leaseTo = sent.Add(a.config.Timings.Lease)
			a.node.mu.Unlock()
		} else if err != nil && ctx.Err() == nil {
			a.log.Debug("lease not renewed", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.node.kick:
		case <-ticker.C:
		}
	}
}

// epochEnded looks at the local replica.
func (a *Agent) epochEnded(epoch uint64) bool {
	for n := range fsm.Nodes.By(a.view(), "id_of", a.config.ID) {
		return n.Epoch != epoch || n.Lease != api.NodeLive
	}
	return true // removed: registering says so
}

// measureNode reports the machine when something about it changed that counts.
func (a *Agent) measureNode(ctx context.Context) error {
	ticker := time.NewTicker(a.config.Timings.Measure)
	defer ticker.Stop()
	var freeReported time.Time
	complaint := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.node.measure:
		case <-ticker.C:
		}
		epoch := a.epoch()
		row := fsm.Nodes.Get(a.view(), a.config.Name)
		if epoch == 0 || row == nil {
			continue
		}
		report, known := a.nodeReport(ctx, row, epoch)
		free, other := nodeChanges(row, report)
		now := a.config.Clock()
		if !known || !other && (!free || now.Sub(freeReported) < freeReportEvery) {
			continue
		}
		_, err := a.propose(ctx, fsm.ReportNode.Entry(report))
		if err == nil {
			freeReported, complaint = now, ""
			continue
		}
		if ctx.Err() == nil && complaint != err.Error() {
			complaint = err.Error()
			a.log.Warn("node not reported", "error", err)
		}
		if wait(ctx, time.Second) {
			a.remeasure()
		}
	}
}

// nodeReport measures. known is false when nothing is known of the machine.
func (a *Agent) nodeReport(ctx context.Context, row *api.Node, epoch uint64) (report fsm.NodeReport, known bool) {
	report = fsm.NodeReport{Node: a.config.Name, Epoch: epoch, Hypervisor: row.Hypervisor, Capacity: row.Capacity, CPUModels: row.CPUModels}
	probe, lost := a.domains.machine()
	if probe.Info.Driver != "" {
		report.Hypervisor, report.Capacity, report.CPUModels = probe.Info, probe.Capacity, probe.CPUModels
	}
	if lost != nil {
		if probe.Info.Driver == "" && a.domains.lostFor(a.config.Clock()) == 0 {
			return report, false // it was not asked yet
		}
		report.Hypervisor.Healthy, report.Hypervisor.Reason = false, printable(lost.Error())
	}
	view := a.view()
	for p := range fsm.Pools.All(view) {
		if !p.On(a.config.Name) || len(report.Pools) >= fsm.PoolsPerNodeMax {
			continue
		}
		report.Pools = append(report.Pools, a.poolStatus(ctx, view, p.Name))
	}
	report.Network = a.nodeNetwork(ctx, view)
	return report, true
}

func (a *Agent) poolStatus(ctx context.Context, view *fsm.View, name string) api.PoolStatus {
	storage, spec, err := a.pool(view, name)
	var status api.PoolStatus
	if err == nil {
		within, cancel := context.WithTimeout(ctx, statusTimeout)
		defer cancel()
		status, err = storage.Status(within, spec)
	}
	status.Pool = name
	if err != nil {
		status.Reason = printable(err.Error())
		return status
	}
	a.watchSpace(view, &status)
	return status
}

// nodeChanges compares a report with what is known: whether free space moved
// by as much as counts, and whether anything else is new.
func nodeChanges(row *api.Node, report fsm.NodeReport) (free, other bool) {
	if row.Hypervisor != report.Hypervisor || row.Capacity != report.Capacity || !slices.Equal(row.CPUModels, report.CPUModels) || len(row.Pools) != len(report.Pools) || !row.Network.Equal(&report.Network) {
		return false, true
	}
	for i, now := range report.Pools {
		before := row.Pools[i]
		if before.Pool != now.Pool || before.TotalBytes != now.TotalBytes || before.Reason != now.Reason || before.Warning != now.Warning {
			return false, true
		}
		if abs(before.FreeBytes-now.FreeBytes) > now.TotalBytes/freeChangeMin {
			free = true
		}
	}
	return free, false
}

func abs(n int64) int64 { return max(n, -n) }

// printable makes text from outside fit for a row.
func printable(text string) string { return api.CleanText(text, api.TextLengthMax) }
