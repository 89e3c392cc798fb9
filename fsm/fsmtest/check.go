package fsmtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/fsm"
)

// Row is a row of any kind, for checks that treat kinds alike.
type Row struct {
	Kind, Key string
	Meta      *api.Meta
	JSON      []byte // as it was encoded when it was written
	value     any
}

// Rows is every row of the state, in the order of the snapshot.
func Rows(view *fsm.View) []Row {
	return slices.Concat(
		rows(fsm.Configs, view), rows(fsm.Tenants, view), rows(fsm.Regions, view), rows(fsm.Nodes, view), rows(fsm.Pools, view),
		rows(fsm.Networks, view), rows(fsm.Images, view), rows(fsm.Volumes, view), rows(fsm.VMs, view), rows(fsm.Instances, view),
		rows(fsm.Replicas, view), rows(fsm.Tasks, view), rows(fsm.APIKeys, view), rows(fsm.JoinTokens, view), rows(fsm.Seals, view),
		rows(fsm.Certificates, view), rows(fsm.RemovedNodes, view), rows(fsm.Leases, view), rows(fsm.Roles, view), rows(fsm.Snapshots, view), rows(fsm.Firewalls, view))
}

func rows[T any, P object[T]](t fsm.Table[T, P], view *fsm.View) (out []Row) {
	kind, known := api.LookupKind(t.Kind())
	for v := range t.All(view) {
		m := P(v).Head()
		key := m.Name
		if known {
			key = kind.Key(m.Tenant, m.Name)
		}
		out = append(out, Row{Kind: t.Kind(), Key: key, Meta: m, JSON: t.JSON(view, key), value: v})
	}
	return out
}

// CheckRows finds rows that were changed after they had been written: the value
// no longer encodes to what it was encoded to. The state hash is computed anew
// from all rows, which also shows that no kind is left out here.
func CheckRows(view *fsm.View) error {
	var sum [sha256.Size]byte
	for _, r := range Rows(view) {
		b, err := json.Marshal(r.value)
		if err != nil {
			return fmt.Errorf("%s/%s: %w", r.Kind, r.Key, err)
		}
		if !bytes.Equal(b, r.JSON) {
			return fmt.Errorf("%s/%s was changed in place:\n%s\nwas written as\n%s", r.Kind, r.Key, b, r.JSON)
		}
		h := sha256.New()
		h.Write([]byte(r.Kind + "/" + r.Key + "\x00"))
		h.Write(r.JSON)
		carry := 0
		for i, b := range h.Sum(nil) { // little endian, modulo 2^256
			carry += int(sum[i]) + int(b)
			sum[i], carry = byte(carry), carry>>8
		}
	}
	if got := view.StateHash(); got != api.Hash(sum) {
		return fmt.Errorf("the state hash is %v, that of its rows %v", got, api.Hash(sum))
	}
	return nil
}

// CheckStep finds what must not happen from one entry to the next: before and
// after are the states around the entry at after's index.
func CheckStep(before, after *fsm.View, refused bool) error {
	if after.Time().Before(before.Time()) {
		return fmt.Errorf("time went back from %v to %v", before.Time(), after.Time())
	}
	if refused && before.StateHash() != after.StateHash() {
		return fmt.Errorf("a refused entry left rows behind")
	}
	old := map[string]Row{}
	for _, r := range Rows(before) {
		old[r.Kind+"/"+r.Key] = r
	}
	for _, r := range Rows(after) {
		was, ok := old[r.Kind+"/"+r.Key]
		if err := checkMeta(was, r, ok, after); err != nil {
			return fmt.Errorf("%s/%s: %w", r.Kind, r.Key, err)
		}
	}
	return checkGrowth(before, after)
}

func checkMeta(was, r Row, existed bool, after *fsm.View) error {
	m := r.Meta
	switch {
	case existed && bytes.Equal(was.JSON, r.JSON):
		return nil // untouched
	case m.Modified != after.Index() || !m.ModifiedAt.Equal(after.Time()):
		return fmt.Errorf("was written at %d, %v, and says %d, %v", after.Index(), after.Time(), m.Modified, m.ModifiedAt)
	case m.ID == "":
		return fmt.Errorf("has no ID")
	case m.Created == after.Index():
		if !m.CreatedAt.Equal(after.Time()) {
			return fmt.Errorf("was made at %v and says %v", after.Time(), m.CreatedAt)
		}
		return nil // new, or deleted and made again in one entry
	case !existed:
		return fmt.Errorf("was made at %d and says %d", after.Index(), m.Created)
	case m.Created != was.Meta.Created || !m.CreatedAt.Equal(was.Meta.CreatedAt) || m.ID != was.Meta.ID:
		return fmt.Errorf("lost its origin: was %+v, is %+v", *was.Meta, *m)
	}
	return nil
}

// checkGrowth: epochs and gens only grow.
func checkGrowth(before, after *fsm.View) error {
	for n := range fsm.Nodes.All(after) {
		if was := fsm.Nodes.Get(before, n.Name); was != nil && was.ID == n.ID && n.Epoch < was.Epoch {
			return fmt.Errorf("the epoch of node %s fell from %d to %d", n.Name, was.Epoch, n.Epoch)
		}
		if l := fsm.Leases.Get(after, n.Name); n.Lease == api.NodeLive && (l == nil || l.Epoch != n.Epoch) {
			return fmt.Errorf("node %s is live at epoch %d with the lease %+v", n.Name, n.Epoch, l)
		}
	}
	for i := range fsm.Instances.All(after) {
		was := fsm.Instances.Get(before, i.Name)
		if was == nil {
			continue
		}
		if i.Gen < was.Gen {
			return fmt.Errorf("the gen of instance %s fell from %d to %d", i.Name, was.Gen, i.Gen)
		}
		if i.Owner != "" && i.Owner != was.Owner && i.Gen == was.Gen {
			return fmt.Errorf("instance %s went from %q to %q within gen %d", i.Name, was.Owner, i.Owner, i.Gen)
		}
	}
	return nil
}

// CheckState finds what must not be true of any state.
func CheckState(view *fsm.View) error {
	for _, check := range []func(*fsm.View) error{checkVMs, checkNetworks, checkVolumes, checkInstances, checkReplicas, checkTasks} {
		if err := check(view); err != nil {
			return err
		}
	}
	return nil
}

func checkVMs(view *fsm.View) error {
	users, macs, ids, addresses := map[string]string{}, map[string]string{}, map[string]bool{}, map[string]string{}
	for vm := range fsm.VMs.All(view) {
		key := api.Key(vm.Tenant, vm.Name)
		if ids[vm.ID] {
			return fmt.Errorf("two VMs have the ID %s", vm.ID)
		}
		ids[vm.ID] = true
		if fsm.Tenants.Get(view, vm.Tenant) == nil {
			return fmt.Errorf("vm %s has no tenant", key)
		}
		for _, d := range vm.Disks {
			volume := api.Key(vm.Tenant, d.Volume)
			if fsm.Volumes.Get(view, volume) == nil {
				return fmt.Errorf("vm %s has disk %s on the missing volume %q", key, d.Name, d.Volume)
			}
			if other, taken := users[volume]; taken {
				return fmt.Errorf("volume %s is attached to %s and %s", volume, other, key)
			}
			users[volume] = key
		}
		for _, n := range vm.NICs {
			if fsm.Networks.Get(view, api.Key(vm.Tenant, n.Network)) == nil {
				return fmt.Errorf("vm %s is on the missing network %q", key, n.Network)
			}
			if other, taken := macs[n.MAC]; taken || n.MAC == "" {
				return fmt.Errorf("vm %s and %s have the address %q", key, other, n.MAC)
			}
			macs[n.MAC] = key
			if err := checkNIC(view, vm, &n, addresses); err != nil {
				return fmt.Errorf("vm %s: %w", key, err)
			}
		}
		if b := vm.Boot; b != nil && (fsm.Images.Get(view, api.Key(vm.Tenant, b.Kernel)) == nil ||
			b.Initrd != "" && fsm.Images.Get(view, api.Key(vm.Tenant, b.Initrd)) == nil) {
			return fmt.Errorf("vm %s boots from a missing image: %+v", key, *b)
		}
	}
	return nil
}

// checkNIC: what a NIC names exists, and it has its addresses alone.
func checkNIC(view *fsm.View, vm *api.VM, n *api.NIC, addresses map[string]string) error {
	for _, name := range n.Firewalls {
		if fsm.Firewalls.Get(view, api.Key(vm.Tenant, name)) == nil {
			return fmt.Errorf("it has the missing firewall %q", name)
		}
	}
	subnets := fsm.Networks.Get(view, api.Key(vm.Tenant, n.Network)).Prefixes()
	for _, text := range n.Addresses {
		at := api.Key(vm.Tenant, n.Network) + "/" + text
		if other, taken := addresses[at]; taken {
			return fmt.Errorf("it and %s have the address %s", other, at)
		}
		addresses[at] = vm.Name
		ip := netip.MustParseAddr(text)
		if len(subnets) > 0 && !slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(ip) }) {
			return fmt.Errorf("its address %s is outside %v", text, subnets)
		}
	}
	return nil
}

// checkNetworks: no two subnets in which the nodes have an address overlap,
// and groups exist.
func checkNetworks(view *fsm.View) error {
	var local []*api.Network
	for n := range fsm.Networks.All(view) {
		if !n.Local() {
			continue
		}
		for _, other := range local {
			for _, a := range n.Prefixes() {
				if slices.ContainsFunc(other.Prefixes(), a.Overlaps) || n.Device() == other.Device() {
					return fmt.Errorf("networks %s/%s and %s/%s are not apart", n.Tenant, n.Name, other.Tenant, other.Name)
				}
			}
		}
		local = append(local, n)
	}
	for f := range fsm.Firewalls.All(view) {
		for _, r := range f.Rules {
			for _, name := range r.Groups {
				if fsm.Firewalls.Get(view, api.Key(f.Tenant, name)) == nil {
					return fmt.Errorf("firewall %s/%s names the missing group %q", f.Tenant, f.Name, name)
				}
			}
		}
	}
	return nil
}

func checkVolumes(view *fsm.View) error {
	for v := range fsm.Volumes.All(view) {
		key := api.Key(v.Tenant, v.Name)
		if fsm.Pools.Get(view, v.Pool) == nil {
			return fmt.Errorf("volume %s lies in the missing pool %q", key, v.Pool)
		}
		if v.Image != "" && fsm.Images.Get(view, api.Key(v.Tenant, v.Image)) == nil {
			return fmt.Errorf("volume %s is made from the missing image %q", key, v.Image)
		}
		if v.OwnerVM == "" {
			continue
		}
		used := false
		for vm := range fsm.VMs.By(view, "id_of", v.OwnerVM) {
			used = vm.Tenant == v.Tenant && slices.ContainsFunc(vm.Disks, func(d api.Disk) bool { return d.Volume == v.Name })
		}
		if !used {
			return fmt.Errorf("volume %s was made for VM %s, which does not have it", key, v.OwnerVM)
		}
	}
	return nil
}

func checkInstances(view *fsm.View) error {
	for i := range fsm.Instances.All(view) {
		exists := false
		for range fsm.VMs.By(view, "id_of", i.Name) {
			exists = true
		}
		if err := checkMigration(view, i); err != nil {
			return err
		}
		if i.Owner == "" {
			if !exists {
				return fmt.Errorf("instance %s belongs to no VM and no node", i.Name)
			}
			continue
		}
		n := fsm.Nodes.Get(view, i.Owner)
		if n == nil || n.Witness || i.OwnerEpoch > n.Epoch || i.Gen == 0 {
			return fmt.Errorf("instance %s at gen %d is owned by %q at epoch %d, which is %+v", i.Name, i.Gen, i.Owner, i.OwnerEpoch, n)
		}
	}
	return nil
}

func checkReplicas(view *fsm.View) error {
	volumes := map[string]string{}
	for r := range fsm.Replicas.All(view) {
		if r.Name != api.ReplicaName(r.OfID, r.Node) || fsm.Nodes.Get(view, r.Node) == nil && r.State != api.ReplicaLost {
			return fmt.Errorf("replica %s lies on the missing node %q", r.Name, r.Node)
		}
		if fsm.Pools.Get(view, r.Pool) == nil {
			return fmt.Errorf("replica %s lies in the missing pool %q", r.Name, r.Pool)
		}
		if r.From != "" {
			if err := checkFilled(view, r); err != nil {
				return err
			}
		}
		if r.Delete || r.From != "" {
			continue
		}
		exists := false
		if r.Kind == api.KindVolume {
			if other, twice := volumes[r.OfID]; twice {
				return fmt.Errorf("volume %s lies on %s and %s", r.Of, other, r.Node)
			}
			volumes[r.OfID] = r.Node
			for range fsm.Volumes.By(view, "id_of", r.OfID) {
				exists = true
			}
		} else {
			for range fsm.Images.By(view, "id_of", r.OfID) {
				exists = true
			}
		}
		if !exists {
			return fmt.Errorf("replica %s is wanted for the missing %s %s", r.Name, r.Kind, r.Of)
		}
	}
	return nil
}

// checkFilled: a copy that a migration fills belongs to one that is under way,
// or is to be removed.
func checkFilled(view *fsm.View, r *api.Replica) error {
	if r.Delete {
		return nil
	}
	for i := range fsm.Instances.By(view, "arriving", r.Node) {
		if i.Owner == r.From && slices.Contains(i.Migration.Volumes, r.OfID) {
			return nil
		}
	}
	return fmt.Errorf("replica %s is filled from %s by no migration", r.Name, r.From)
}

func checkMigration(view *fsm.View, i *api.Instance) error {
	m := i.Migration
	if m == nil {
		return nil
	}
	if to := fsm.Nodes.Get(view, m.To); i.Owner == "" || m.To == i.Owner || to == nil || to.Witness || m.ToEpoch > to.Epoch {
		return fmt.Errorf("instance %s of %q migrates to %q at epoch %d, which is %+v", i.Name, i.Owner, m.To, m.ToEpoch, to)
	}
	return nil
}

func checkTasks(view *fsm.View) error {
	for t := range fsm.Tasks.All(view) {
		switch {
		case t.Ended() == t.EndedAt.IsZero():
			return fmt.Errorf("task %s is %s and ended at %v", t.Name, t.State, t.EndedAt)
		case t.State == api.TaskRunning && (t.Attempt == 0 || t.StartedAt.IsZero()):
			return fmt.Errorf("task %s runs at attempt %d since %v", t.Name, t.Attempt, t.StartedAt)
		case t.State == api.TaskPending && t.Node != "":
			return fmt.Errorf("task %s waits and belongs to %s", t.Name, t.Node)
		case t.Attempt > api.TaskAttemptsMax:
			return fmt.Errorf("task %s is at attempt %d", t.Name, t.Attempt)
		case t.Deadline.Sub(t.CreatedAt) > api.TaskDeadlineMax+time.Second:
			return fmt.Errorf("task %s has its deadline %v after it was made", t.Name, t.Deadline.Sub(t.CreatedAt))
		}
	}
	return nil
}
