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

	counts map[string]int       // rows by kind, activeTasks and quotaTenants; follows from the rows
	usage  map[string]api.Usage // by tenant; follows from the rows
	room   *room                // follows from the nodes and the settings; nil: not looked at
}

// activeTasks is under which name the tasks that have not ended are counted.
const activeTasks = "task active"

// count takes a row in (by 1) or out (by -1).
func (s *system) count(kind string, counted anyRow, by int) {
	s.counts[kind] += by
	if t, ok := counted.(*row[api.Task]); ok && !t.value.Ended() {
		s.counts[activeTasks] += by
	}
	if t, ok := counted.(*row[api.Tenant]); ok && t.value.Quota != nil {
		s.counts[quotaTenants] += by
	}
	if tenant, used, ok := usageOf(counted); ok {
		sum := s.usage[tenant]
		if sum.Add(used, int64(by)); sum == (api.Usage{}) {
			delete(s.usage, tenant)
		} else {
			s.usage[tenant] = sum
		}
	}
	if kind == api.KindNode || kind == api.KindConfig {
		s.room = nil
	}
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
		return &system{ClusterVersion: VersionMin, counts: map[string]int{}, usage: map[string]api.Usage{}}
	}
	return raw.(*system)
}
