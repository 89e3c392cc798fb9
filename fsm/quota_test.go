package fsm_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

func upTo(n int64) *int64 { return &n }

func tenantRow(name, parent string, q *api.Quota) api.Tenant {
	return api.Tenant{Meta: api.Meta{Name: name}, Parent: parent, Quota: q}
}

func TestAQuotaHoldsExactlyAndForThoseBelow(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	must := func(out fsm.Outcome) {
		t.Helper()
		if out.Err != nil {
			t.Fatal(out.Err)
		}
	}
	must(put(c, fsm.Tenants.Put, tenantRow("corp", "", &api.Quota{VMs: upTo(3), MemoryBytes: upTo(api.GiB)})))
	must(put(c, fsm.Tenants.Put, tenantRow("shop", "corp", &api.Quota{VMs: upTo(2)})))
	of := func(tenant, name string) api.VM {
		v := vm(name)
		v.Tenant, v.MemoryBytes, v.Disks = tenant, 128*api.MiB, nil
		return v
	}
	must(put(c, fsm.VMs.Put, of("shop", "a")))
	must(put(c, fsm.VMs.Put, of("shop", "b")))
	out := put(c, fsm.VMs.Put, of("shop", "c"))
	if out.Err == nil || out.Err.Code != api.CodeLimit || out.Err.Field != "quota.vms" || out.Err.Key != "shop" {
		t.Fatalf("beyond the tenant's own quota: got %v", out.Err)
	}
	must(put(c, fsm.VMs.Put, of("corp", "c")))
	if out := put(c, fsm.VMs.Put, of("corp", "d")); out.Err == nil || out.Err.Key != "corp" {
		t.Fatalf("beyond the quota of the tenant above: got %v", out.Err)
	}
	a := *fsm.VMs.Get(c.f.Read(), "shop/a")
	a.MemoryBytes = 2 * api.GiB
	if out := put(c, fsm.VMs.Put, a); out.Err == nil || out.Err.Field != "quota.memory_bytes" {
		t.Fatalf("a VM that grows: got %v", out.Err)
	}
	corp := *fsm.Tenants.Get(c.f.Read(), "corp")
	corp.Quota = &api.Quota{VMs: upTo(1)}
	must(put(c, fsm.Tenants.Put, corp))
	a = *fsm.VMs.Get(c.f.Read(), "shop/a")
	a.Description = "more is used than allowed; an edit that adds nothing is fine"
	must(put(c, fsm.VMs.Put, a))
	b := fsm.VMs.Get(c.f.Read(), "shop/b")
	must(c.propose(fsm.VMs.Delete("shop", "b", b.Modified)))
	if out := put(c, fsm.VMs.Put, of("shop", "b")); out.Err == nil || out.Err.Key != "corp" {
		t.Fatalf("got %v", out.Err)
	}
}

func TestAVolumeThatCannotBeCountedIsRefusedWhereItWouldHaveTo(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	put(c, fsm.Tenants.Put, tenantRow("shop", "", &api.Quota{DiskBytes: upTo(10 * api.GiB)}))
	image := api.Image{Meta: api.Meta{Name: "img", Tenant: "shop"}, Format: api.FormatRaw, SHA256: strings.Repeat("a", 64), SizeBytes: api.MiB}
	if out := put(c, fsm.Images.Put, image); out.Err != nil {
		t.Fatal(out.Err)
	}
	v := api.Volume{Meta: api.Meta{Name: "v", Tenant: "shop"}, Pool: fsm.DefaultPool, Image: "img"}
	if out := put(c, fsm.Volumes.Put, v); out.Err == nil || out.Err.Field != "size_bytes" {
		t.Fatalf("got %v", out.Err)
	}
	v.SizeBytes = 11 * api.GiB
	if out := put(c, fsm.Volumes.Put, v); out.Err == nil || out.Err.Field != "quota.disk_bytes" {
		t.Fatalf("got %v", out.Err)
	}
	v.SizeBytes = 10 * api.GiB
	if out := put(c, fsm.Volumes.Put, v); out.Err != nil {
		t.Fatal(out.Err)
	}
}

func TestTenantsFormATree(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for i := range api.TenantDepthMax {
		parent := ""
		if i > 0 {
			parent = fmt.Sprintf("t%d", i-1)
		}
		if out := put(c, fsm.Tenants.Put, tenantRow(fmt.Sprintf("t%d", i), parent, nil)); out.Err != nil {
			t.Fatal(out.Err)
		}
	}
	if out := put(c, fsm.Tenants.Put, tenantRow("deep", fmt.Sprintf("t%d", api.TenantDepthMax-1), nil)); out.Err == nil || out.Err.Code != api.CodeLimit {
		t.Errorf("too deep: got %v", out.Err)
	}
	top := *fsm.Tenants.Get(c.f.Read(), "t0")
	top.Parent = "t3"
	if out := put(c, fsm.Tenants.Put, top); out.Err == nil || out.Err.Field != "parent" {
		t.Errorf("a circle: got %v", out.Err)
	}
	if out := put(c, fsm.Tenants.Put, tenantRow("x", "nowhere", nil)); out.Err == nil || out.Err.Field != "parent" {
		t.Errorf("no such parent: got %v", out.Err)
	}
	mid := fsm.Tenants.Get(c.f.Read(), "t1")
	if out := c.propose(fsm.Tenants.Delete("", "t1", mid.Modified)); out.Err == nil || out.Err.Code != api.CodeConflict {
		t.Errorf("a tenant with others below: got %v", out.Err)
	}
}

// TestUsageIsTheSumOfTheRows draws edits and compares what is counted with what
// is there, also after a snapshot was restored.
func TestUsageIsTheSumOfTheRows(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		c := newCluster(t)
		put(c, fsm.Tenants.Put, tenantRow("shop", "", &api.Quota{VMs: upTo(3), DiskBytes: upTo(5 * api.GiB)}))
		for range rapid.IntRange(1, 30).Draw(rt, "edits") {
			tenant, name := rapid.SampledFrom([]string{"shop", "default"}).Draw(rt, "tenant"), fmt.Sprintf("v%d", rapid.IntRange(0, 4).Draw(rt, "name"))
			have := fsm.VMs.Get(c.f.Read(), api.Key(tenant, name))
			if have != nil && rapid.Bool().Draw(rt, "delete") {
				c.propose(fsm.VMs.Delete(tenant, name, have.Modified))
				continue
			}
			v := vm(name)
			if have != nil {
				v = *have
			}
			v.Tenant, v.CPUs = tenant, rapid.IntRange(1, 4).Draw(rt, "cpus")
			put(c, fsm.VMs.Put, v) // refused or not: what counts is what is there
		}
		var snapshot bytes.Buffer
		if _, err := c.f.Snapshot().WriteTo(&snapshot); err != nil {
			rt.Fatal(err)
		}
		restored := fsm.New()
		if err := restored.Restore(&snapshot); err != nil {
			rt.Fatal(err)
		}
		for _, view := range []*fsm.View{c.f.Read(), restored.Read()} {
			for _, tenant := range []string{"shop", "default"} {
				var want api.Usage
				for v := range fsm.VMs.Prefix(view, tenant+"/") {
					want.Add(api.Usage{VMs: 1, CPUs: int64(v.CPUs), MemoryBytes: v.MemoryBytes}, 1)
				}
				for v := range fsm.Volumes.Prefix(view, tenant+"/") {
					want.Add(api.Usage{Volumes: 1, DiskBytes: v.SizeBytes}, 1)
				}
				if got := fsm.OwnUsage(view, tenant); got != want {
					rt.Fatalf("%s: counted %+v, there is %+v", tenant, got, want)
				}
				if tenant == "shop" && (want.VMs > 3 || want.DiskBytes > 5*api.GiB) {
					rt.Fatalf("the quota was exceeded: %+v", want)
				}
			}
		}
	})
}
