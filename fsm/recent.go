package fsm

import (
	"slices"
	"sort"

	"github.com/debvisor/debvisor/api"
)

// recentRecordsMax is how many records are kept in memory for event streams;
// older ones are read from the journal.
const recentRecordsMax = 8192

// recentBytesMax bounds the encodings of the records that are kept: a record
// holds its rows twice, and a row may have 256 KiB.
const recentBytesMax = 64 << 20

// recentRecords is a window over the last records, oldest first.
type recentRecords struct {
	limit   int
	bytes   int   // of the encodings of records
	sizes   []int // of each of them
	most    int   // recentBytesMax
	records []*api.Record
	floor   uint64 // every record after this index is in the window
}

func (r *recentRecords) add(yields []Yield) {
	for _, y := range yields {
		r.records, r.sizes = append(r.records, y.Record), append(r.sizes, len(y.Canonical))
		r.bytes += len(y.Canonical)
	}
	if len(r.records) <= 2*r.limit && r.bytes <= r.most {
		return
	}
	// Down to half, so that records are moved rarely.
	over := max(0, len(r.records)-r.limit)
	for i, size := range r.sizes {
		if i >= over && r.bytes <= r.most/2 {
			break
		}
		over, r.bytes = i+1, r.bytes-size
	}
	r.floor = r.records[over-1].Index
	r.records, r.sizes = slices.Clone(r.records[over:]), slices.Clone(r.sizes[over:])
}

func (r *recentRecords) reset() {
	r.records, r.sizes, r.bytes, r.floor = nil, nil, 0, ^uint64(0)
}

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
