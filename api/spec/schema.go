package spec

import (
	"strings"

	"github.com/debvisor/debvisor/api"
)

// shape is what an attribute's value looks like.
type shape int

const (
	text shape = iota
	integer
	float
	size     // bytes: "512MiB" or a number
	duration // "36h" or "7d"
	boolean
	labels // map of texts
	texts  // list of texts
	argvs  // list of lists of texts
	secret // a text that is not shown
)

// attribute is one name = value line of a block.
type attribute struct {
	name     string
	field    string // in JSON, where it differs from name
	shape    shape
	fallback string // value of a text that is left out
}

func (a *attribute) json() string {
	if a.field != "" {
		return a.field
	}
	return a.name
}

// block describes what a block of HCL may hold and which JSON it becomes. One
// table serves reading, writing, messages and the rendering of differences.
type block struct {
	name   string
	field  string // in JSON
	label  string // JSON field of the block's label; empty: it has none
	many   bool
	attrs  []attribute
	blocks []block
}

func (b *block) attr(name string) *attribute {
	for i := range b.attrs {
		if b.attrs[i].name == name {
			return &b.attrs[i]
		}
	}
	return nil
}

func (b *block) block(name string) *block {
	for i := range b.blocks {
		if b.blocks[i].name == name {
			return &b.blocks[i]
		}
	}
	return nil
}

func (b *block) names() []string {
	var names []string
	for i := range b.attrs {
		names = append(names, b.attrs[i].name)
	}
	for i := range b.blocks {
		names = append(names, b.blocks[i].name)
	}
	return names
}

// kindBlocks describes every kind that a file may declare.
var kindBlocks = map[string]*block{
	api.KindConfig: kindBlock(api.KindConfig,
		attribute{name: "cpu_overcommit", shape: float},
		attribute{name: "memory_overcommit", shape: float},
		attribute{name: "memory_reserve", field: "memory_reserve_bytes", shape: size},
		attribute{name: "placement_strategy"},
		attribute{name: "task_retention", field: "task_retention_ns", shape: duration},
		attribute{name: "journal_retention", field: "journal_retention_ns", shape: duration},
		attribute{name: "tasks_per_node", shape: integer},
		attribute{name: "copies_per_node", shape: integer},
		attribute{name: "pool_warn_percent", shape: integer},
		attribute{name: "pool_full_percent", shape: integer},
		attribute{name: "cpu_baseline"},
		attribute{name: "voters", shape: integer},
		attribute{name: "moves_per_node", shape: integer}),
	api.KindTenant: tenantBlock(),
	api.KindRole:   roleBlock(),
	api.KindPool: kindBlock(api.KindPool,
		attribute{name: "driver", fallback: api.PoolDir},
		attribute{name: "path"},
		attribute{name: "shared", shape: boolean},
		attribute{name: "nodes", shape: texts},
		attribute{name: "reserve", field: "reserve_bytes", shape: size},
		attribute{name: "copies", shape: integer},
		attribute{name: "overcommit", shape: float}),
	api.KindNetwork: kindBlock(api.KindNetwork,
		attribute{name: "driver", fallback: api.NetworkBridge},
		attribute{name: "bridge"},
		attribute{name: "vlan", shape: integer},
		attribute{name: "subnets", shape: texts},
		attribute{name: "ranges", shape: texts},
		attribute{name: "anti_spoof"},
		attribute{name: "uplink", shape: boolean},
		attribute{name: "mtu", shape: integer},
		attribute{name: "description"}),
	api.KindFirewall: firewallBlock(),
	api.KindImage: kindBlock(api.KindImage,
		attribute{name: "format"},
		attribute{name: "sha256"},
		attribute{name: "size", field: "size_bytes", shape: size},
		attribute{name: "url"},
		attribute{name: "description"}),
	api.KindVolume: kindBlock(api.KindVolume,
		attribute{name: "pool"},
		attribute{name: "size", field: "size_bytes", shape: size},
		attribute{name: "format"},
		attribute{name: "image"},
		attribute{name: "source"},
		attribute{name: "clone"},
		attribute{name: "node"}),
	api.KindVM: vmBlock(),
}

// kindBlock starts the description of a kind with what all objects have.
func kindBlock(kind string, attrs ...attribute) *block {
	b := &block{name: kind, label: "name"}
	if k, _ := api.LookupKind(kind); k.TenantScope {
		b.attrs = append(b.attrs, attribute{name: "tenant"})
	}
	b.attrs = append(append(b.attrs, attribute{name: "labels", shape: labels}), attrs...)
	return b
}

func tenantBlock() *block {
	b := kindBlock(api.KindTenant, attribute{name: "description"}, attribute{name: "parent"})
	b.blocks = []block{{name: "quota", field: "quota", attrs: []attribute{
		{name: "vms", shape: integer}, {name: "cpus", shape: integer}, {name: "memory", field: "memory_bytes", shape: size},
		{name: "disk", field: "disk_bytes", shape: size}, {name: "volumes", shape: integer}, {name: "snapshots", shape: integer}, {name: "keys", shape: integer}}}}
	return b
}

func roleBlock() *block {
	b := kindBlock(api.KindRole, attribute{name: "description"}, attribute{name: "inherits", shape: texts})
	b.blocks = []block{{name: "rule", field: "rules", many: true, attrs: []attribute{
		{name: "effect"}, {name: "verbs", shape: texts}, {name: "kinds", shape: texts}, {name: "names", shape: texts},
		{name: "labels", shape: labels}, {name: "addresses", shape: texts}, {name: "not_before"}, {name: "not_after"}, {name: "second_factor"}}}}
	return b
}

func firewallBlock() *block {
	b := kindBlock(api.KindFirewall, attribute{name: "description"})
	b.blocks = []block{{name: "rule", field: "rules", many: true, attrs: []attribute{
		{name: "direction", fallback: api.Ingress}, {name: "protocol"}, {name: "ports", shape: texts}, {name: "icmp_types", shape: texts},
		{name: "cidrs", shape: texts}, {name: "groups", shape: texts}, {name: "description"}}}}
	return b
}

func vmBlock() *block {
	b := kindBlock(api.KindVM,
		attribute{name: "description"},
		attribute{name: "power"},
		attribute{name: "cpus", shape: integer},
		attribute{name: "cpus_max", shape: integer},
		attribute{name: "cpu_model"},
		attribute{name: "memory", field: "memory_bytes", shape: size},
		attribute{name: "memory_max", field: "memory_max_bytes", shape: size},
		attribute{name: "machine"},
		attribute{name: "firmware"},
		attribute{name: "tpm", shape: boolean},
		attribute{name: "rng"},
		attribute{name: "graphics"},
		attribute{name: "video"},
		attribute{name: "ha"},
		attribute{name: "priority", shape: integer})
	b.blocks = []block{
		{name: "boot", field: "boot", attrs: []attribute{{name: "kernel"}, {name: "initrd"}, {name: "args"}}},
		{name: "disk", field: "disks", label: "name", many: true, attrs: []attribute{
			{name: "volume"}, {name: "pool"}, {name: "image"}, {name: "source"}, {name: "clone"}, {name: "size", field: "size_bytes", shape: size},
			{name: "bus"}, {name: "cache"}, {name: "discard"}, {name: "serial"}, {name: "boot_order", shape: integer},
			{name: "read_only", shape: boolean}, {name: "read_iops_max", shape: integer}, {name: "write_iops_max", shape: integer},
			{name: "read_bytes_per_second_max", shape: size}, {name: "write_bytes_per_second_max", shape: size}}},
		{name: "cdrom", field: "cdroms", label: "name", many: true, attrs: []attribute{
			{name: "image"}, {name: "bus"}, {name: "boot_order", shape: integer}}},
		{name: "nic", field: "nics", many: true, attrs: []attribute{{name: "network"}, {name: "mac"},
			{name: "addresses", shape: texts}, {name: "firewalls", shape: texts}, {name: "anti_spoof"},
			{name: "model"}, {name: "mtu", shape: integer}, {name: "link"}, {name: "boot_order", shape: integer}}},
		{name: "cpu_topology", field: "cpu_topology", attrs: []attribute{
			{name: "sockets", shape: integer}, {name: "cores", shape: integer}, {name: "threads", shape: integer}}},
		{name: "cloud_init", field: "cloud_init",
			attrs: []attribute{{name: "hostname"}, {name: "packages", shape: texts}, {name: "commands", shape: argvs}, {name: "network"}},
			blocks: []block{
				{name: "user", field: "users", label: "name", many: true, attrs: []attribute{
					{name: "ssh_keys", shape: texts}, {name: "sudo", shape: boolean}, {name: "password_hash", shape: secret}}},
				{name: "file", field: "files", label: "path", many: true, attrs: []attribute{{name: "content"}, {name: "mode"}}},
			}},
		{name: "placement", field: "placement", attrs: []attribute{
			{name: "strategy"}, {name: "node"}, {name: "nodes", shape: labels},
			{name: "affinity", shape: labels}, {name: "anti_affinity", shape: labels}}},
		snapshotsBlock(),
	}
	return b
}

// NewObject makes an empty object of a kind that a file may declare; nil for
// any other kind.
func NewObject(kind string) api.Object {
	switch kind {
	case api.KindConfig:
		return &api.Config{}
	case api.KindTenant:
		return &api.Tenant{}
	case api.KindRole:
		return &api.Role{}
	case api.KindPool:
		return &api.Pool{}
	case api.KindNetwork:
		return &api.Network{}
	case api.KindFirewall:
		return &api.Firewall{}
	case api.KindImage:
		return &api.Image{}
	case api.KindVolume:
		return &api.Volume{}
	case api.KindVM:
		return &api.VM{}
	}
	return nil
}

// inHCL writes the JSON path of a field as a reader of the file knows it:
// "disks[0].size_bytes" becomes "disk[0].size". It also returns the field's
// shape.
func inHCL(kind, path string) (string, shape) {
	b := kindBlocks[kind]
	var out []string
	for b != nil && path != "" {
		step, rest, _ := strings.Cut(path, ".")
		field, index, indexed := strings.Cut(step, "[")
		if indexed {
			index = "[" + index
		}
		for i := range b.attrs {
			if a := &b.attrs[i]; a.json() == field {
				if rest != "" {
					rest = "." + rest
				}
				return strings.Join(append(out, a.name+index+rest), "."), a.shape
			}
		}
		var next *block
		for i := range b.blocks {
			if b.blocks[i].field == field {
				next = &b.blocks[i]
				out = append(out, next.name+index)
			}
		}
		if next == nil {
			break
		}
		b, path = next, rest
	}
	return strings.Join(append(out, path), "."), text
}
