package fsm

import (
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
)

// RequestsMax is how many request IDs are remembered at once. At capacity new
// work is refused; nothing is forgotten early.
const RequestsMax = 1_000_000

// request is the remembered outcome of a request ID. It never changes.
type request struct {
	ID     string     `json:"id"`
	Index  uint64     `json:"index"`
	Digest [16]byte   `json:"digest"` // of op, principal and body
	Time   time.Time  `json:"time"`
	Err    *api.Error `json:"err,omitzero"`
	Kind   string     `json:"kind,omitzero"`
	Key    string     `json:"key,omitzero"`
}

// requests remembers outcomes in the order of their entries. Only Apply writes;
// a snapshot takes a slice of the queue, whose elements never change.
type requests struct {
	mu    sync.Mutex // guards all below, for snapshots taken beside Apply
	byID  map[string]*request
	queue []*request // oldest first

	max int // RequestsMax
}

func newRequests() *requests { return &requests{byID: map[string]*request{}, max: RequestsMax} }

func (r *requests) find(id string) (*request, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	q, ok := r.byID[id]
	return q, ok
}

// Remembers reports whether the outcome of a request ID is known here: an entry
// that repeats it gets that outcome.
func (f *FSM) Remembers(requestID string) bool {
	_, known := f.current.Load().requests.find(requestID)
	return known
}

func (r *requests) add(q *request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byID[q.ID] = q
	r.queue = append(r.queue, q)
}

// trim forgets what is older than RequestMemory at the replicated time now.
func (r *requests) trim(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	floor, n := now.Add(-RequestMemory), 0
	for n < len(r.queue) && r.queue[n].Time.Before(floor) {
		delete(r.byID, r.queue[n].ID)
		n++
	}
	r.queue = r.queue[n:]
}

func (r *requests) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.queue)
}

// all is the queue as it is now.
func (r *requests) all() []*request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.queue[:len(r.queue):len(r.queue)]
}
