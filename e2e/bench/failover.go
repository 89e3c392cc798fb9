package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/api"
)

const writeDeadline = 30 * time.Second

// firstWrite retries one put, on every node in turn, until one commits.
func (d *dev) firstWrite(ctx context.Context, n uint64) error {
	ctx, cancel := context.WithTimeout(ctx, writeDeadline)
	defer cancel()
	var loads []*loadClient
	for _, a := range d.addresses {
		l, err := d.load(a)
		if err != nil {
			return err
		}
		l.http.Timeout = 3 * time.Second
		defer l.close()
		loads = append(loads, l)
	}
	for i := 0; ; i++ {
		// A put that was cut off may have happened: another name each time.
		err := loads[i%len(loads)].create(ctx, n*1_000_000+uint64(i))
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("no write committed: %w", errors.Join(err, ctx.Err()))
		}
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// failover kills the leader's process with SIGKILL again and again. The
// cluster's parent starts it anew each time; the next kill waits until every
// node votes.
func failover(ctx context.Context, b *bench) error {
	d, err := b.startWhole(ctx, "failover")
	if err != nil {
		return err
	}
	defer d.stop()
	var took []time.Duration
	for i := range b.kills {
		leader, err := d.leader(ctx)
		if err != nil {
			return err
		}
		pid, err := d.pid(leader.Name)
		if err != nil {
			return err
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			return err
		}
		from := time.Now()
		if err := d.firstWrite(ctx, uint64(i+1)); err != nil {
			return err
		}
		took = append(took, time.Since(from))
		if err := d.whole(ctx, leader, pid); err != nil {
			return err
		}
	}
	m, worst := median(took), slices.Max(took)
	b.add(fmt.Sprintf("leader killed to next write, %d kills, median", len(took)), m.Round(time.Millisecond).String(), "1.2s", m <= 1200*time.Millisecond)
	b.add("leader killed to next write, worst", worst.Round(time.Millisecond).String(), "2.5s", worst <= 2500*time.Millisecond)
	return nil
}

// whole waits until a node runs again as another process, is ready, and every
// node votes.
func (d *dev) whole(ctx context.Context, node api.Node, killed int) error {
	l, err := d.load(node.Address)
	if err != nil {
		return err
	}
	defer l.close()
	ctx, cancel := context.WithTimeout(ctx, writeDeadline)
	defer cancel()
	for {
		pid, err := d.pid(node.Name)
		if err == nil && pid == killed {
			err = fmt.Errorf("%s was not started again", node.Name)
		}
		if err == nil {
			_, err = l.call(ctx, http.MethodGet, "/health/ready", nil)
		}
		if err == nil {
			return d.voters(ctx)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the node at %s is not ready: %w", node.Address, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
