package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/debvisor/debvisor/agent"
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
	"github.com/debvisor/debvisor/plugins/bridge"
	"github.com/debvisor/debvisor/plugins/dir"
	"github.com/debvisor/debvisor/plugins/libvirt"
	"github.com/debvisor/debvisor/plugins/sim"
)

// Files of the data directory that this command keeps beside the cluster's.
const (
	fileHypervisor = "hypervisor" // holds the driver that guests of this node belong to
	dirSimulator   = "sim"
	dirNetworks    = "networks"
	dirDomains     = "domains" // seeds, firmware variables, console logs
)

// machine is the adapters to this machine.
type machine struct {
	hypervisor plugins.Hypervisor
	updater    plugins.Updater
	migrator   plugins.Migrator // nil: guests do not move while they run
	storage    plugins.Storage
	network    plugins.Network
	volumes    plugins.Volumes
	disks      plugins.Disks
	screens    plugins.Screens
	logs       plugins.Logs
	meter      plugins.Meter
	snapshots  plugins.Snapshotter // nil: keeps none
	guests     plugins.GuestAgent  // nil: guests' agents are not asked
}

// imageMaker is what a storage may do with images besides.
type imageMaker interface {
	plugins.Stager
	plugins.Templates
}

// openMachine opens the adapters and makes the agent on them.
func (n *node) openMachine() error {
	self := n.server.Self()
	config := agent.Config{
		ID: self.ID, Name: self.Name, DataDir: n.config.DataDir, Address: self.Address, Version: version, Witness: n.config.Witness,
		Cluster: replica{n.server}, Fetch: n.fetchImage, Renew: n.renewals.Renew, Logger: n.logger.Named("agent"),
	}
	if !config.Witness {
		m, err := n.chooseMachine()
		if err != nil {
			return err
		}
		n.machine = m
		config.Hypervisor, config.Updater, config.Network = m.hypervisor, m.updater, m.network
		if m.migrator != nil {
			config.Migrator, config.Peer = m.migrator, n.openMigration
		}
		config.Screens, config.Logs, config.Meter = m.screens, m.logs, m.meter
		config.Snapshots, config.Guests = m.snapshots, m.guests
		config.Storage = map[string]plugins.Storage{api.PoolDir: m.storage}
		config.Volumes, config.Disks = map[string]plugins.Volumes{api.PoolDir: m.volumes}, m.disks
		config.Foreign = m.foreign()
		if images, ok := m.storage.(imageMaker); ok {
			config.Stagers = map[string]plugins.Stager{api.PoolDir: images}
			config.Templates = map[string]plugins.Templates{api.PoolDir: images}
		}
		if config.Outbound, err = n.newOutbound(); err != nil {
			return errors.Join(err, m.close())
		}
	}
	var err error
	if n.agent, err = agent.New(config); err != nil {
		return errors.Join(fmt.Errorf("prepare the agent: %w", err), n.machine.close())
	}
	return nil
}

// chooseMachine opens the adapters of the hypervisor that the configuration
// names. "auto" keeps to libvirt once it was taken: a daemon that is down now
// must not turn the guests of this host into simulated ones.
func (n *node) chooseMachine() (*machine, error) {
	driver, kept := n.config.Hypervisor, filepath.Join(n.config.DataDir, fileHypervisor)
	if driver == hypervisorAuto {
		driver = hypervisorSim
		if raw, err := os.ReadFile(kept); err == nil && string(raw) == hypervisorLibvirt || n.hasLibvirt() {
			driver = hypervisorLibvirt
		}
	}
	if driver == hypervisorSim {
		n.logger.Warn("the hypervisor is simulated: no real guest runs on this node")
		return n.openSimulator()
	}
	if err := os.WriteFile(kept, []byte(hypervisorLibvirt), 0o600); err != nil {
		return nil, fmt.Errorf("keep the hypervisor: %w", err)
	}
	return n.openLibvirt()
}

// hasLibvirt reports whether this machine is meant to run guests with libvirt.
func (n *node) hasLibvirt() bool {
	_, err := exec.LookPath("libvirtd")
	return err == nil || libvirtAnswers(cmp.Or(n.config.LibvirtSocket, libvirt.DefaultSocket))
}

func (n *node) openSimulator() (*machine, error) {
	s, err := n.config.machine()
	if err != nil {
		return nil, err
	}
	config := sim.Config{
		Dir: filepath.Join(n.config.DataDir, dirSimulator), ClusterID: n.server.ClusterID(),
		CPUs: s.cpus, MemoryBytes: s.memoryBytes, BootTime: s.bootTime, Logger: n.logger.Named("sim"),
	}
	hypervisor, err := sim.OpenHypervisor(config)
	if err != nil {
		return nil, fmt.Errorf("open the simulator: %w", err)
	}
	storage, err := sim.OpenStorage(config)
	if err != nil {
		return nil, fmt.Errorf("open the simulator: %w", err)
	}
	network, err := sim.OpenNetwork(config)
	if err != nil {
		return nil, fmt.Errorf("open the simulator: %w", err)
	}
	return &machine{
		hypervisor: hypervisor,
		updater:    hypervisor,
		migrator:   hypervisor,
		storage:    storage,
		network:    network,
		volumes:    storage,
		disks:      hypervisor,
		screens:    hypervisor,
		logs:       hypervisor,
		meter:      hypervisor,
		snapshots:  hypervisor,
		guests:     hypervisor,
	}, nil
}

func (n *node) openLibvirt() (*machine, error) {
	// QEMU runs as another user and passes through the data directory to its
	// disks; everything secret in it is readable by this user alone.
	if err := os.Chmod(n.config.DataDir, 0o711); err != nil {
		return nil, fmt.Errorf("let QEMU pass through the data directory: %w", err)
	}
	socket := cmp.Or(n.config.LibvirtSocket, libvirt.DefaultSocket)
	hypervisor, err := libvirt.Open(libvirt.Config{
		Socket: socket, ClusterID: n.server.ClusterID(), StateDir: filepath.Join(n.config.DataDir, dirDomains), Logger: n.logger.Named("libvirt"),
		Guard: libvirt.GuardProgram(guardWord),
	})
	if err != nil {
		return nil, fmt.Errorf("open libvirt: %w", err)
	}
	storage, err := dir.Open(dir.Config{Logger: n.logger.Named("storage")})
	if err != nil {
		return nil, fmt.Errorf("open storage: %w", err)
	}
	network, err := bridge.Open(bridge.Config{ClusterID: n.server.ClusterID(), Node: n.server.Self().Name, Dir: filepath.Join(n.config.DataDir, dirNetworks), NetNS: namespaceOf(socket), Logger: n.logger.Named("network")})
	if err != nil {
		return nil, fmt.Errorf("open network: %w", err)
	}
	return &machine{
		hypervisor: shared{hypervisor, n.config.Share},
		updater:    hypervisor,
		migrator:   hypervisor,
		storage:    storage,
		network:    network,
		volumes:    storage,
		disks:      hypervisor,
		screens:    hypervisor,
		logs:       hypervisor,
		meter:      hypervisor,
		snapshots:  hypervisor,
		guests:     hypervisor,
	}, nil
}

// shared is a hypervisor whose machine several nodes share, as those of a
// development cluster do. Each offers an equal part.
type shared struct {
	plugins.Hypervisor
	nodes int
}

// Probe implements plugins.Hypervisor.
func (s shared) Probe(ctx context.Context) (plugins.Probe, error) {
	p, err := s.Hypervisor.Probe(ctx)
	if s.nodes > 1 && err == nil {
		p.Capacity.CPUs = max(1, p.Capacity.CPUs/s.nodes)
		p.Capacity.MemoryBytes /= int64(s.nodes)
	}
	return p, err
}

// namespaceOf is the network namespace of the daemon at a socket, where it is
// not our own: guests plug into the bridges that their daemon sees.
func namespaceOf(socket string) string {
	conn, err := net.DialTimeout("unix", socket, dialTimeout)
	if err != nil {
		return ""
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return ""
	}
	pid := int32(0)
	err = raw.Control(func(fd uintptr) {
		if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = peer.Pid
		}
	})
	if err != nil || pid <= 0 {
		return ""
	}
	theirs := fmt.Sprintf("/proc/%d/ns/net", pid)
	there, err := os.Readlink(theirs)
	if here, errHere := os.Readlink("/proc/self/ns/net"); err != nil || errHere != nil || here == there {
		return ""
	}
	return theirs
}

// runGuests works on the machine until ctx ends. Guests go on.
func (n *node) runGuests(ctx context.Context) error {
	defer n.renewals.close()
	return n.agent.Run(ctx)
}

// close lets go of the machine's adapters.
func (m *machine) close() error {
	if m == nil {
		return nil
	}
	m.network.Close()
	return m.hypervisor.Close()
}
