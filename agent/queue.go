package agent

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// queue holds the keys that need work, each once. A key that is added while
// it is being worked on comes again afterwards; nobody else gets it meanwhile.
type queue struct {
	mu    sync.Mutex // guards all below
	items map[string]*item
	deaf  map[string]time.Time // keys whose proposal got no answer: when they may come again because something was committed
	ready []string             // in the order of arrival
	token chan struct{}        // holds one while something is ready
}

type item struct {
	ready, active, again bool
	touched              chan struct{} // closed by touch while active; nil: it was, or nobody works
	timer                *time.Timer
	alarm                uint64 // number of the last timer
	failures             int
	complaint            string // last error, so that it is logged once
}

func newQueue() *queue {
	return &queue{items: map[string]*item{}, deaf: map[string]time.Time{}, token: make(chan struct{}, 1)}
}

// add asks for work on the key.
func (q *queue) add(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.addLocked(key)
}

// touch is add, and tells the one who works on the key now that what is wanted
// may have changed.
func (q *queue) touch(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.addLocked(key)
	if i := q.items[key]; i.touched != nil {
		close(i.touched)
		i.touched = nil
	}
}

func (q *queue) addLocked(key string) {
	i := q.items[key]
	if i == nil {
		i = &item{}
		q.items[key] = i
	}
	if i.timer != nil {
		i.timer.Stop()
		i.timer = nil
	}
	delete(q.deaf, key)
	switch {
	case i.active:
		i.again = true
	case !i.ready:
		i.ready = true
		q.ready = append(q.ready, key)
		q.wake()
	}
}

func (q *queue) wake() {
	select {
	case q.token <- struct{}{}:
	default:
	}
}

// next blocks until a key is ready. The channel closes when the key is touched
// during the work. ok is false when ctx has ended.
func (q *queue) next(ctx context.Context) (key string, touched <-chan struct{}, ok bool) {
	for {
		q.mu.Lock()
		if len(q.ready) > 0 {
			key, q.ready = q.ready[0], q.ready[1:]
			if len(q.ready) > 0 {
				q.wake()
			}
			i := q.items[key]
			ch := make(chan struct{})
			i.ready, i.active, i.touched = false, true, ch
			q.mu.Unlock()
			return key, ch, true
		}
		q.mu.Unlock()
		select {
		case <-ctx.Done():
			return "", nil, false
		case <-q.token:
		}
	}
}

// rearm returns a channel that closes when the key is touched next during the
// work. Only the one who works on the key calls it.
func (q *queue) rearm(key string) <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := q.items[key]
	if i.touched == nil {
		i.touched = make(chan struct{})
	}
	return i.touched
}

// verdict is what a job says about its key.
type verdict struct {
	err   error         // nil: done for the present
	after time.Duration // with or without err: come again after that; 0 with err: after a backoff
	max   time.Duration // of the backoff
	deaf  bool          // the cluster gave no answer: come again as soon as something is committed
}

const (
	backoffMin = 250 * time.Millisecond
	backoffMax = time.Minute
)

// done ends the work on the key. It reports whether the error is a new one.
func (q *queue) done(key string, v verdict) (news bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := q.items[key]
	i.active, i.touched = false, nil
	if v.err == nil {
		i.failures, i.complaint = 0, ""
	} else {
		news = i.complaint != v.err.Error()
		i.failures, i.complaint = i.failures+1, v.err.Error()
		if v.after == 0 {
			v.after = backoff(i.failures, v.max)
		}
	}
	switch {
	case i.again:
		i.again = false
		q.addLocked(key)
	case v.after > 0:
		if v.deaf {
			q.deaf[key] = time.Now().Add(backoffMin)
		}
		i.alarm++
		number := i.alarm
		i.timer = time.AfterFunc(v.after, func() { q.ring(key, number) })
	default:
		delete(q.items, key)
	}
	return news
}

// ring adds a key when its alarm is still the one that counts.
func (q *queue) ring(key string, number uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := q.items[key]; i != nil && i.timer != nil && i.alarm == number {
		q.addLocked(key)
	}
}

// committed adds the keys that wait for the cluster to answer again: something
// was committed, so it does. One that has just failed waits for its alarm, or
// for the next commit.
func (q *queue) committed() {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for key, from := range q.deaf {
		if !now.Before(from) {
			q.addLocked(key)
		}
	}
}

// close stops all timers. Nothing may be added afterwards.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, i := range q.items {
		if i.timer != nil {
			i.timer.Stop()
			i.timer = nil
		}
	}
}

// backoff grows from backoffMin by powers of two to limit, give or take a
// fifth, so that objects which failed together do not come back together.
func backoff(failures int, limit time.Duration) time.Duration {
	if limit == 0 {
		limit = backoffMax
	}
	d := min(backoffMin<<min(failures-1, 16), limit)
	return d*4/5 + rand.N(d*2/5)
}
