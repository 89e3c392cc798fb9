package fsmtest

import (
	"fmt"
	"maps"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// makers is one for every operation.
func makers() map[string]func(*Generator) fsm.Entry {
	m := edits()
	maps.Copy(m, clusterMakers())
	maps.Copy(m, nodeMakers())
	maps.Copy(m, workMakers())
	maps.Copy(m, volumeMakers())
	maps.Copy(m, snapshotMakers())
	return m
}

// edits is the puts and deletes of what users edit.
func edits() map[string]func(*Generator) fsm.Entry {
	m := map[string]func(*Generator) fsm.Entry{}
	edited(m, fsm.Configs, (*Generator).config)
	edited(m, fsm.Tenants, (*Generator).aTenant)
	edited(m, fsm.Roles, (*Generator).role)
	edited(m, fsm.Pools, (*Generator).pool)
	edited(m, fsm.Networks, (*Generator).network)
	edited(m, fsm.Firewalls, (*Generator).firewall)
	edited(m, fsm.Images, func(g *Generator) api.Image {
		if g.chance(3) {
			return api.Image{Meta: g.meta("img", 3), Format: api.FormatQCOW2, SHA256: hash(g.source.IntN(2)), URL: pick(g, "https://example.com/a", "https://example.com/b", "ftp://x")}
		}
		return api.Image{Meta: g.meta("img", 3), Format: pick(g, api.FormatQCOW2, api.FormatRaw), SHA256: hash(g.source.IntN(2)), SizeBytes: api.MiB, Description: g.text()}
	})
	edited(m, fsm.Volumes, (*Generator).volume)
	edited(m, fsm.VMs, (*Generator).vm)
	return m
}

// edited adds the put and the delete of a table: most puts change a row that
// exists, most deletes name one at its revision.
func edited[T any, P object[T]](m map[string]func(*Generator) fsm.Entry, t fsm.Table[T, P], fresh func(*Generator) T) {
	m[t.Kind()+".put"] = func(g *Generator) fsm.Entry {
		v := fresh(g)
		if have := row(g, list(t, g.view)); have != nil && g.chance(2) {
			head := *P(have).Head()
			if g.chance(2) {
				v = *have // the same again, with other labels
			}
			*P(&v).Head() = head
			P(&v).Head().Labels = g.labels()
			P(&v).Head().Modified = g.revision(head.Modified)
		}
		e, err := t.Put(&v)
		if err != nil {
			panic(err) // a struct of package api that cannot be encoded
		}
		return e
	}
	m[t.Kind()+".delete"] = func(g *Generator) fsm.Entry {
		v := fresh(g)
		head := *P(&v).Head()
		if have := row(g, list(t, g.view)); have != nil && !g.chance(10) {
			head = *P(have).Head()
		}
		return t.Delete(head.Tenant, head.Name, g.revision(head.Modified))
	}
}

func (g *Generator) meta(letter string, n int) api.Meta {
	return api.Meta{Name: g.name(letter, n), Tenant: g.tenant(), Labels: g.labels()}
}

func (g *Generator) config() api.Config {
	return api.Config{Meta: api.Meta{Name: api.ConfigName}, CPUOvercommit: pick(g, 0, 1.5, 4, 99), Voters: pick(g, 0, 3, 4),
		TaskRetention: pick(g, 0, time.Minute, time.Second), JournalRetention: pick(g, 0, 48*time.Hour, time.Hour), Region: pick(g, "", "", "elsewhere")}
}

func (g *Generator) aTenant() api.Tenant {
	t := api.Tenant{Meta: api.Meta{Name: g.name("t", 3)}, Parent: pick(g, "", "", g.name("t", 3))}
	if few := int64(2 + g.source.IntN(6)); g.chance(5) {
		t.Quota = pick(g, &api.Quota{VMs: &few}, &api.Quota{DiskBytes: new(few * api.GiB), Snapshots: &few})
	}
	return t
}

func (g *Generator) role() api.Role {
	return api.Role{Meta: api.Meta{Name: pick(g, g.name("role", 3), g.name("role", 3), api.RoleAdmin)}, Inherits: pick(g, nil, []string{api.RoleViewer}, []string{g.name("role", 3)}),
		Rules: []api.RoleRule{{Effect: pick(g, "", "deny", "maybe"), Verbs: []string{pick(g, "read", "*")}, Kinds: []string{api.KindVM}, Labels: g.labels()}}}
}

func (g *Generator) pool() api.Pool {
	p := api.Pool{Meta: api.Meta{Name: pick(g, fsm.DefaultPool, g.name("p", 2))}, Driver: api.PoolDir, Path: "/srv/pool", Shared: g.chance(2)}
	if g.chance(3) {
		p.Nodes = []string{g.node()}
	}
	return p
}

func (g *Generator) volume() api.Volume {
	v := api.Volume{Meta: g.meta("vol", 4), Pool: pick(g, fsm.DefaultPool, fsm.DefaultPool, g.name("p", 2)), SizeBytes: pick[int64](g, api.GiB, 2*api.GiB, 1)}
	if g.chance(4) {
		v.Image = g.name("img", 3)
	}
	if g.chance(3) {
		v.Node = g.node()
	}
	if source := row(g, list(fsm.Volumes, g.view)); source != nil && g.chance(5) {
		v.Image, v.Node, v.Tenant, v.Source, v.Clone = "", "", source.Tenant, source.Name, pick(g, "", api.CloneFull, api.CloneLinked)
		v.SizeBytes = pick[int64](g, 0, v.SizeBytes)
	}
	if g.chance(30) {
		v.OwnerVM = g.uuid(1)
	}
	return v
}

func (g *Generator) vm() api.VM {
	vm := api.VM{Meta: g.meta("vm", 8), CPUs: 1 + g.source.IntN(4), MemoryBytes: pick[int64](g, 128*api.MiB, api.GiB, 1), Description: g.text(),
		Power: pick(g, "", api.PowerOn, api.PowerOff), Priority: g.source.IntN(3)}
	if g.chance(6) {
		vm.ID = g.uuid(200 + g.source.IntN(4))
	}
	if g.chance(4) {
		vm.Snapshots = g.schedule()
	}
	if g.chance(2) { // one that little can be said against
		vm.MemoryBytes = 128 * api.MiB
		vm.Disks = []api.Disk{{Name: "d0", SizeBytes: api.GiB}}
		return vm
	}
	if g.chance(3) {
		return vm
	}
	for i := range g.source.IntN(4) {
		vm.Disks = append(vm.Disks, g.disk(i))
	}
	for range g.source.IntN(3) {
		vm.NICs = append(vm.NICs, g.nic())
	}
	if g.chance(6) {
		vm.Boot = &api.DirectBoot{Kernel: g.name("img", 3), Initrd: pick(g, "", g.name("img", 3)), Args: g.text()}
	}
	if g.chance(6) {
		vm.Placement = api.Placement{Node: pick(g, "", g.node()), AntiAffinity: g.labels()}
	}
	if g.chance(8) {
		vm.CloudInit = &api.CloudInit{Hostname: "guest", Commands: [][]string{{"echo", g.text()}}}
	}
	return vm
}

func (g *Generator) network() api.Network {
	n := api.Network{Meta: g.meta("net", 3), Driver: api.NetworkBridge, Bridge: "br0", Description: g.text()}
	switch g.source.IntN(6) {
	case 0:
		n.Driver, n.VLAN, n.Uplink = api.NetworkVLAN, pick(g, 1, 100, api.VLANMax, 4095), g.chance(2)
	case 1:
		n.Driver, n.Bridge = api.NetworkNAT, ""
		n.Subnets = pick(g, []string{"10.80.0.0/29"}, []string{"10.80.0.0/24", "fd80::/64"}, []string{"10.81.0.0/24"}, nil)
	case 2:
		n.Driver, n.Bridge = api.NetworkIsolated, pick(g, "", "dviso0", "br0")
		n.Subnets = pick(g, nil, []string{"fd81::/64"}, []string{"10.80.0.0/28"})
	case 3:
		n.Subnets, n.Ranges = []string{"192.0.2.0/24"}, pick(g, nil, []string{"192.0.2.10-192.0.2.12"})
	}
	return n
}

func (g *Generator) firewall() api.Firewall {
	f := api.Firewall{Meta: g.meta("fw", 3)}
	for range g.source.IntN(3) {
		f.Rules = append(f.Rules, api.FirewallRule{Direction: pick(g, api.Ingress, api.Egress), Protocol: pick(g, "", api.ProtocolTCP, api.ProtocolICMP),
			Ports: pick(g, nil, nil, []string{"80", "8000-8080"}), CIDRs: pick(g, nil, []string{"10.0.0.0/8"}), Groups: pick(g, nil, []string{g.name("fw", 3)})})
	}
	return f
}

func (g *Generator) nic() api.NIC {
	n := api.NIC{Network: g.name("net", 3), MAC: pick(g, "", "", "52:54:00:00:00:01")}
	if g.chance(4) {
		n.Addresses = pick(g, []string{"10.80.0.2"}, []string{"10.80.0.1"}, []string{"192.0.2.10"}, []string{"fd80::9", "10.80.0.5"})
	}
	if g.chance(6) {
		n.Firewalls = []string{g.name("fw", 3)}
	}
	if g.chance(8) {
		n.AntiSpoof, n.Model, n.Link = pick(g, api.SwitchOn, api.SwitchOff), api.NICE1000, api.LinkDown
	}
	return n
}

func (g *Generator) disk(i int) api.Disk {
	d := api.Disk{Name: fmt.Sprintf("d%d", i), SizeBytes: pick[int64](g, api.GiB, api.GiB, 2*api.GiB)}
	switch g.source.IntN(6) {
	case 5:
		if source := row(g, list(fsm.Volumes, g.view)); source != nil {
			d.Source, d.SizeBytes = source.Name, 0
		}
	case 0:
		d.Volume = g.name("vol", 4)
	case 1:
		d.Image = g.name("img", 3)
	case 2:
		d.Pool = g.name("p", 2)
	}
	return d
}
