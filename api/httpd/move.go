package httpd

import (
	"errors"
	"net/http"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/authz"
)

type balanceInput struct {
	ReadOptions
	Moves int `query:"moves" minimum:"0" maximum:"50" doc:"how many moves are proposed at most; 0: 50"`
}

type planInput struct{ WriteOptions }

func (s *Server) registerMoves() error {
	cluster := func(v authz.Verb) authz.Right {
		return authz.Right{Verb: v, Kind: authz.KindCluster, Scope: authz.ScopeCluster}
	}
	node := authz.Right{Verb: authz.Drain, Kind: api.KindNode, Scope: authz.ScopeCluster}
	return errors.Join(
		handle(s, route{method: http.MethodPost, path: "/v1/nodes/{name}/drain", right: node, change: true, body: api.DrainArgs{}, bytes: VerbBytesMax,
			answer: api.Action{}, summary: "Move every running VM off a node",
			about: "The node takes no new VMs from the same log entry on, until it is opened again with schedule."},
			func(x *exchange, in *namedInput) error {
				var args api.DrainArgs
				if err := x.decodeOptional(&args); err != nil {
					return err
				}
				return x.submitTask(in.Plan, api.TaskDrain, api.KindNode, in.Name, args)
			}),
		handle(s, route{method: http.MethodGet, path: "/v1/balance", right: cluster(authz.Read), answer: api.Balance{},
			summary: "Propose moves that even out how full the nodes are", about: "Each move is explained. Nothing is changed."}, (*exchange).proposeBalance),
		handle(s, route{method: http.MethodPost, path: "/v1/balance", right: cluster(authz.Balance), change: true, body: api.BalanceArgs{}, bytes: balanceBytesMax,
			answer: api.Action{}, summary: "Carry out moves that were proposed"},
			func(x *exchange, in *planInput) error {
				var args api.BalanceArgs
				if err := x.decode(&args); err != nil {
					return err
				}
				return x.submitTask(in.Plan, api.TaskBalance, "", "", args)
			}))
}

// balanceBytesMax holds BalanceMovesMax moves with their reasons.
const balanceBytesMax = 64 << 10

func (x *exchange) proposeBalance(in *balanceInput) error {
	view, err := x.barrier(in.ReadOptions)
	if err != nil {
		return err
	}
	most := in.Moves
	if most == 0 {
		most = api.BalanceMovesMax
	}
	b := x.s.cfg.Balance(view, time.Now().UTC(), most)
	b.Index = view.Index()
	x.index(b.Index)
	return x.answer(http.StatusOK, b)
}
