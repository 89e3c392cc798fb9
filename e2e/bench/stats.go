package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/sim"
)

const (
	sampledGuests = 500
	sampleRounds  = 50
	sampleGoal    = 250 * time.Millisecond
)

// statistics measures how long a reading of all counters takes.
func statistics(ctx context.Context, b *bench) error {
	took, err := sampleSimulated(ctx, filepath.Join(b.dir, "sampled"))
	if err != nil {
		return err
	}
	b.add(fmt.Sprintf("%d simulated VMs sampled, worst of %d", sampledGuests, sampleRounds), took.String(), sampleGoal.String(), took <= sampleGoal)
	return nil
}

func sampleSimulated(ctx context.Context, dir string) (worst time.Duration, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	cluster := uuid.NewString()
	h, err := sim.OpenHypervisor(sim.Config{Dir: dir, ClusterID: cluster})
	if err != nil {
		return 0, err
	}
	defer h.Close()
	for range sampledGuests {
		id := uuid.NewString()
		spec := plugins.DomainSpec{ID: id, Name: "default.vm-" + id, ClusterID: cluster, Gen: 1, CPUs: 1, MemoryBytes: 64 * api.MiB}
		if err := h.Start(ctx, spec); err != nil {
			return 0, err
		}
	}
	for range sampleRounds {
		began := time.Now()
		s, err := h.Sample(ctx)
		if err != nil || len(s.Domains) != sampledGuests {
			return 0, fmt.Errorf("sampled %d VMs: %w", len(s.Domains), err)
		}
		worst = max(worst, time.Since(began))
	}
	return worst.Round(10 * time.Microsecond), nil
}
