package fsm

import (
	"sync"

	"github.com/debvisor/debvisor/api"
)

// sumsMax is for how many entries the hash of the state is kept, so that nodes
// can be compared at one index although they are never at the same one at once.
const sumsMax = 4096

// sums is the state hash after each of the last entries.
type sums struct {
	mu   sync.Mutex
	ring [sumsMax]sumAt // guarded by mu
}

type sumAt struct {
	index uint64
	rows  rowSum
}

func (s *sums) add(batch []sumAt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range batch {
		s.ring[a.index%sumsMax] = a
	}
}

func (s *sums) at(index uint64) (rowSum, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.ring[index%sumsMax]
	return a.rows, index != 0 && a.index == index
}

// HashAt is what StateHash was right after the entry at index. ok is false when
// that entry is not applied yet, lies too far back, or came with a restored
// snapshot.
func (f *FSM) HashAt(index uint64) (hash api.Hash, ok bool) {
	gen := f.current.Load()
	if v := gen.view(); v.Index() == index {
		return v.StateHash(), true
	}
	rows, ok := gen.sums.at(index)
	if !ok {
		return api.Hash{}, false
	}
	return rows.hash(), true
}
