package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/cluster/place"
	"github.com/debvisor/debvisor/fsm"
)

const (
	kernelRows    = 100_000
	kernelBatch   = 64
	kernelPuts    = 30_000
	placeNodes    = 1_000
	placeVMs      = 10_000
	kernelCluster = "11111111-1111-4111-8111-111111111111"
)

// machine feeds an FSM as the log would.
type machine struct {
	f     *fsm.FSM
	index uint64
	now   time.Time
	batch []fsm.Committed
}

func (m *machine) add(e fsm.Entry) error {
	raw, err := m.encode(e)
	if err != nil {
		return err
	}
	return m.apply(raw)
}

func (m *machine) encode(e fsm.Entry) ([]byte, error) {
	e.Time = m.now
	return e.Encode()
}

func (m *machine) apply(raw []byte) error {
	m.index++
	m.batch = append(m.batch, fsm.Committed{Index: m.index, Term: 1, Data: raw})
	if len(m.batch) < kernelBatch {
		return nil
	}
	return m.flush()
}

func (m *machine) flush() error {
	outcomes, _, err := m.f.ApplyBatch(m.batch)
	m.batch = m.batch[:0]
	if err != nil {
		return err
	}
	for _, o := range outcomes {
		if o.Err != nil {
			return o.Err
		}
	}
	return nil
}

func kernelVM(n int) api.VM {
	return api.VM{Meta: api.Meta{Name: fmt.Sprintf("vm-%06d", n), Tenant: api.DefaultTenant, Labels: map[string]string{"app": "shop"}},
		CPUs: 1, MemoryBytes: 128 * api.MiB}
}

func kernel(_ context.Context, b *bench) error {
	m := &machine{f: fsm.New(), now: time.Now().UTC()}
	err := m.add(fsm.InitCluster.Entry(fsm.ClusterInit{ClusterID: kernelCluster, Region: "bench", Version: fsm.VersionMin,
		Node: fsm.NodeJoin{ID: kernelCluster, Name: "node1", Address: "127.0.0.1:1"},
		Key:  fsm.KeyCreate{Name: "root", Hash: fmt.Sprintf("%064d", 0), Role: api.RoleAdmin}}))
	if err != nil {
		return err
	}
	for i := range kernelRows {
		v := kernelVM(i)
		e, err := fsm.VMs.Put(&v)
		if err != nil {
			return err
		}
		if err := m.add(e); err != nil {
			return err
		}
	}
	if err := m.flush(); err != nil {
		return err
	}
	if err := b.applyPuts(m); err != nil {
		return err
	}
	if err := b.restore(m); err != nil {
		return err
	}
	return b.place()
}

// applyPuts runs on one core, with everything encoded beforehand.
func (b *bench) applyPuts(m *machine) error {
	entries := make([][]byte, kernelPuts)
	for i := range entries {
		v := *fsm.VMs.Get(m.f.Read(), api.Key(api.DefaultTenant, fmt.Sprintf("vm-%06d", (i*7919)%kernelRows)))
		v.CPUs = 2
		e, err := fsm.VMs.Put(&v)
		if err != nil {
			return err
		}
		e.RequestID = fmt.Sprintf("bench-%d", i)
		if entries[i], err = m.encode(e); err != nil {
			return err
		}
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	from := time.Now()
	for _, raw := range entries {
		if err := m.apply(raw); err != nil {
			return err
		}
	}
	each := time.Since(from) / kernelPuts
	b.add("Apply of a put, 100,000 VMs, one core", each.Round(100*time.Nanosecond).String(), "60µs (20µs the aim)", each <= 60*time.Microsecond)
	return m.flush()
}

func (b *bench) restore(m *machine) error {
	var snapshot bytes.Buffer
	from := time.Now()
	if _, err := m.f.Snapshot().WriteTo(&snapshot); err != nil {
		return err
	}
	b.add("snapshot of 100,000 VMs", time.Since(from).Round(time.Millisecond).String(), "", false)
	from = time.Now()
	if err := fsm.New().Restore(&snapshot); err != nil {
		return err
	}
	took := time.Since(from)
	b.add("restore of 100,000 VMs", took.Round(time.Millisecond).String(), "10s", took <= 10*time.Second)
	return nil
}

// place decides 10,000 VMs on 1,000 nodes one after the other.
func (b *bench) place() error {
	in := place.Input{Config: api.Config{}, Pools: map[string]*api.Pool{"local": {Meta: api.Meta{Name: "local"}, Driver: api.PoolDir}}}
	for i := range placeNodes {
		in.Nodes = append(in.Nodes, &api.Node{Meta: api.Meta{Name: fmt.Sprintf("n%04d", i)}, Lease: api.NodeLive, Epoch: 1,
			Hypervisor: api.HypervisorInfo{Driver: "sim", Healthy: true}, Capacity: api.Capacity{CPUs: 64, MemoryBytes: 256 * api.GiB},
			Pools: []api.PoolStatus{{Pool: "local", TotalBytes: api.TiB, FreeBytes: api.TiB}}})
	}
	c, now := place.New(in), time.Now()
	from := time.Now()
	for i := range placeVMs {
		v := kernelVM(i)
		v.ID = fmt.Sprintf("%08d-0000-4000-8000-000000000000", i)
		d := c.Decide(&v, now)
		if d.Node == "" {
			raw, _ := json.Marshal(d)
			return fmt.Errorf("vm %d found no node: %s", i, raw)
		}
		c.Place(&v, d.Node)
	}
	rate := placeVMs / time.Since(from).Seconds()
	b.add("placement of 10,000 VMs on 1,000 nodes", fmt.Sprintf("%.0f/s", rate), "2000/s", rate >= 2000)
	return nil
}
