package fsm

import "github.com/debvisor/debvisor/api"

// The tables of every kind. Rules that involve other rows stand in the file of
// the kind.
var (
	Configs  = table[api.Config](api.KindConfig, edited[api.Config]())
	Tenants  = table[api.Tenant](api.KindTenant, edited[api.Tenant](), indexed("parent", func(t *api.Tenant) []string { return []string{t.Parent} }))
	Regions  = table[api.Region](api.KindRegion)
	Nodes    = table[api.Node](api.KindNode, indexed("id_of", func(n *api.Node) []string { return []string{n.ID} }))
	Pools    = table[api.Pool](api.KindPool, edited[api.Pool]())
	Networks = table[api.Network](api.KindNetwork, edited[api.Network](),
		indexed("device", func(n *api.Network) []string { return []string{n.Device()} }))
	Images  = table[api.Image](api.KindImage, edited[api.Image](), indexed("id_of", func(i *api.Image) []string { return []string{i.ID} }))
	Volumes = table[api.Volume](api.KindVolume, edited[api.Volume](),
		indexed("id_of", func(v *api.Volume) []string { return []string{v.ID} }),
		indexed("pool", func(v *api.Volume) []string { return []string{v.Pool} }),
		indexed("image", func(v *api.Volume) []string { return keyIn(v.Tenant, v.Image) }),
		indexed("source", func(v *api.Volume) []string { return keyIn(v.Tenant, v.Source) }),
		indexed("owner_vm", func(v *api.Volume) []string { return []string{v.OwnerVM} }))
	VMs = table[api.VM](api.KindVM, edited[api.VM](),
		indexed("id_of", func(v *api.VM) []string { return []string{v.ID} }),
		indexed("volume", volumesOf),
		indexed("scheduled", scheduled),
		indexed("network", networksOf),
		indexed("mac", macsOf),
		indexed("address", addressesOf),
		indexed("firewall", firewallsOf),
		indexed("image", imagesOf))
	Instances = table[api.Instance](api.KindInstance,
		indexed("owner", func(i *api.Instance) []string { return []string{i.Owner} }),
		indexed("vm", func(i *api.Instance) []string { return []string{i.VM} }),
		indexed("arriving", func(i *api.Instance) []string {
			if i.Migration == nil {
				return nil
			}
			return []string{i.Migration.To}
		}))
	Replicas = table[api.Replica](api.KindReplica,
		indexed("node", func(r *api.Replica) []string { return []string{r.Node} }),
		indexed("of_id", func(r *api.Replica) []string { return []string{r.OfID} }),
		indexed("pool", func(r *api.Replica) []string { return []string{r.Pool} }))
	Tasks = table[api.Task](api.KindTask,
		indexed("state", func(t *api.Task) []string { return []string{t.State} }),
		indexed("node", func(t *api.Task) []string { return []string{t.Node} }),
		indexed("ended", func(t *api.Task) []string {
			if !t.Ended() {
				return nil
			}
			return moment(t.EndedAt)
		}),
		indexed("object", func(t *api.Task) []string { return []string{t.Kind + "/" + t.Object} }))
	APIKeys = table[api.APIKey](api.KindAPIKey,
		indexed("hash", func(k *api.APIKey) []string { return []string{k.Hash, k.PreviousHash} }),
		indexed("role", func(k *api.APIKey) []string { return []string{k.Role} }),
		indexed("tenant", func(k *api.APIKey) []string { return k.Tenants }))
	Roles        = table[api.Role](api.KindRole, edited[api.Role](), indexed("inherits", func(r *api.Role) []string { return r.Inherits }))
	JoinTokens   = table[api.JoinToken](api.KindToken, indexed("hash", func(t *api.JoinToken) []string { return []string{t.Hash} }))
	Seals        = table[api.Seal]("seal")
	Certificates = table[api.Certificate]("certificate", indexed("not_after", func(c *api.Certificate) []string { return moment(c.NotAfter) }))
	RemovedNodes = table[api.RemovedNode]("removed_node")
	Leases       = table[api.NodeLease]("node_lease")
	Snapshots    = table[api.Snapshot](api.KindSnapshot,
		indexed("vm_id", func(s *api.Snapshot) []string { return []string{s.VMID} }))
	Firewalls = table[api.Firewall](api.KindFirewall, edited[api.Firewall](), indexed("group", groupsOf))
)

// tables is every table, in the order of the snapshot. New kinds come last.
func tables() []anyTable {
	return []anyTable{
		Configs, Tenants, Regions, Nodes, Pools, Networks, Images, Volumes, VMs, Instances, Replicas, Tasks,
		APIKeys, JoinTokens, Seals, Certificates, RemovedNodes, Leases, Roles,
		Snapshots, Firewalls,
	}
}

// transitions is every named command.
func transitions() []erasable {
	return []erasable{
		InitCluster, RehomeCluster, ActivateVersion, ApplyMany, PutSeal, RecordCertificate,
		CreateKey, RotateKey, DeleteKey, CreateToken, DeleteToken, TrimTokens,
		JoinNode, RegisterNode, ReportNode, RenewNodes, ExpireNode, ConfirmOffNode, ScheduleNode, SetVoter, RemoveNode,
		PowerVM, AssignInstance, HoldInstance, ReportInstance, ForgetInstance,
		BeginMigration, CommitMigration, AbortMigration,
		ReportReplica, SizeReplica, MoveVolume, ForgetReplica,
		MakeImage,
		SubmitTask, DispatchTask, ReportTask, ReleaseTask, FinishTask, CancelTask, ExpireTask, TrimTasks,
		ReportSnapshot, RestoreSnapshot, ForgetSnapshot, DueSnapshot, NoteGuestCall,
	}
}

// keyIn is the key of a name within a tenant, or nothing for no name.
func keyIn(tenant, name string) []string {
	if name == "" {
		return nil
	}
	return []string{api.Key(tenant, name)}
}

// rules is the rule that a user's put and delete of a kind must pass.
func rules() map[string]any {
	return map[string]any{
		api.KindConfig:   rule[api.Config](checkConfig),
		api.KindTenant:   rule[api.Tenant](checkTenant),
		api.KindRole:     rule[api.Role](checkRole),
		api.KindPool:     rule[api.Pool](checkPool),
		api.KindNetwork:  rule[api.Network](checkNetwork),
		api.KindFirewall: rule[api.Firewall](checkFirewall),
		api.KindImage:    rule[api.Image](checkImage),
		api.KindVolume:   rule[api.Volume](checkVolume),
		api.KindVM:       rule[api.VM](checkVM),
	}
}
