package libvirt

import (
	"cmp"
	"fmt"
	"net"
	"strings"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

type interfaceXML struct {
	Type   string              `xml:"type,attr"`
	MAC    *macXML             `xml:"mac"`
	Source *interfaceSourceXML `xml:"source"`
	Target *interfaceTargetXML `xml:"target"`
	Model  *modelTypeXML       `xml:"model"`
	MTU    *mtuXML             `xml:"mtu"`
	Link   *linkXML            `xml:"link"`
	Boot   *bootOrderXML       `xml:"boot"`
}

type interfaceTargetXML struct {
	Dev string `xml:"dev,attr"`
}

type mtuXML struct {
	Size int `xml:"size,attr"`
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
		// Names that begin with "vnet" are libvirt's own: it would choose another.
		if len(n.Device) > nicDeviceMax || strings.HasPrefix(n.Device, "vnet") {
			return wrongSpec(spec, fmt.Sprintf("nics[%d]", i), "has the device %q", n.Device).Allow("at most %d bytes, not beginning with vnet", nicDeviceMax)
		}
		if n.Model != "" && n.Model != api.NICVirtio && n.Model != api.NICE1000 && n.Model != api.NICRTL {
			return wrongSpec(spec, fmt.Sprintf("nics[%d]", i), "has the model %q", n.Model).Allow("%s, %s, %s", api.NICVirtio, api.NICE1000, api.NICRTL)
		}
	}
	return nil
}

// nicDeviceMax is how many bytes the name of a device has at most.
const nicDeviceMax = 15

// addNICs plugs the guest into its networks.
func (d *domainXML) addNICs(spec plugins.DomainSpec, _ machine) {
	for _, n := range spec.NICs {
		d.Devices.Interfaces = append(d.Devices.Interfaces, nicXML(n))
	}
}

// nicXML is one interface. Its tap device has a name of its own, so that rules
// for it are there before the guest is.
func nicXML(n plugins.NICSpec) interfaceXML {
	x := interfaceXML{
		Type: "bridge", MAC: &macXML{Address: n.MAC},
		Source: &interfaceSourceXML{Bridge: n.Bridge}, Model: &modelTypeXML{Type: cmp.Or(n.Model, api.NICVirtio)},
	}
	if n.Device != "" {
		x.Target = &interfaceTargetXML{Dev: n.Device}
	}
	if n.MTU != 0 {
		x.MTU = &mtuXML{Size: n.MTU}
	}
	if n.LinkDown {
		x.Link = &linkXML{State: "down"}
	}
	if n.BootOrder > 0 {
		x.Boot = &bootOrderXML{Order: n.BootOrder}
	}
	return x
}
