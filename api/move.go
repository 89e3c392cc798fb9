package api

import (
	"fmt"
	"strings"
	"time"
)

// SurvivalDownMax is how many of the VMs that would stay down are named.
const SurvivalDownMax = 10

// Survival tells what the loss of any so many nodes at once would do.
type Survival struct {
	Nodes    int      `json:"nodes"`          // lost together
	Survives bool     `json:"survives"`       // whichever they are, every VM finds a place and the cluster still decides
	Known    bool     `json:"known"`          // false: there are too many combinations to look at
	Quorum   bool     `json:"quorum"`         // a majority of the voters is left
	VMs      int      `json:"vms,omitzero"`   // that would stay down in the worst case
	Worst    []string `json:"worst,omitzero"` // the nodes of the worst case
	Down     []string `json:"down,omitzero"`  // keys of VMs that would stay down then, at most SurvivalDownMax
}

// SurvivalText is one line for people: "survives the loss of: any 1 node yes,
// any 2 no (3 VMs)".
func SurvivalText(all []Survival) string {
	var parts []string
	for i, s := range all {
		what := fmt.Sprintf("any %d", s.Nodes)
		if i == 0 {
			what = "any 1 node"
		}
		switch {
		case s.Survives:
			what += " yes"
		case !s.Quorum && s.VMs > 0:
			what += fmt.Sprintf(" no (no majority, %s)", vmCount(s.VMs))
		case !s.Quorum:
			what += " no (no majority of the voters)"
		case !s.Known:
			what += " unknown"
		default:
			what += fmt.Sprintf(" no (%s)", vmCount(s.VMs))
		}
		parts = append(parts, what)
	}
	if len(parts) == 0 {
		return "survives the loss of: no node"
	}
	return "survives the loss of: " + strings.Join(parts, ", ")
}

func vmCount(n int) string {
	if n == 1 {
		return "1 VM"
	}
	return fmt.Sprintf("%d VMs", n)
}

// Balance is a proposal of moves that even out how full the nodes are.
type Balance struct {
	At      time.Time `json:"at"`
	Index   uint64    `json:"index,omitzero"` // of the state that it was computed on
	Before  float64   `json:"before"`         // difference in fullness between the fullest and the emptiest node, 0 to 1
	After   float64   `json:"after"`          // the same after all moves
	Moves   []Move    `json:"moves"`
	Summary string    `json:"summary"` // one sentence for people
}

// BalanceMovesMax is how many moves one task carries out.
const BalanceMovesMax = 50

// DrainArgs are the arguments of a task of verb TaskDrain.
type DrainArgs struct {
	Reason   string `json:"reason,omitzero"`   // shown with the node while it is in maintenance
	Parallel int    `json:"parallel,omitzero"` // moves at a time; 0: the cluster's moves_per_node
}

// BalanceArgs are the arguments of a task of verb TaskBalance.
type BalanceArgs struct {
	Moves    []Move `json:"moves"`
	Parallel int    `json:"parallel,omitzero"` // moves that one node takes part in at a time; 0: the cluster's moves_per_node
}

// Validate checks the arguments on their own.
func (a *DrainArgs) Validate() error {
	var p problems
	checkText(&p, "reason", a.Reason, TextLengthMax)
	checkParallel(&p, a.Parallel)
	return p.err()
}

// Validate checks the arguments on their own.
func (a *BalanceArgs) Validate() error {
	var p problems
	if len(a.Moves) == 0 || len(a.Moves) > BalanceMovesMax {
		p.add("moves", "has %d", len(a.Moves)).Allow("1 to %d", BalanceMovesMax)
		return p.err()
	}
	seen := map[string]bool{}
	for i, m := range a.Moves {
		at := func(field string) string { return fmt.Sprintf("moves[%d].%s", i, field) }
		tenant, name := SplitKey(m.VM)
		p.addErr(CheckName(at("vm"), tenant))
		p.addErr(CheckName(at("vm"), name))
		p.addErr(CheckName(at("to"), m.To))
		p.addErr(CheckName(at("from"), m.From))
		if m.From == m.To {
			p.add(at("to"), "is %q, where it is already", m.To).Allow("another node")
		}
		if seen[m.VM] {
			p.add(at("vm"), "%q is moved twice", m.VM)
		}
		seen[m.VM] = true
	}
	checkParallel(&p, a.Parallel)
	return p.err()
}

func checkParallel(p *problems, n int) {
	if n < 0 || n > MovesPerNodeMax {
		p.add("parallel", "is %d", n).Allow("1 to %d, or 0 for the cluster's moves_per_node", MovesPerNodeMax)
	}
}

// Move is one VM going to another node.
type Move struct {
	VM          string `json:"vm"` // key
	ID          string `json:"id"`
	From        string `json:"from"`
	To          string `json:"to"`
	MemoryBytes int64  `json:"memory_bytes,omitzero"`
	Reason      string `json:"reason,omitzero"`
}
