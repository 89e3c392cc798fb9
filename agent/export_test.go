package agent

import "github.com/debvisor/debvisor/api"

// The decision about a migration, for its table.

// Part is part.
type Part struct {
	Me                 string
	Epoch              uint64
	Row                *api.Instance
	Source             *api.Node
	Busy, Moving, Here bool
	Gen                uint64
}

// MigrationStep is migrationStep.
func MigrationStep(p Part) string {
	return string(migrationStep(part{me: p.Me, epoch: p.Epoch, row: p.Row, source: p.Source, busy: p.Busy, moving: p.Moving, here: p.Here, gen: p.Gen}))
}
