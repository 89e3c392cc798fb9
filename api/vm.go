package api

// What a user wants of a VM's power.
const (
	PowerOn  = "on"
	PowerOff = "off"
)

// HA modes: what may happen to a VM when its host is lost.
const (
	HANone    = "none"    // only an operator moves it
	HALease   = "lease"   // restarted elsewhere, frozen on isolation
	HAStorage = "storage" // restarted elsewhere once the storage has fenced the old host
)

// Placement strategies.
const (
	StrategySpread = "spread" // fewest VMs first
	StrategyPack   = "pack"   // fullest host that fits first
)

// Limits of a VM.
const (
	CPUsMax           = 1024
	MemoryMin         = 16 * MiB
	MemoryMax         = 64 * TiB
	DisksMax          = 32
	NICsMax           = 16
	KernelArgsMax     = 2048
	CloudInitMax      = 64 << 10
	CloudInitUsersMax = 32
	CloudInitFilesMax = 64
)

// VM is what a user wants: one virtual machine. What became of it is in its
// instance row. ID is the UUID of its libvirt domain and survives a rename.
type VM struct {
	Meta
	Description string      `json:"description,omitzero"`
	Power       string      `json:"power,omitzero"`        // on (default) or off
	CPUs        int         `json:"cpus"`                  // virtual CPUs
	CPUsMax     int         `json:"cpus_max,omitzero"`     // up to which CPUs can be added while the guest runs; 0: no more than cpus
	CPUModel    string      `json:"cpu_model,omitzero"`    // empty: the cluster's baseline; host: all that the node's CPU has; or a model by name
	CPUTopology CPUTopology `json:"cpu_topology,omitzero"` // as the guest sees its CPUs; zero: sockets of one core
	MemoryBytes int64       `json:"memory_bytes"`
	MemoryMax   int64       `json:"memory_max_bytes,omitzero"` // up to which memory can be given while the guest runs; 0: no more than memory_bytes
	Machine     string      `json:"machine,omitzero"`          // q35 (default) or i440fx
	Firmware    string      `json:"firmware,omitzero"`         // bios (default) or uefi
	TPM         bool        `json:"tpm,omitzero"`              // a virtual TPM 2.0
	RNG         string      `json:"rng,omitzero"`              // virtio random source fed by the node: on (default) or off
	Boot        *DirectBoot `json:"boot,omitzero"`             // direct kernel boot; nil: from the disks, or as boot_order says
	Disks       []Disk      `json:"disks,omitzero"`
	CDROMs      []CDROM     `json:"cdroms,omitzero"`
	NICs        []NIC       `json:"nics,omitzero"`
	CloudInit   *CloudInit  `json:"cloud_init,omitzero"` // seed for the guest (NoCloud); nil: none
	Placement   Placement   `json:"placement,omitzero"`
	Graphics    string      `json:"graphics,omitzero"` // how its display is reached: vnc (default) or none
	Video       string      `json:"video,omitzero"`    // virtio (default with graphics), vga or none
	HA          string      `json:"ha,omitzero"`       // none (default), lease, storage; kept, not acted upon yet: an operator moves every VM
	Priority    int         `json:"priority,omitzero"` // higher first when hosts are scarce; -1000 to 1000

	Snapshots *SnapshotSchedule `json:"snapshots,omitzero"` // taken by themselves; nil: none
}

// DirectBoot starts a kernel without a boot loader.
type DirectBoot struct {
	Kernel string `json:"kernel"`          // image name
	Initrd string `json:"initrd,omitzero"` // image name
	Args   string `json:"args,omitzero"`   // kernel command line
}

// CloudInit is what cloud-init in the guest finds on its seed (NoCloud).
type CloudInit struct {
	Hostname string          `json:"hostname,omitzero"` // empty: the VM's name
	Users    []CloudInitUser `json:"users,omitzero"`
	Packages []string        `json:"packages,omitzero"`
	Files    []CloudInitFile `json:"files,omitzero"`
	Commands [][]string      `json:"commands,omitzero"` // run at first boot, each an argument vector
	Network  string          `json:"network,omitzero"`  // network-config document, as text; empty: DHCP by the image's default
}

// CloudInitUser is an account that cloud-init makes.
type CloudInitUser struct {
	Name         string   `json:"name"`
	SSHKeys      []string `json:"ssh_keys,omitzero"`
	Sudo         bool     `json:"sudo,omitzero"`          // without a password
	PasswordHash string   `json:"password_hash,omitzero"` // crypt(5); never a password
}

// CloudInitFile is a file that cloud-init writes.
type CloudInitFile struct {
	Path    string `json:"path"`
	Content string `json:"content"`
	Mode    string `json:"mode,omitzero"` // octal, as "0644"
}

// Placement restricts and orders the nodes on which a VM may run.
type Placement struct {
	Strategy     string            `json:"strategy,omitzero"`      // spread or pack; empty: the cluster's
	Node         string            `json:"node,omitzero"`          // only this node
	Nodes        map[string]string `json:"nodes,omitzero"`         // only nodes with these labels
	Affinity     map[string]string `json:"affinity,omitzero"`      // only where a VM with these labels runs, if any runs
	AntiAffinity map[string]string `json:"anti_affinity,omitzero"` // never where another VM with these labels runs
}

// On reports whether the user wants the VM to run.
func (v *VM) On() bool { return v.Power != PowerOff }

// Validate implements Object.
func (v *VM) Validate() error {
	var p problems
	v.check(&p, true)
	checkText(&p, "description", v.Description, TextLengthMax)
	checkOneOf(&p, "power", v.Power, "", PowerOn, PowerOff)
	if v.CPUs < 1 || v.CPUs > CPUsMax {
		p.add("cpus", "is %d", v.CPUs).Allow("1 to %d", CPUsMax)
	}
	if v.MemoryBytes < MemoryMin || v.MemoryBytes > MemoryMax {
		p.add("memory_bytes", "is %d", v.MemoryBytes).Allow("%d (16 MiB) to %d (64 TiB)", MemoryMin, MemoryMax)
	}
	v.checkHardware(&p)
	v.checkScreen(&p)
	checkOneOf(&p, "ha", v.HA, "", HANone, HALease, HAStorage)
	if v.Priority < -1000 || v.Priority > 1000 {
		p.add("priority", "is %d", v.Priority).Allow("-1000 to 1000")
	}
	v.checkBoot(&p)
	v.checkDisks(&p)
	v.checkCDROMs(&p)
	v.checkNICs(&p)
	v.checkBootOrder(&p)
	v.checkCloudInit(&p)
	v.checkPlacement(&p)
	v.Snapshots.check(&p, "snapshots")
	return p.err()
}

func (v *VM) checkBoot(p *problems) {
	if v.Boot == nil {
		return
	}
	p.addErr(CheckName("boot.kernel", v.Boot.Kernel))
	if v.Boot.Initrd != "" {
		p.addErr(CheckName("boot.initrd", v.Boot.Initrd))
	}
	checkText(p, "boot.args", v.Boot.Args, KernelArgsMax)
}

func (v *VM) checkPlacement(p *problems) {
	checkStrategy(p, "placement.strategy", v.Placement.Strategy)
	if v.Placement.Node != "" {
		p.addErr(CheckName("placement.node", v.Placement.Node))
	}
	checkLabels(p, "placement.nodes", v.Placement.Nodes)
	checkLabels(p, "placement.affinity", v.Placement.Affinity)
	checkLabels(p, "placement.anti_affinity", v.Placement.AntiAffinity)
}

func checkStrategy(p *problems, field, s string) {
	checkOneOf(p, field, s, "", StrategySpread, StrategyPack)
}

// checkOneOf accepts s if it is one of values; an empty first value means that
// the field may be left out.
func checkOneOf(p *problems, field, s string, values ...string) {
	for _, v := range values {
		if s == v {
			return
		}
	}
	if values[0] == "" {
		values = values[1:]
	}
	p.add(field, "is %q", s).Allow("%s", joinWords(values))
}

func joinWords(words []string) string {
	out := ""
	for i, w := range words {
		if i > 0 {
			out += ", "
		}
		out += w
	}
	return out
}
