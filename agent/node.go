package agent

import (
	"context"
	"crypto/rand"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
	"github.com/debvisor/debvisor/plugins"
)

// runNode keeps the node registered: at the start, and again whenever its
// epoch was fenced.
func (a *Agent) runNode(ctx context.Context) error {
	for {
		if err := a.register(ctx); err != nil {
			return err
		}
		a.log.Info("node registered", "epoch", a.epoch.Load())
		a.markAll()
		if err := a.untilFenced(ctx); err != nil {
			return err
		}
	}
}

// register begins a new epoch, trying until it has one.
func (a *Agent) register(ctx context.Context) error {
	conflicts := 0
	for {
		err := a.tryRegister(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case api.CodeOf(err) == api.CodeForbidden:
			return fmt.Errorf("%w: %w", ErrRemoved, err)
		case api.CodeOf(err) == api.CodeConflict:
			// An attempt whose answer was lost may have been carried out: read again.
			if conflicts++; conflicts > 5 {
				return fmt.Errorf("register this node: %w", err)
			}
		default:
			a.log.Debug("registration is repeated", "error", err)
		}
		if err := wait(ctx, registerRetry); err != nil {
			return err
		}
	}
}

func (a *Agent) tryRegister(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	index, err := a.cfg.Cluster.ReadIndex(ctx)
	if err != nil {
		return err
	}
	if err := a.cfg.Cluster.State().Wait(ctx, index); err != nil {
		return err
	}
	v := a.view()
	if err := a.removed(v); err != nil {
		return err
	}
	n := fsm.Nodes.Get(v, a.cfg.Name)
	if n == nil || n.ID != a.cfg.ID {
		return api.Errorf(api.CodeUnavailable, "the cluster does not know this node yet").On(api.KindNode, a.cfg.Name)
	}
	out, err := a.propose(ctx, fsm.RegisterNode.Entry(fsm.NodeRegister{ID: a.cfg.ID, PrevEpoch: n.Epoch, Nonce: rand.Text(),
		Address: a.cfg.Address, Version: a.cfg.Version, ClusterVersion: fsm.VersionMax}))
	if err != nil {
		return err
	}
	if err := a.cfg.Cluster.State().Wait(ctx, out.Index); err != nil {
		return err
	}
	registered := fsm.Nodes.Get(a.view(), a.cfg.Name)
	if registered == nil || registered.Lease != api.NodeLive || registered.Epoch != n.Epoch+1 {
		return api.Errorf(api.CodeConflict, "was registered again or fenced at once").On(api.KindNode, a.cfg.Name)
	}
	a.epoch.Store(registered.Epoch)
	return nil
}

func (a *Agent) removed(v *fsm.View) error {
	if r := fsm.RemovedNodes.Get(v, a.cfg.ID); r != nil {
		return api.Errorf(api.CodeForbidden, "%s", r.Reason).On(api.KindNode, a.cfg.Name).Do("empty its data directory and join again")
	}
	return nil
}

// untilFenced blocks until the node's epoch has ended, which is no error.
func (a *Agent) untilFenced(ctx context.Context) error {
	for {
		v := a.view()
		changed, gone := fsm.Nodes.WatchKey(v, a.cfg.Name), fsm.RemovedNodes.WatchKey(v, a.cfg.ID)
		if err := a.removed(v); err != nil {
			return fmt.Errorf("%w: %w", ErrRemoved, err)
		}
		n, epoch := fsm.Nodes.Get(v, a.cfg.Name), a.epoch.Load()
		switch {
		case n == nil: // a restore is under way, or the row of the removal comes next
		case n.Epoch > epoch:
			return api.Errorf(api.CodeConflict, "another process registered as this node, at epoch %d after %d", n.Epoch, epoch).
				On(api.KindNode, a.cfg.Name).Do("make sure that only one machine runs with this identity")
		case n.Lease == api.NodeFenced:
			a.log.Warn("this node was fenced: it registers again", "epoch", epoch)
			a.epoch.Store(0)
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-gone:
		}
	}
}

// renew hands in a renewal of the lease every RenewInterval.
func (a *Agent) renew(ctx context.Context) error {
	tick := time.NewTicker(RenewInterval)
	defer tick.Stop()
	var seq, epoch uint64
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		e := a.epoch.Load()
		if e == 0 {
			continue
		}
		if e != epoch {
			epoch, seq = e, 0
		}
		seq++
		try, cancel := context.WithTimeout(ctx, RenewInterval)
		if err := a.cfg.Renew(try, fsm.Renewal{Node: a.cfg.Name, Epoch: e, Seq: seq}); err != nil && ctx.Err() == nil {
			a.log.Debug("lease not renewed", "error", err)
		}
		cancel()
	}
}

// probe measures the machine and reports it when it has changed by what
// matters.
func (a *Agent) probe(ctx context.Context) {
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		err := a.reportNode(ctx)
		if err != nil && ctx.Err() == nil {
			a.log.Debug("node report is repeated", "error", err)
			if wait(ctx, registerRetry) != nil {
				return
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-a.domains.probe:
		case <-tick.C:
		}
	}
}

func (a *Agent) reportNode(ctx context.Context) error {
	epoch := a.epoch.Load()
	if epoch == 0 {
		return api.Errorf(api.CodeUnavailable, "not registered yet")
	}
	v := a.view()
	n := fsm.Nodes.Get(v, a.cfg.Name)
	if n == nil || n.Epoch != epoch {
		return api.Errorf(api.CodeUnavailable, "not registered yet")
	}
	report := fsm.NodeReport{Node: a.cfg.Name, Epoch: epoch, Hypervisor: n.Hypervisor, Capacity: n.Capacity}
	probe, err := a.probeHypervisor(ctx)
	if err != nil {
		report.Hypervisor.Healthy, report.Hypervisor.Reason = false, reason(err)
	} else {
		report.Hypervisor, report.Capacity = probe.Info, probe.Capacity
		report.Hypervisor.Healthy = true
		if a.cfg.Share > 1 {
			report.Capacity.CPUs = max(1, report.Capacity.CPUs/a.cfg.Share)
			report.Capacity.MemoryBytes /= int64(a.cfg.Share)
		}
	}
	report.Pools = a.poolStatus(ctx, v)
	if !material(n, &report) {
		return nil
	}
	_, err = a.propose(ctx, fsm.ReportNode.Entry(report))
	return err
}

func (a *Agent) probeHypervisor(ctx context.Context) (plugins.Probe, error) {
	ctx, cancel := context.WithTimeout(ctx, probeInterval)
	defer cancel()
	return a.cfg.Hypervisor.Probe(ctx)
}

func (a *Agent) poolStatus(ctx context.Context, v *fsm.View) []api.PoolStatus {
	var out []api.PoolStatus
	for p := range fsm.Pools.All(v) {
		if !p.On(a.cfg.Name) || len(out) >= fsm.PoolsPerNodeMax {
			continue
		}
		status := api.PoolStatus{Pool: p.Name}
		spec, storage, err := a.resolve(p)
		if err == nil {
			status, err = storage.Status(ctx, spec)
		}
		if err != nil {
			status = api.PoolStatus{Pool: p.Name, Reason: reason(err)}
		}
		status.Pool = p.Name
		out = append(out, status)
	}
	slices.SortFunc(out, func(a, b api.PoolStatus) int { return strings.Compare(a.Pool, b.Pool) })
	return out
}

// freeShare is the change of a pool's free space, as a share of its size, that
// is worth an entry in the log.
const freeShare = 100

// material reports whether the node's row would say something new.
func material(n *api.Node, r *fsm.NodeReport) bool {
	if n.Hypervisor != r.Hypervisor || n.Capacity != r.Capacity || len(n.Pools) != len(r.Pools) {
		return true
	}
	for i, p := range r.Pools {
		old := n.Pools[i]
		moved := old.FreeBytes - p.FreeBytes
		if moved < 0 {
			moved = -moved
		}
		old.FreeBytes, p.FreeBytes = 0, 0
		if !reflect.DeepEqual(old, p) || moved > p.TotalBytes/freeShare {
			return true
		}
	}
	return false
}
