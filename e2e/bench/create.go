package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

const (
	createVMs     = 600 // fill three nodes of 16 processors at an overcommit of 16
	createClients = 32
	createWait    = 2 * time.Minute
	createGoal    = 200.0 // VMs a second
)

// create measures how many simulated VMs a second three nodes take from the
// request that creates them to a guest that runs. Each VM has a disk of its
// own; the clock runs from the first request to the last guest.
func create(ctx context.Context, b *bench) error {
	var rates []float64
	for turn := range b.turns {
		d, err := b.startDev(ctx, fmt.Sprintf("create%d", turn))
		if err != nil {
			return err
		}
		rate := 0.0
		if err = d.overcommit(ctx); err == nil {
			rate, err = d.createVMs(ctx, createVMs)
		}
		d.stop()
		if err != nil {
			return err
		}
		rates = append(rates, rate)
	}
	slices.Sort(rates)
	rate := rates[len(rates)/2]
	b.add("create to running, 3 simulated nodes", fmt.Sprintf("%.0f VMs/s", rate), fmt.Sprintf("%.0f VMs/s", createGoal), rate >= createGoal)
	return nil
}

func (d *dev) createVMs(ctx context.Context, count int) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, createWait)
	defer cancel()
	names := make(chan string, count)
	for i := range count {
		names <- fmt.Sprintf("vm%05d", i)
	}
	close(names)
	begun := time.Now()
	var group sync.WaitGroup
	failed := make(chan error, createClients)
	for range createClients {
		group.Go(func() {
			vms := client.Resource[api.VM](d.client, api.KindVM)
			for name := range names {
				vm := &api.VM{Meta: api.Meta{Name: name}, CPUs: 1, MemoryBytes: 16 * api.MiB, Disks: []api.Disk{{Name: "root", SizeBytes: api.GiB}}}
				if _, err := vms.Put(ctx, vm); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	group.Wait()
	select {
	case err := <-failed:
		return 0, err
	default:
	}
	o := client.ListOptions{}
	for {
		list, err := client.Resource[api.Instance](d.client, api.KindInstance).All(ctx, o)
		if err != nil {
			return 0, err
		}
		running := 0
		for i := range list.Items {
			if list.Items[i].State == api.InstanceRunning {
				running++
			}
		}
		if running == count {
			return float64(count) / time.Since(begun).Seconds(), nil
		}
		o.Index, o.Wait = list.Index, time.Second
	}
}

// overcommit makes room for small VMs.
func (d *dev) overcommit(ctx context.Context) error {
	configs := client.Resource[api.Config](d.client, api.KindConfig)
	c, _, err := configs.Get(ctx, "", api.ConfigName, client.ReadOptions{})
	if err != nil {
		return err
	}
	c.CPUOvercommit = api.OvercommitMax
	_, err = configs.Put(ctx, c)
	return err
}
