package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/api/client"
)

const (
	idleWindow  = 20 * time.Second
	ticksPerSec = 100 // USER_HZ, fixed in the kernel's interface
)

// usage is what a process has used so far.
type usage struct {
	processor time.Duration
	resident  int64 // bytes
}

func usageOf(pid int) (u usage, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest) // from field 3 of proc(5)
	for _, i := range []int{11, 12} {
		ticks, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return u, err
		}
		u.processor += time.Duration(ticks) * time.Second / ticksPerSec
	}
	pages, err := strconv.ParseInt(fields[21], 10, 64)
	u.resident = pages * int64(os.Getpagesize())
	return u, err
}

func idle(ctx context.Context, b *bench) error {
	info, err := os.Stat(b.binary)
	if err != nil {
		return err
	}
	b.add("stripped binary", api.FormatSize(info.Size()), "60 MiB", info.Size() <= 60*api.MiB)
	d, err := b.startWhole(ctx, "idle")
	if err != nil {
		return err
	}
	defer d.stop()
	nodes := []string{"node1", "node2", "node3"}
	before := map[string]usage{}
	settle(ctx, 10*time.Second)
	for _, n := range nodes {
		if before[n], err = d.usage(n); err != nil {
			return err
		}
	}
	settle(ctx, idleWindow)
	var worstShare float64
	var worstResident int64
	for _, n := range nodes {
		after, err := d.usage(n)
		if err != nil {
			return err
		}
		worstShare = max(worstShare, float64(after.processor-before[n].processor)/float64(idleWindow))
		worstResident = max(worstResident, after.resident)
	}
	b.add("idle node, resident, worst of three", api.FormatSize(worstResident), "64 MiB", worstResident <= 64*api.MiB)
	b.add("idle node, share of a core, worst of three", fmt.Sprintf("%.2f %%", worstShare*100), "1 %", worstShare < 0.01)
	return nil
}

func (d *dev) usage(node string) (usage, error) {
	pid, err := d.pid(node)
	if err != nil {
		return usage{}, err
	}
	return usageOf(pid)
}

// settle lets time pass: what is measured is what happens when nothing does.
func settle(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// fill creates VMs that are off, so that the tables are large and the
// hypervisor is not.
func (d *dev) fill(ctx context.Context, count int) error {
	const batch, workers = 300, 4
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	next := make(chan int)
	for range workers {
		wg.Go(func() {
			for from := range next {
				if err := d.fillBatch(ctx, from, min(from+batch, count)); err != nil {
					errs <- err
					for range next { // let the feeder finish
					}
					return
				}
			}
		})
	}
	for from := 0; from < count; from += batch {
		next <- from
	}
	close(next)
	wg.Wait()
	close(errs)
	return <-errs
}

func (d *dev) fillBatch(ctx context.Context, from, to int) error {
	var in api.Apply
	for i := from; i < to; i++ {
		raw := fmt.Appendf(nil, `{"name":"vm-%06d","tenant":"default","power":"off","cpus":1,"memory_bytes":134217728,"labels":{"app":"shop","tier":"web"}}`, i)
		in.Operations = append(in.Operations, api.Operation{Op: "vm.put", Body: raw})
	}
	_, err := d.client.Apply(ctx, &in)
	return err
}

// lists measures a list of 20,000 VMs, and how long 1,000 blocking queries
// take to hear of one change.
func lists(ctx context.Context, b *bench) error {
	d, err := b.startWhole(ctx, "lists")
	if err != nil {
		return err
	}
	defer d.stop()
	if err := d.fill(ctx, 20_000); err != nil {
		return err
	}
	leader, err := d.leader(ctx)
	if err != nil {
		return err
	}
	l, err := d.load(leader.Address)
	if err != nil {
		return err
	}
	defer l.close()
	var took []time.Duration
	for range 5 * b.turns {
		from := time.Now()
		if _, err := l.call(ctx, http.MethodGet, "/v1/vms?limit=20000", nil); err != nil {
			return err
		}
		took = append(took, time.Since(from))
	}
	m := median(took)
	b.add("list of 20,000 VMs", m.Round(100*time.Microsecond).String(), "50ms", m <= 50*time.Millisecond)
	return b.wake(ctx, d, l)
}

func (b *bench) wake(ctx context.Context, d *dev, l *loadClient) error {
	const queries = 1000
	page, err := client.Resource[api.Tenant](d.client, api.KindTenant).List(ctx, client.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	path := fmt.Sprintf("/v1/tenants?limit=1&wait=60s&index=%d", page.Index)
	var wg sync.WaitGroup
	woken := make(chan time.Time, queries)
	failed := make(chan error, queries)
	for range queries {
		wg.Go(func() {
			if _, err := l.call(ctx, http.MethodGet, path, nil); err != nil {
				failed <- err
				return
			}
			woken <- time.Now()
		})
	}
	settle(ctx, 5*time.Second) // until all of them wait
	from := time.Now()
	if err := l.create(ctx, 999_999_999); err != nil {
		return err
	}
	wg.Wait()
	close(woken)
	if len(failed) > 0 {
		return <-failed
	}
	var last time.Duration
	for t := range woken {
		last = max(last, t.Sub(from))
	}
	b.add("1,000 blocking queries, change to last answer", last.Round(time.Millisecond).String(), "", false)
	return nil
}

// large measures the restart of a node whose state holds 100,000 VMs.
func large(ctx context.Context, b *bench) error {
	const count = 100_000
	d, err := b.startWhole(ctx, "large")
	if err != nil {
		return err
	}
	err = d.fill(ctx, count)
	d.stop()
	if err != nil {
		return err
	}
	d, err = b.startDev(ctx, "large")
	if err != nil {
		return err
	}
	defer d.stop()
	if err := d.firstWrite(ctx, 1); err != nil {
		return err
	}
	took := time.Since(d.started)
	b.add("100,000 VMs, start of all nodes to first write", took.Round(10*time.Millisecond).String(), "10s", took <= 10*time.Second)
	var resident int64
	for _, n := range []string{"node1", "node2", "node3"} {
		u, err := d.usage(n)
		if err != nil {
			return err
		}
		resident = max(resident, u.resident)
	}
	b.add("100,000 VMs, resident, worst of three", api.FormatSize(resident), "1 GiB", resident < api.GiB)
	return nil
}
