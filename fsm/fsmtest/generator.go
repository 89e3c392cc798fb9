// Package fsmtest checks the state machine from outside: it makes random logs
// that meet every operation, and tells whether a state, and the step from one
// state to the next, keep the promises of package fsm. Tests of other packages
// use it to drive a real state machine.
package fsmtest

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Source is where a Generator takes its choices from.
type Source interface {
	// IntN returns a number from 0 to n-1. It panics if n < 1.
	IntN(n int) int
}

// epoch is the time that generated logs begin at.
var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// Generator makes entries that mean something in the state that they are made
// for: most are accepted, some are refused, none is one that Apply does not
// understand. It is used by one goroutine.
type Generator struct {
	source Source
	view   *fsm.View // what the next entry is made for
	now    time.Time
	serial int         // of entries
	past   []string    // request IDs that were used
	sent   []fsm.Entry // with a request ID, to be sent again as they are
	makers map[string]func(*Generator) fsm.Entry
	deck   []string // ops, each as often as its weight
}

// NewGenerator makes a Generator of random logs. It fails when package fsm has
// an operation that no random log would contain.
func NewGenerator(source Source) (*Generator, error) {
	g := &Generator{source: source, now: epoch, makers: makers()}
	for _, op := range fsm.Ops() {
		if g.makers[op] == nil {
			return nil, fmt.Errorf("no random log contains %s: add it to the makers of fsmtest", op)
		}
		for range weight(op) {
			g.deck = append(g.deck, op)
		}
	}
	if len(g.makers) != len(fsm.Ops()) {
		return nil, fmt.Errorf("%d makers for %d operations", len(g.makers), len(fsm.Ops()))
	}
	return g, nil
}

// weight is how often an op comes up.
func weight(op string) int {
	switch op {
	case fsm.InitCluster.Op(), fsm.RehomeCluster.Op():
		return 1
	case fsm.RemoveNode.Op():
		return 3
	case fsm.VMs.Kind() + ".put":
		return 40
	case fsm.BeginMigration.Op(), fsm.CommitMigration.Op(), fsm.AbortMigration.Op(): // most of them are what must come before
		return 50
	case fsm.ReportSnapshot.Op(), fsm.RestoreSnapshot.Op(), fsm.ForgetSnapshot.Op():
		return 6
	case fsm.SubmitTask.Op():
		return 12
	case fsm.AssignInstance.Op(), fsm.RegisterNode.Op(), fsm.RenewNodes.Op(), fsm.JoinNode.Op(), fsm.DispatchTask.Op(),
		fsm.ForgetInstance.Op(), fsm.ReportInstance.Op(), fsm.Networks.Kind() + ".put", fsm.Firewalls.Kind() + ".put", fsm.Images.Kind() + ".put":
		return 20
	case fsm.VMs.Kind() + ".delete", fsm.ConfirmOffNode.Op():
		return 4
	}
	return 8
}

// First is the entry that every log begins with.
func (g *Generator) First() fsm.Entry {
	e := fsm.InitCluster.Entry(fsm.ClusterInit{
		ClusterID: g.uuid(1), Region: "here", Version: fsm.VersionMin,
		Node:  fsm.NodeJoin{ID: g.uuid(100), Name: "n0", Address: "127.0.0.1:7443", Zone: "z0"},
		Key:   fsm.KeyCreate{Name: "root", Hash: hash(0), Role: api.RoleAdmin},
		Seals: []api.Seal{{Meta: api.Meta{Name: "ca"}, Ciphertext: []byte{1, 2, 3}}},
	})
	e.Time, e.By = g.now, "init"
	return e
}

// Next makes an entry for the state that the view shows. Now and then it is a
// former one again, as after a lost answer.
func (g *Generator) Next(view *fsm.View) fsm.Entry {
	if len(g.sent) > 0 && g.chance(30) {
		return pick(g, g.sent...)
	}
	if g.chance(6) {
		if next := g.nextOfSnapshots(view); next != nil {
			return g.make(view, next)
		}
	}
	return g.Make(view, g.deck[g.source.IntN(len(g.deck))])
}

// Make makes an entry of one op for the state that the view shows.
func (g *Generator) Make(view *fsm.View, op string) fsm.Entry {
	return g.make(view, g.makers[op])
}

func (g *Generator) make(view *fsm.View, maker func(*Generator) fsm.Entry) fsm.Entry {
	g.view = view
	g.serial++
	g.now = g.now.Add(time.Duration(g.source.IntN(2000)) * time.Millisecond)
	if g.chance(100) {
		g.now = g.now.Add(time.Duration(g.source.IntN(30)) * time.Minute)
	}
	e := maker(g)
	e.Time, e.By = g.now, pick(g, "", "root", "control", "n1")
	if g.chance(30) {
		e.Time = e.Time.Add(-time.Duration(g.source.IntN(12)) * time.Minute) // another proposer's clock
	}
	switch {
	case g.chance(20) && len(g.past) > 0:
		e.RequestID = g.past[g.source.IntN(len(g.past))]
	case g.chance(2):
		e.RequestID = fmt.Sprintf("request-%d", g.serial)
		g.past = append(g.past, e.RequestID)
	}
	if g.chance(20) {
		e.Auth = &fsm.Auth{Key: "root", Revision: 1 + uint64(g.source.IntN(2))}
	}
	if e.RequestID != "" {
		g.sent = append(g.sent, e)
	}
	return e
}

// chance is true once in n times.
func (g *Generator) chance(n int) bool { return g.source.IntN(n) == 0 }

func pick[T any](g *Generator, from ...T) T { return from[g.source.IntN(len(from))] }

// row is a random row of a table, or nil.
func row[T any](g *Generator, all []*T) *T {
	if len(all) == 0 {
		return nil
	}
	return all[g.source.IntN(len(all))]
}

// name is one of a few names with that first letter, so that they meet again.
func (g *Generator) name(letter string, n int) string {
	if g.chance(50) {
		return pick(g, "", "Not-a-label", "missing")
	}
	return fmt.Sprintf("%s%d", letter, g.source.IntN(n))
}

func (g *Generator) tenant() string {
	return pick(g, api.DefaultTenant, api.DefaultTenant, g.name("t", 3))
}

func (g *Generator) uuid(n int) string { return fmt.Sprintf("%08d-0000-4000-8000-000000000000", n) }

func hash(n int) string { return fmt.Sprintf("%064x", n) }

func (g *Generator) labels() map[string]string {
	if g.chance(2) {
		return nil
	}
	return map[string]string{"app": pick(g, "web", "db"), "tier": pick(g, "", "<front>")}
}

// revision is mostly the one asked for.
func (g *Generator) revision(n uint64) uint64 {
	if g.chance(8) {
		return n + uint64(g.source.IntN(3))
	}
	return n
}

// node is a random node, or a name that is none.
func (g *Generator) node() string {
	if n := row(g, list(fsm.Nodes, g.view)); n != nil && !g.chance(20) {
		return n.Name
	}
	return g.name("n", 6)
}

// liveNode is a random node and its epoch; mostly it is live.
func (g *Generator) liveNode() (string, uint64) {
	var live []*api.Node
	for n := range fsm.Nodes.All(g.view) {
		if n.Lease == api.NodeLive && !n.Witness {
			live = append(live, n)
		}
	}
	if n := row(g, live); n != nil && !g.chance(10) {
		return n.Name, g.revision(n.Epoch)
	}
	return g.node(), 1
}

// text is something to say, with what JSON and HTML must escape.
func (g *Generator) text() string {
	return pick(g, "", "plain", "<b>\"quoted\" & more</b>", "ünïcödé \u2028 line", "back\\slash")
}

func raw(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a struct of package fsm that cannot be encoded
	}
	return b
}

// object ties a struct to the methods of its pointer.
type object[T any] interface {
	*T
	api.Object
}

// list is every row of a table.
func list[T any, P object[T]](t fsm.Table[T, P], view *fsm.View) (out []*T) {
	for v := range t.All(view) {
		out = append(out, v)
	}
	return out
}
