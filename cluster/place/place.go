// Package place decides on which node a VM runs. It is a pure function of a
// picture of the cluster: it reads no clock, table or network, and gives the
// same answer to the same question on every node.
//
// New builds the picture once; Decide asks it; Place and Remove move it on, so
// that thousands of VMs are placed without building it again. A VM holds its
// place whatever its power, so that a stopped VM can always be started where
// it is.
package place

import (
	"slices"
	"strings"
	"time"

	"github.com/debvisor/debvisor/api"
)

// DefaultPool holds the disks of a VM that name no pool.
const DefaultPool = "local"

// limitMax bounds what a node may carry, so that sums stay within 64 bits
// whatever a node reports.
const limitMax = float64(1 << 62)

// arrivingSuffix tells the place that is held at a destination from the VM's own.
const arrivingSuffix = "/arriving"

// Placed is a VM together with the name of the node that owns it.
type Placed struct {
	VM   *api.VM
	Node string
}

// Input is what placement looks at. Everything is read only, and must not
// change while the Cluster made from it is in use.
type Input struct {
	Config   api.Config              // its zero values mean the defaults
	Nodes    []*api.Node             // in any order
	Pools    map[string]*api.Pool    // by name
	Volumes  map[string]*api.Volume  // by tenant/name
	Images   map[string]*api.Image   // by tenant/name; only the size of a disk that names none comes from here
	Networks map[string]*api.Network // by tenant/name
	Replicas []*api.Replica          // of volumes and images
	Arriving []Placed                // those that migrate to a node, which holds a place for them
	VMs      []Placed                // those that a node owns; with an unknown node they count nowhere
}

// Cluster is the picture that decisions are made on. It is not safe for use by
// several goroutines at once.
type Cluster struct {
	config   api.Config
	baseline string  // CPU model of VMs that name none
	nodes    []*host // by name: the order of the slice breaks ties
	byName   map[string]*host
	pools    map[string]*api.Pool
	volumes  map[string]*api.Volume
	images   map[string]*api.Image
	networks map[string]*api.Network
	located  map[string][]string // volume key to the nodes that have a copy or were told to make one
	assumed  map[string]*claim   // volume key to the place that a VM placed here gives it
	virtual  map[string]int64    // sizes of the volumes in each shared pool
	shared   map[string]int64    // bytes promised in each shared pool and not yet measured
	guests   map[string]*guest   // by identity
	labels   labelIndex
}

// host is one node with what it has left.
type host struct {
	row         *api.Node
	index       int
	cpuLimit    int64 // vCPUs that it may carry
	memoryLimit int64 // guest bytes that it may carry
	cpus        int64
	memory      int64
	guests      map[*guest]struct{}
	pools       map[string]*space
	lost        bool // imagined to be lost
}

// guest is what a placed VM takes.
type guest struct {
	id     string
	vm     *api.VM
	host   *host
	claims []*claim
}

// New builds the picture. It costs time in proportion to the input.
func New(in Input) *Cluster {
	c := &Cluster{
		config:   in.Config.WithDefaults(),
		byName:   make(map[string]*host, len(in.Nodes)),
		pools:    in.Pools,
		volumes:  in.Volumes,
		images:   in.Images,
		networks: in.Networks,
		located:  map[string][]string{},
		assumed:  map[string]*claim{},
		virtual:  map[string]int64{},
		shared:   map[string]int64{},
		guests:   make(map[string]*guest, len(in.VMs)),
		labels:   newLabelIndex(len(in.Nodes)),
	}
	c.baseline = api.CPUBaseline(&in.Config, in.Nodes)
	for _, row := range in.Nodes {
		h := c.newHost(row)
		c.nodes, c.byName[row.Name] = append(c.nodes, h), h
	}
	slices.SortFunc(c.nodes, func(a, b *host) int { return strings.Compare(a.row.Name, b.row.Name) })
	for i, h := range c.nodes {
		h.index = i
	}
	c.locate(in.Replicas)
	for _, p := range in.VMs {
		c.Place(p.VM, p.Node)
	}
	for _, p := range in.Arriving {
		double := *p.VM
		double.ID = p.VM.ID + arrivingSuffix
		c.Place(&double, p.Node)
	}
	return c
}

func (c *Cluster) newHost(row *api.Node) *host {
	h := &host{row: row, guests: map[*guest]struct{}{}, pools: make(map[string]*space, len(row.Pools))}
	// The conversions keep the compiler from fusing operations, which would
	// round differently on another architecture.
	h.cpuLimit = int64(min(limitMax, float64(float64(row.Capacity.CPUs)*c.config.CPUOvercommit)+1e-6))
	h.memoryLimit = int64(min(limitMax, float64(max(0, row.Capacity.MemoryBytes-c.config.MemoryReserve))*c.config.MemoryOvercommit))
	for _, p := range row.Pools {
		h.pools[p.Pool] = &space{free: p.FreeBytes, total: p.TotalBytes, reason: p.Reason}
	}
	return h
}

// Place records that the node of that name owns vm from now on, and moves vm
// there if another owned it. A node that is not in the picture takes nothing.
func (c *Cluster) Place(vm *api.VM, node string) {
	c.Remove(vm)
	h := c.byName[node]
	if h == nil {
		return
	}
	g := &guest{id: identity(vm), vm: vm, host: h, claims: c.claimsOf(vm)}
	c.guests[g.id] = g
	c.attach(g)
}

// Remove records that nobody owns vm any more; it undoes Place.
func (c *Cluster) Remove(vm *api.VM) {
	if g := c.guests[identity(vm)]; g != nil {
		c.detach(g)
		delete(c.guests, g.id)
	}
}

// Decide finds the best node for vm and explains it. A vm that has a place
// already is looked at as if it had none, so its own node may be the answer.
// The picture stays as it was; call Place to act on the decision. The time now
// is only copied into the answer.
func (c *Cluster) Decide(vm *api.VM, now time.Time) api.Decision {
	if own := c.guests[identity(vm)]; own != nil {
		c.detach(own)
		defer c.attach(own)
	}
	r := c.newRequest(vm)
	var best, rest ranking
	var tally [filterCount]int
	for _, h := range c.nodes {
		first, misses := r.check(h)
		if misses == 0 {
			best.add(ranked{host: h, score: r.score(h)})
			continue
		}
		tally[first]++
		rest.add(ranked{host: h, score: -float64(misses)})
	}
	d := api.Decision{Strategy: r.strategy, Considered: len(c.nodes), At: now}
	for _, e := range best.list() {
		d.Candidates = append(d.Candidates, api.Candidate{Node: e.host.row.Name, Fits: true, Score: e.score, Reasons: r.merits(e.host)})
	}
	for _, e := range rest.list() {
		if len(d.Candidates) < api.CandidatesMax {
			d.Candidates = append(d.Candidates, api.Candidate{Node: e.host.row.Name, Reasons: r.reasons(e.host)})
		}
	}
	if best.total == 0 {
		d.Summary = r.whyNone(&tally)
		return d
	}
	d.Node = best.top[0].host.row.Name
	d.Summary = r.whyBest(best.top[0].host, best.total)
	return d
}

func (c *Cluster) attach(g *guest) {
	g.host.cpus += int64(g.vm.CPUs)
	g.host.memory += g.vm.MostMemory()
	g.host.guests[g] = struct{}{}
	c.labels.add(g)
	for _, cl := range g.claims {
		c.promise(cl, g.host)
	}
}

func (c *Cluster) detach(g *guest) {
	g.host.cpus -= int64(g.vm.CPUs)
	g.host.memory -= g.vm.MostMemory()
	delete(g.host.guests, g)
	c.labels.remove(g)
	for _, cl := range g.claims {
		c.release(cl, g.host)
	}
}

// best finds the best node for vm without explaining it; nil: none fits.
func (c *Cluster) best(vm *api.VM) (*host, float64) {
	r := c.newRequest(vm)
	var best *host
	var score float64
	for _, h := range c.nodes {
		if !r.fits(h) {
			continue
		}
		if s := r.score(h); best == nil || s > score {
			best, score = h, s
		}
	}
	return best, score
}

// identity tells VMs apart: by ID, which survives a rename, or by key as long
// as there is none.
func identity(vm *api.VM) string {
	if vm.ID != "" {
		return vm.ID
	}
	return api.Key(vm.Tenant, vm.Name)
}
