package fsm

import (
	"time"

	"github.com/hashicorp/go-memdb"

	"github.com/debvisor/debvisor/api"
)

const systemTable = "system"

// system is the state that belongs to no kind. It is one row, replaced with
// every batch, so that a view of the tables always has the index they are at.
type system struct {
	Index          uint64    `json:"index"`
	Time           time.Time `json:"time"`
	ClusterVersion uint32    `json:"cluster_version"`
	Chain          api.Hash  `json:"chain"`
	Quiet          api.Hash  `json:"quiet"` // digest of the quiet entries since the last record
	Rows           rowSum    `json:"rows"`
}

func systemSchema() *memdb.TableSchema {
	return &memdb.TableSchema{Name: systemTable, Indexes: map[string]*memdb.IndexSchema{
		indexID: {Name: indexID, Unique: true, Indexer: keyIndexer{func(any) string { return systemTable }}},
	}}
}

func readSystem(txn *memdb.Txn) *system {
	raw, err := txn.First(systemTable, indexID, systemTable)
	if err != nil {
		panic(err)
	}
	if raw == nil {
		return &system{ClusterVersion: VersionMin}
	}
	return raw.(*system)
}
