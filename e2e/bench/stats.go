package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/sim"
)

const (
	sampledGuests  = 500
	sampleRounds   = 50
	sampleGoal     = 250 * time.Millisecond
	quietGuests    = 1000 // of one node
	quietWindow    = time.Minute
	quietStartWait = 3 * time.Minute
)

// statistics measures how long a reading of all counters takes, and what
// guests cost in which nothing changes.
func statistics(ctx context.Context, b *bench) error {
	took, err := sampleSimulated(ctx, filepath.Join(b.dir, "sampled"))
	if err != nil {
		return err
	}
	b.add(fmt.Sprintf("%d simulated VMs sampled, worst of %d", sampledGuests, sampleRounds), took.String(), sampleGoal.String(), took <= sampleGoal)
	return quiet(ctx, b)
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

// quiet runs 1,000 VMs on one of three nodes and compares what its process
// takes with what it took without them.
func quiet(ctx context.Context, b *bench) error {
	d, err := b.startWhole(ctx, "quiet")
	if err != nil {
		return err
	}
	defer d.stop()
	settle(ctx, 10*time.Second)
	empty, err := d.share(ctx, "node1")
	if err != nil {
		return err
	}
	if err := d.runGuests(ctx, "node1", quietGuests); err != nil {
		return err
	}
	settle(ctx, 10*time.Second)
	full, err := d.share(ctx, "node1")
	if err != nil {
		return err
	}
	b.add("a node without VMs, share of a core", fmt.Sprintf("%.2f %%", empty*100), "", true)
	b.add(fmt.Sprintf("%d VMs in which nothing changes, on top of that", quietGuests), fmt.Sprintf("%.2f %%", (full-empty)*100), "2 %", full-empty < 0.02)
	return nil
}

// share is what part of a core a node takes over a while.
func (d *dev) share(ctx context.Context, node string) (float64, error) {
	before, err := d.usage(node)
	if err != nil {
		return 0, err
	}
	settle(ctx, quietWindow)
	after, err := d.usage(node)
	return float64(after.processor-before.processor) / float64(quietWindow), err
}

// runGuests makes VMs without disks on a node, and blocks until all run.
func (d *dev) runGuests(ctx context.Context, node string, count int) error {
	ctx, cancel := context.WithTimeout(ctx, quietStartWait)
	defer cancel()
	raw := []byte(`{"cpu_overcommit":16,"memory_overcommit":16}`)
	config := api.Operation{Op: "config.put", Body: raw}
	ops := []api.Operation{config}
	for i := range count {
		ops = append(ops, api.Operation{Op: "vm.put", Body: fmt.Appendf(nil,
			`{"name":"vm-%04d","tenant":"default","cpus":1,"memory_bytes":16777216,"placement":{"node":%q}}`, i, node)})
	}
	for part := range slices.Chunk(ops, 300) {
		if _, err := d.client.Apply(ctx, &api.Apply{Operations: part}); err != nil {
			return err
		}
	}
	for {
		list, err := client.Resource[api.Instance](d.client, api.KindInstance).All(ctx, client.ListOptions{ReadOptions: client.ReadOptions{Stale: true}})
		if err != nil {
			return err
		}
		running := 0
		for i := range list.Items {
			if list.Items[i].State == api.InstanceRunning {
				running++
			}
		}
		if running == count {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d VMs run: %w", running, count, ctx.Err())
		case <-time.After(time.Second):
		}
	}
}
