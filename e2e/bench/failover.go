package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/api/client"
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
		loads = append(loads, l)
	}
	for i := 0; ; i++ {
		// A put that was cut off may have happened: another name each time.
		err := loads[i%len(loads)].put(ctx, 0, n*1_000_000+uint64(i))
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

// failover kills the leader's process with SIGKILL again and again, and starts
// it again after each.
func failover(ctx context.Context, b *bench) error {
	d, err := b.startDev(ctx, "failover")
	if err != nil {
		return err
	}
	defer d.stop()
	var took []time.Duration
	var restarted []*exec.Cmd
	defer func() {
		for _, c := range restarted {
			_ = c.Process.Signal(syscall.SIGTERM)
			_ = c.Wait()
		}
	}()
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
		restarted = slices.DeleteFunc(restarted, func(c *exec.Cmd) bool {
			if c.Process.Pid != pid {
				return false
			}
			_ = c.Wait()
			return true
		})
		cmd, err := b.restart(d, leader.Name)
		if err != nil {
			return err
		}
		restarted = append(restarted, cmd)
		if err := d.whole(ctx, leader.Address); err != nil {
			return err
		}
	}
	m, worst := median(took), slices.Max(took)
	b.add(fmt.Sprintf("leader killed to next write, %d kills, median", len(took)), m.Round(time.Millisecond).String(), "1.2s", m <= 1200*time.Millisecond)
	b.add("leader killed to next write, worst", worst.Round(time.Millisecond).String(), "2.5s", worst <= 2500*time.Millisecond)
	return nil
}

// restart starts the process of a node of the cluster again.
func (b *bench) restart(d *dev, node string) (*exec.Cmd, error) {
	dir := filepath.Join(d.dir, node)
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(b.binary, "agent", "--config", filepath.Join(dir, "agent.hcl"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return cmd, os.WriteFile(filepath.Join(dir, "pid"), fmt.Appendf(nil, "%d\n", cmd.Process.Pid), 0o600)
}

// whole waits until the node at that address is ready again and a leader is
// known to it.
func (d *dev) whole(ctx context.Context, address string) error {
	l, err := d.load(address)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, writeDeadline)
	defer cancel()
	one, err := client.New(client.Config{Addresses: []string{address}, CAFile: d.ca, Key: d.key})
	if err != nil {
		return err
	}
	defer one.Close()
	for {
		if _, err = l.call(ctx, http.MethodGet, "/health/ready", nil); err == nil {
			if _, err = one.Status(ctx); err == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the node at %s is not ready: %w", address, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
