package libvirt

import (
	"fmt"
	"net"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

type interfaceXML struct {
	Type   string              `xml:"type,attr"`
	MAC    *macXML             `xml:"mac"`
	Source *interfaceSourceXML `xml:"source"`
	Model  *modelTypeXML       `xml:"model"`
	Link   *linkXML            `xml:"link"`
	Boot   *bootOrderXML       `xml:"boot"`
}

type linkXML struct {
	State string `xml:"state,attr"`
}

type macXML struct {
	Address string `xml:"address,attr"`
}

type interfaceSourceXML struct {
	Bridge string `xml:"bridge,attr,omitempty"`
}

type modelTypeXML struct {
	Type string `xml:"type,attr"`
}

func checkNICs(spec plugins.DomainSpec) error {
	if len(spec.NICs) > api.NICsMax {
		return wrongSpec(spec, "nics", "has %d interfaces", len(spec.NICs)).Allow("at most %d", api.NICsMax)
	}
	for i, n := range spec.NICs {
		if hw, err := net.ParseMAC(n.MAC); err != nil || hw.String() != n.MAC || n.Bridge == "" {
			return wrongSpec(spec, fmt.Sprintf("nics[%d]", i), "has MAC %q and bridge %q", n.MAC, n.Bridge).
				Allow("a lower-case MAC and the name of a bridge")
		}
	}
	return nil
}

// addNICs plugs the guest into its networks.
func (d *domainXML) addNICs(spec plugins.DomainSpec, _ machine) {
	for _, n := range spec.NICs {
		x := interfaceXML{
			Type: "bridge", MAC: &macXML{Address: n.MAC},
			Source: &interfaceSourceXML{Bridge: n.Bridge}, Model: &modelTypeXML{Type: "virtio"},
		}
		if n.LinkDown {
			x.Link = &linkXML{State: "down"}
		}
		if n.BootOrder > 0 {
			x.Boot = &bootOrderXML{Order: n.BootOrder}
		}
		d.Devices.Interfaces = append(d.Devices.Interfaces, x)
	}
}
