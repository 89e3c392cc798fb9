package main

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"
)

// writes compares committed puts. The goals are ratios to bare Raft and etcd.
func writes(ctx context.Context, b *bench) error {
	bare, err := startBareRaft(ctx, filepath.Join(b.dir, "raft"))
	defer bare.close()
	if err != nil {
		return err
	}
	other, err := startEtcd(ctx, filepath.Join(b.dir, "etcd"))
	defer other.close()
	if err != nil {
		return err
	}
	d, err := b.startWhole(ctx, "writes")
	if err != nil {
		return err
	}
	defer d.stop()
	leader, err := d.leader(ctx)
	if err != nil {
		return err
	}
	l, err := d.load(leader.Address)
	if err != nil {
		return err
	}
	defer l.close()
	systems := []system{{"debvisor", l.put}, {"bare Raft", bare.put}}
	if other != nil {
		systems = append(systems, system{"etcd", other.put})
	}
	var n atomic.Uint64
	for _, goal := range []struct {
		clients    int
		raft, etcd float64
	}{{1, 0.7, 0}, {16, 0.7, 0}, {64, 0.25, 0.5}, {256, 0.25, 0.5}} {
		rates, ratios, err := b.compare(ctx, goal.clients, systems, &n)
		if err != nil {
			return err
		}
		for i, s := range systems {
			b.add(fmt.Sprintf("puts, %d clients, %s", goal.clients, s.name), fmt.Sprintf("%.0f/s", rates[i]), "", false)
		}
		b.add(fmt.Sprintf("puts, %d clients, ratio to bare Raft", goal.clients), fmt.Sprintf("%.2f", ratios[1]), fmt.Sprintf("%.2f", goal.raft), ratios[1] >= goal.raft)
		if other != nil && goal.etcd > 0 {
			b.add(fmt.Sprintf("puts, %d clients, ratio to etcd", goal.clients), fmt.Sprintf("%.2f", ratios[2]), fmt.Sprintf("%.2f (1.00 the aim)", goal.etcd), ratios[2] >= goal.etcd)
		}
	}
	return nil
}

// reads compares reads of one small object.
func reads(ctx context.Context, b *bench) error {
	other, err := startEtcd(ctx, filepath.Join(b.dir, "etcd-reads"))
	defer other.close()
	if err != nil {
		return err
	}
	d, err := b.startWhole(ctx, "reads")
	if err != nil {
		return err
	}
	defer d.stop()
	leader, err := d.leader(ctx)
	if err != nil {
		return err
	}
	l, err := d.load(leader.Address)
	if err != nil {
		return err
	}
	defer l.close()
	var n atomic.Uint64
	for _, level := range []struct {
		name, path string
		stale      bool
	}{{"linearizable", "/v1/tenants/default", false}, {"stale", "/v1/tenants/default?stale=true", true}} {
		systems := []system{{"debvisor", l.get(level.path)}}
		if other != nil {
			systems = append(systems, system{"etcd", other.get(level.stale)})
		}
		rates, ratios, err := b.compare(ctx, 64, systems, &n)
		if err != nil {
			return err
		}
		for i, s := range systems {
			b.add(fmt.Sprintf("%s reads, 64 clients, %s", level.name, s.name), fmt.Sprintf("%.0f/s", rates[i]), "", false)
		}
		if other != nil {
			b.add(level.name+" reads, ratio to etcd", fmt.Sprintf("%.2f", ratios[1]), "", false)
		}
	}
	return nil
}

// start measures from the start of the processes to the first committed write,
// on data directories that exist.
func start(ctx context.Context, b *bench) error {
	d, err := b.startWhole(ctx, "start")
	if err != nil {
		return err
	}
	d.stop()
	var took []time.Duration
	for i := range b.turns {
		d, err := b.startDev(ctx, "start")
		if err != nil {
			return err
		}
		err = d.firstWrite(ctx, uint64(i+1))
		took = append(took, time.Since(d.started))
		d.stop()
		if err != nil {
			return err
		}
	}
	m := median(took)
	b.add("three nodes, start to first committed write", m.Round(time.Millisecond).String(), "3s", m <= 3*time.Second)
	return nil
}
