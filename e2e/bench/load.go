package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// system is something that can be loaded: do carries out one operation of a
// worker and blocks until it is done.
type system struct {
	name string
	do   func(ctx context.Context, worker int, n uint64) error
}

// rate loads the system with that many clients for the window and returns
// finished operations a second. The first failure ends it.
func (s *system) rate(ctx context.Context, clients int, window time.Duration, from *atomic.Uint64) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, window+time.Minute)
	defer cancel()
	var done atomic.Uint64
	var failed error
	var once sync.Once
	var wg sync.WaitGroup
	started := time.Now()
	end := started.Add(window)
	for worker := range clients {
		wg.Go(func() {
			for time.Now().Before(end) && ctx.Err() == nil {
				if err := s.do(ctx, worker, from.Add(1)); err != nil {
					once.Do(func() { failed = err; cancel() })
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return 0, fmt.Errorf("%s: %w", s.name, failed)
	}
	return float64(done.Load()) / time.Since(started).Seconds(), nil
}

// compare loads the systems in turns and returns the median rate of each, and
// the median of the ratios of the first to each, taken turn by turn.
func (b *bench) compare(ctx context.Context, clients int, systems []system, from *atomic.Uint64) (rates, ratios []float64, err error) {
	all := make([][]float64, len(systems))
	shares := make([][]float64, len(systems))
	for range b.turns {
		turn := make([]float64, len(systems))
		for i := range systems {
			if turn[i], err = systems[i].rate(ctx, clients, b.window, from); err != nil {
				return nil, nil, err
			}
		}
		for i := range turn {
			all[i] = append(all[i], turn[i])
			shares[i] = append(shares[i], turn[0]/turn[i])
		}
	}
	for i := range systems {
		rates = append(rates, median(all[i]))
		ratios = append(ratios, median(shares[i]))
	}
	return rates, ratios, nil
}

func median[T float64 | time.Duration](values []T) T {
	if len(values) == 0 {
		return 0
	}
	s := slices.Clone(values)
	slices.Sort(s)
	return s[len(s)/2]
}
