package libvirt

import "github.com/debvisor/debvisor/plugins"

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

// addAgent gives the guest the channel of its agent.
func (d *domainXML) addAgent(plugins.DomainSpec, machine) {
	d.Devices.Channels = []channelXML{{Type: "unix", Target: &channelTargetXML{Type: "virtio", Name: agentChannel}}}
}

// addBalloon lets memory be taken from the guest and given back.
func (d *domainXML) addBalloon(plugins.DomainSpec, machine) {
	d.Devices.MemBalloon = &modelXML{Model: "virtio"}
}

// addRNG feeds the guest's random numbers from the machine's.
func (d *domainXML) addRNG(plugins.DomainSpec, machine) {
	d.Devices.RNG = &rngXML{Model: "virtio", Backend: rngBackendXML{Model: "random", Path: "/dev/urandom"}}
}
