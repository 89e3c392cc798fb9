package agent

import (
	"context"
	"sync"
	"time"
)

// queue works on objects: at most so many at once, each by one worker at a
// time, again when it was marked meanwhile, later when it failed.
type queue struct {
	workers int
	handle  func(ctx context.Context, k key) (again time.Duration, err error)

	mu      sync.Mutex // guards all below
	marks   map[key]*mark
	pending []key // marked, due and not running, oldest first
	running int
	wakeup  chan struct{}
}

// mark is the state of one object that is or was in the queue.
type mark struct {
	running, dirty, queued bool
	failures               int
	timer                  *time.Timer
}

func newQueue(workers int, handle func(context.Context, key) (time.Duration, error)) *queue {
	return &queue{workers: workers, handle: handle, marks: map[key]*mark{}, wakeup: make(chan struct{}, 1)}
}

// add marks an object as in need of work, now.
func (q *queue) add(k key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	m := q.marks[k]
	if m == nil {
		m = &mark{}
		q.marks[k] = m
	}
	if m.timer != nil {
		m.timer.Stop()
		m.timer = nil
	}
	switch {
	case m.running:
		m.dirty = true
	case !m.queued:
		m.queued = true
		q.pending = append(q.pending, k)
		q.signal()
	}
}

func (q *queue) signal() {
	select {
	case q.wakeup <- struct{}{}:
	default:
	}
}

// run works until ctx ends and waits for the workers.
func (q *queue) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case <-ctx.Done():
			q.stopTimers()
			return
		case <-q.wakeup:
		}
		for {
			k, ok := q.next()
			if !ok {
				break
			}
			wg.Go(func() {
				again, err := q.handle(ctx, k)
				q.done(ctx, k, again, err)
			})
		}
	}
}

func (q *queue) stopTimers() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.marks {
		if m.timer != nil {
			m.timer.Stop()
		}
	}
}

func (q *queue) next() (key, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pending) == 0 || q.running >= q.workers {
		return key{}, false
	}
	k := q.pending[0]
	q.pending = q.pending[1:]
	m := q.marks[k]
	m.queued, m.running, m.dirty = false, true, false
	q.running++
	return k, true
}

func (q *queue) done(ctx context.Context, k key, again time.Duration, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	m := q.marks[k]
	m.running = false
	q.running--
	defer q.signal()
	if err != nil {
		m.failures++
		again = pause(m.failures)
	} else {
		m.failures = 0
	}
	switch {
	case ctx.Err() != nil:
	case m.dirty:
		m.queued = true
		q.pending = append(q.pending, k)
	case again > 0:
		m.timer = time.AfterFunc(again, func() { q.add(k) })
	default:
		delete(q.marks, k)
	}
}
