package main

import (
	"context"

	"github.com/debvisor/debvisor/cluster"
	"github.com/debvisor/debvisor/fsm"
)

// replica is this node's part of the cluster for those to whom a refusal is an
// error like any other: the API and the agent.
type replica struct{ *cluster.Server }

// Propose commits an entry; a refusal by the state machine is the error.
func (r replica) Propose(ctx context.Context, e fsm.Entry) (fsm.Outcome, error) {
	out, err := r.Server.Propose(ctx, e)
	if err == nil && out.Err != nil {
		return out, out.Err
	}
	return out, err
}
