package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

const (
	devReady = time.Minute
	devStop  = time.Minute
)

// dev is a cluster of three processes with the simulated hypervisor.
type dev struct {
	cmd       *exec.Cmd
	dir       string
	addresses []string
	ca, key   string
	client    *client.Client
	started   time.Time
}

// startDev starts `debvisor dev`, or resumes it, and blocks until it is ready.
func (b *bench) startDev(ctx context.Context, name string) (*dev, error) {
	d := &dev{dir: filepath.Join(b.dir, name), started: time.Now()}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(d.dir, "env")); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(d.dir, "dev.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d.cmd = exec.Command(b.binary, "dev", "--nodes", "3", "--dir", d.dir, "--hypervisor", "sim", "--respawn")
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, devReady)
	defer cancel()
	for d.readEnv() != nil {
		select {
		case <-ctx.Done():
			d.stop()
			return nil, fmt.Errorf("the cluster was not ready within %v: see %s", devReady, log.Name())
		case <-time.After(10 * time.Millisecond):
		}
	}
	d.client, err = client.New(client.Config{Addresses: d.addresses, CAFile: d.ca, Key: d.key, Agent: "debvisor-bench"})
	return d, err
}

func (d *dev) readEnv() error {
	f, err := os.Open(filepath.Join(d.dir, "env"))
	if err != nil {
		return err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		name, value, _ := strings.Cut(strings.TrimPrefix(s.Text(), "export "), "=")
		value = strings.Trim(value, `"'`)
		switch name {
		case "DEBVISOR_ADDR":
			d.addresses = strings.Split(value, ",")
		case "DEBVISOR_CACERT":
			d.ca = value
		case "DEBVISOR_KEY":
			d.key = value
		}
	}
	if len(d.addresses) == 0 || d.ca == "" || d.key == "" {
		return fmt.Errorf("env is not complete")
	}
	return nil
}

// startWhole is startDev that also blocks until all three nodes vote: a node
// that joined just now replicates but does not count yet.
func (b *bench) startWhole(ctx context.Context, name string) (*dev, error) {
	d, err := b.startDev(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := d.voters(ctx); err != nil {
		d.stop()
		return nil, err
	}
	return d, nil
}

// voters blocks until every node votes and is healthy.
func (d *dev) voters(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, devReady)
	defer cancel()
	for {
		status, err := d.client.Status(ctx)
		if err == nil {
			count := 0
			for i := range status.Members {
				if m := &status.Members[i]; m.Voter && m.Healthy {
					count++
				}
			}
			if count == len(d.addresses) && status.Healthy {
				return nil
			}
			err = fmt.Errorf("%d of %d nodes vote and are healthy: %s", count, len(d.addresses), status.Summary)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the cluster is not whole within %v: %w", devReady, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// pid is the process ID of a node.
func (d *dev) pid(node string) (int, error) {
	raw, err := os.ReadFile(filepath.Join(d.dir, node, "pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(raw)))
}

// leader is the leading node and its address.
func (d *dev) leader(ctx context.Context) (api.Node, error) {
	status, err := d.client.Status(ctx)
	if err != nil {
		return api.Node{}, err
	}
	n, _, err := client.Resource[api.Node](d.client, api.KindNode).Get(ctx, "", status.Leader, client.ReadOptions{})
	if err != nil {
		return api.Node{}, err
	}
	return *n, nil
}

func (d *dev) stop() {
	if d == nil || d.cmd.Process == nil {
		return
	}
	if d.client != nil {
		d.client.Close()
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(devStop, func() { _ = d.cmd.Process.Kill() })
	_ = d.cmd.Wait()
	timer.Stop()
}

// tenantBody is a put of about entryBytes on the log.
func tenantBody(n uint64) []byte {
	return fmt.Appendf(nil, `{"name":"b%012d","description":"%s"}`, n, strings.Repeat("x", 120))
}
