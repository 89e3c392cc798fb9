package libvirt

import (
	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

// agentChannel is where the guest's agent answers.
const agentChannel = "org.qemu.guest_agent.0"

type channelXML struct {
	Type   string            `xml:"type,attr"`
	Target *channelTargetXML `xml:"target"`
}

type channelTargetXML struct {
	Type  string `xml:"type,attr"`
	Name  string `xml:"name,attr,omitempty"`
	State string `xml:"state,attr,omitempty"`
}

type modelXML struct {
	Model string `xml:"model,attr"`
}

type rngXML struct {
	Model   string        `xml:"model,attr"`
	Backend rngBackendXML `xml:"backend"`
}

type rngBackendXML struct {
	Model string `xml:"model,attr"`
	Path  string `xml:",chardata"`
}

type tpmXML struct {
	Model   string        `xml:"model,attr"`
	Backend tpmBackendXML `xml:"backend"`
}

type tpmBackendXML struct {
	Type    string `xml:"type,attr"`
	Version string `xml:"version,attr"`
}

// Ports of a q35 machine: everything on PCI Express sits in one, and what is
// plugged in later needs one that is free.
const (
	portsOfDevices = 6 // those that every guest has, with room for a few more
	portsSpare     = 8
)

// addBus gives a machine of type q35 its ports. The old type has slots enough.
func (d *domainXML) addBus(spec plugins.DomainSpec, _ machine) {
	if spec.Machine == api.MachineI440FX {
		return
	}
	d.Devices.Controllers = append(d.Devices.Controllers, controllerXML{Type: "pci", Model: "pcie-root"})
	for i := range len(spec.Disks) + len(spec.NICs) + portsOfDevices + portsSpare {
		d.Devices.Controllers = append(d.Devices.Controllers, controllerXML{Type: "pci", Index: i + 1, Model: "pcie-root-port"})
	}
}

// addAgent gives the guest the channel of its agent.
func (d *domainXML) addAgent(plugins.DomainSpec, machine) {
	d.Devices.Channels = []channelXML{{Type: "unix", Target: &channelTargetXML{Type: "virtio", Name: agentChannel}}}
}

// addBalloon lets memory be taken from the guest and given back.
func (d *domainXML) addBalloon(plugins.DomainSpec, machine) {
	d.Devices.MemBalloon = &modelXML{Model: "virtio"}
}

// addTPM gives the guest a TPM 2.0, which swtpm emulates. libvirt keeps what is
// stored in it under the domain's UUID until the domain is removed.
func (d *domainXML) addTPM(spec plugins.DomainSpec, _ machine) {
	if spec.TPM {
		d.Devices.TPM = &tpmXML{Model: "tpm-crb", Backend: tpmBackendXML{Type: "emulator", Version: "2.0"}}
	}
}

// addRNG feeds the guest's random numbers from the machine's.
func (d *domainXML) addRNG(spec plugins.DomainSpec, _ machine) {
	if spec.NoRNG {
		return
	}
	d.Devices.RNG = &rngXML{Model: "virtio", Backend: rngBackendXML{Model: "random", Path: "/dev/urandom"}}
}
