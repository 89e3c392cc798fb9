package main

import (
	"context"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/fsm"
)

// replica is this node's part of the cluster for those to whom a refusal is an
// error like any other: the API and the agent.
type replica struct{ *cluster.Server }

// Propose commits an entry; a refusal by the state machine is the error. When
// it returns, this node's state has the entry, wherever the leader is.
func (r replica) Propose(ctx context.Context, e fsm.Entry) (fsm.Outcome, error) {
	out, err := r.Server.Propose(ctx, e)
	if err == nil && out.Err != nil {
		return out, out.Err
	}
	if err != nil {
		return out, err
	}
	if err := r.WaitIndex(ctx, out.Index); err != nil {
		return out, api.Errorf(api.CodeUnknown, "the change was carried out at index %d, which this node has not stored yet", out.Index).
			Do("repeat it with the same request ID, or read with min_index=%d", out.Index)
	}
	return out, nil
}
