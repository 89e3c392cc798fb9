package agent

import (
	"context"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// What a guest shows that its storage stopped, and when it is tried again.
const (
	reasonIOError  = "i/o error" // as every hypervisor names it
	pausedForSpace = "its storage took no more writes: a pool is full, or has a fault; it goes on by itself when there is space again"
	resumeAgain    = 15 * time.Second
	resumeFreeMin  = 64 * api.MiB // that must be free above the reserve
)

// watchSpace adds the warning of a pool that fills up, and logs that it begins
// and ends.
func (a *Agent) watchSpace(view *fsm.View, status *api.PoolStatus) {
	before := ""
	if row := fsm.Nodes.Get(view, a.config.Name); row != nil {
		for _, p := range row.Pools {
			if p.Pool == status.Pool {
				before = p.Warning
			}
		}
	}
	status.Warning = status.Pressure(fsm.Settings(view), before)
	switch {
	case status.Warning != "" && before == "":
		a.log.Warn("a pool fills up", "pool", status.Pool, "used_percent", status.UsedPercent(), "warning", status.Warning)
	case status.Warning == "" && before != "":
		a.log.Info("a pool has space again", "pool", status.Pool, "used_percent", status.UsedPercent())
	}
}

// waitsForSpace reports whether the guest was paused because its storage took
// no more.
func waitsForSpace(s *sight) bool {
	return s.domain.State == api.InstancePaused && s.domain.Reason == reasonIOError
}

// resumeGuest lets a guest go on that waits for space, once all pools of its
// disks have some. One that has none again pauses again, and loses nothing.
func (a *Agent) resumeGuest(ctx context.Context, s *sight) error {
	if a.config.Disks == nil {
		return nil
	}
	for _, d := range s.vm.Disks {
		volume := fsm.Volumes.Get(s.view, api.Key(s.vm.Tenant, d.Volume))
		if volume == nil {
			continue
		}
		storage, spec, err := a.pool(s.view, volume.Pool)
		if err != nil {
			return err
		}
		within, cancel := context.WithTimeout(ctx, statusTimeout)
		status, err := storage.Status(within, spec)
		cancel()
		if err != nil || status.FreeBytes-spec.ReserveBytes < resumeFreeMin {
			return err // it is looked at again
		}
	}
	a.log.Info("letting a guest go on that waited for space", "vm", s.row.VM, "id", s.id)
	within, cancel := context.WithTimeout(ctx, actTimeout)
	defer cancel()
	return a.config.Disks.Unpause(within, s.id)
}
