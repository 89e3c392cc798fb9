package agent_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// TestTheDestinationIsToldHowFarItsReplicaMustBe: it may lag behind the leader,
// which has told the source that the copies are ready.
func TestTheDestinationIsToldHowFarItsReplicaMustBe(t *testing.T) {
	t.Parallel()
	var told, ready atomic.Uint64
	from, to := pair(t, func(h *host) {
		h.change = func(config *agent.Config) {
			config.Peer = func(ctx context.Context, node string, s agent.MigrationStream) (net.Conn, error) {
				for r := range fsm.Replicas.By(h.log.f.Read(), "node", node) {
					if r.Kind == api.KindVolume && r.State == api.ReplicaReady && ready.CompareAndSwap(0, r.Modified) {
						told.Store(s.Index)
					}
				}
				return h.peer(ctx, node, s)
			}
		}
	})
	from.run(vm("web"))
	to.ask("t1", "web", api.MigrateArgs{CopyStorage: true})
	to.arrived("t1", "web", from)
	if ready.Load() == 0 || told.Load() < ready.Load() {
		t.Errorf("the destination was to wait for entry %d; its copy was ready with entry %d", told.Load(), ready.Load())
	}
}

// refusing refuses the first migrations as the state machine does while an
// earlier copy is being removed.
type refusing struct {
	*log
	left  atomic.Int64
	asked atomic.Int64
}

func (r *refusing) Propose(ctx context.Context, e fsm.Entry) (fsm.Outcome, error) {
	if e.Op == fsm.BeginMigration.Op() {
		r.asked.Add(1)
		if r.left.Add(-1) >= 0 {
			return fsm.Outcome{Err: api.Errorf(api.CodeUnavailable, "an earlier copy is still being removed")}, nil
		}
	}
	return r.log.Propose(ctx, e)
}

// TestARefusedMigrationIsGivenBackAtOnce: a refusal was committed, so that it
// does not look as if nothing could be.
func TestARefusedMigrationIsGivenBackAtOnce(t *testing.T) {
	t.Parallel()
	cluster := &refusing{}
	cluster.left.Store(1)
	from, to := pair(t, func(h *host) {
		if h.name == "node1" {
			cluster.log = h.log
			h.change = func(config *agent.Config) { config.Cluster = cluster }
		}
	})
	from.run(vm("web"))
	to.ask("t1", "web", api.MigrateArgs{CopyStorage: true})
	from.until("the task waits for another try", func(v *fsm.View) bool {
		task := fsm.Tasks.Get(v, "t1")
		if task.Attempt == 0 {
			to.leadMoves(v, "t1")
		}
		return task.Attempt == 1 && task.State == api.TaskPending
	})
	if task := fsm.Tasks.Get(from.log.f.Read(), "t1"); task.Error == nil || task.Error.Message != "an earlier copy is still being removed" || cluster.asked.Load() != 1 {
		t.Errorf("after %d tries it waits for another one because of %v", cluster.asked.Load(), task.Error)
	}
	to.arrived("t1", "web", from)
}
