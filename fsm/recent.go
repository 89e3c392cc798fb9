package fsm

import (
	"sort"

	"github.com/debvisor/debvisor/api"
)

// recentRecordsMax is how many records are kept in memory for event streams;
// older ones are read from the journal.
const recentRecordsMax = 8192

// recentRecords is a window over the last records, oldest first.
type recentRecords struct {
	limit   int
	records []*api.Record
	floor   uint64 // every record after this index is in the window
}

func (r *recentRecords) add(yields []Yield) {
	for _, y := range yields {
		r.records = append(r.records, y.Record)
	}
	if over := len(r.records) - 2*r.limit; over > 0 {
		keep := r.records[len(r.records)-r.limit:]
		r.floor = r.records[len(r.records)-r.limit-1].Index
		r.records = append([]*api.Record(nil), keep...)
	}
}

func (r *recentRecords) reset() { r.records, r.floor = nil, ^uint64(0) }

// Recent returns the records after index that are kept in memory, at most max,
// oldest first. ok is false when some of them have left the window: read the
// journal instead. The records are shared and must not be written into.
func (f *FSM) Recent(index uint64, max int) (records []*api.Record, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.recent.floor == ^uint64(0) { // restored: nothing before now is known
		f.recent.floor = f.Index()
	}
	if index < f.recent.floor {
		return nil, false
	}
	all := f.recent.records
	from := sort.Search(len(all), func(i int) bool { return all[i].Index > index })
	all = all[from:]
	if len(all) > max {
		all = all[:max]
	}
	return all[:len(all):len(all)], true
}
