package libvirt

import (
	"encoding/xml"
	"fmt"
	"reflect"

	"github.com/debvisor/debvisor/api"
)

// The types below are the part of libvirt's domain format that debvisor
// writes or compares (https://libvirt.org/formatdomain.html). XML is made and
// read through them only, so no string of a user can become markup.

type domainXML struct {
	XMLName       xml.Name     `xml:"domain"`
	Type          string       `xml:"type,attr"`
	Name          string       `xml:"name"`
	UUID          string       `xml:"uuid"`
	Metadata      *metadataXML `xml:"metadata"`
	Memory        memoryXML    `xml:"memory"`
	CurrentMemory *memoryXML   `xml:"currentMemory"`
	VCPU          vcpuXML      `xml:"vcpu"`
	OS            osXML        `xml:"os"`
	Features      *featuresXML `xml:"features"`
	CPU           *cpuXML      `xml:"cpu"`
	Clock         *clockXML    `xml:"clock"`
	OnPoweroff    string       `xml:"on_poweroff,omitempty"`
	OnReboot      string       `xml:"on_reboot,omitempty"`
	OnCrash       string       `xml:"on_crash,omitempty"`
	Devices       devicesXML   `xml:"devices"`

	drives drives // dealt out while the domain is built
}

type metadataXML struct {
	Mark *mark `xml:"https://debvisor.org/xmlns/libvirt/domain/1 mark"`
}

type memoryXML struct {
	Unit  string `xml:"unit,attr,omitempty"`
	Value int64  `xml:",chardata"`
}

type vcpuXML struct {
	Placement string `xml:"placement,attr,omitempty"`
	Current   int    `xml:"current,attr,omitempty"`
	Value     int    `xml:",chardata"`
}

type osXML struct {
	Type    osTypeXML  `xml:"type"`
	Loader  *loaderXML `xml:"loader"`
	NVRAM   *nvramXML  `xml:"nvram"`
	Kernel  string     `xml:"kernel,omitempty"`
	Initrd  string     `xml:"initrd,omitempty"`
	Cmdline string     `xml:"cmdline,omitempty"`
}

type osTypeXML struct {
	Arch    string `xml:"arch,attr,omitempty"`
	Machine string `xml:"machine,attr,omitempty"`
	Value   string `xml:",chardata"`
}

type loaderXML struct {
	ReadOnly string `xml:"readonly,attr,omitempty"`
	Type     string `xml:"type,attr,omitempty"`
	Path     string `xml:",chardata"`
}

type nvramXML struct {
	Template string `xml:"template,attr,omitempty"`
	Path     string `xml:",chardata"`
}

type featuresXML struct {
	ACPI *struct{} `xml:"acpi"`
	APIC *struct{} `xml:"apic"`
}

type clockXML struct {
	Offset string `xml:"offset,attr,omitempty"`
}

type devicesXML struct {
	Emulator    string          `xml:"emulator,omitempty"`
	Disks       []diskXML       `xml:"disk"`
	Controllers []controllerXML `xml:"controller"`
	Interfaces  []interfaceXML  `xml:"interface"`
	Serials     []serialXML     `xml:"serial"`
	Channels    []channelXML    `xml:"channel"`
	MemBalloon  *modelXML       `xml:"memballoon"`
	TPM         *tpmXML         `xml:"tpm"`
	RNG         *rngXML         `xml:"rng"`
	Inputs      []inputXML      `xml:"input"`
	Graphics    []graphicsXML   `xml:"graphics"`
	Videos      []videoXML      `xml:"video"`
}

// encode renders the domain and reads it back. What does not survive, such as
// a control character that XML cannot carry, is CodeInvalid: the guest would
// be another one than was asked for.
func (d *domainXML) encode() (string, error) {
	raw, err := xml.Marshal(d)
	if err != nil {
		return "", fmt.Errorf("encode domain: %w", err)
	}
	back, err := decodeDomain(string(raw))
	if err != nil {
		return "", err
	}
	want := *d
	want.drives = drives{}
	want.XMLName = back.XMLName
	if !reflect.DeepEqual(&want, back) {
		return "", api.Errorf(api.CodeInvalid, "a text of the VM cannot be written as XML").On(api.KindVM, d.Name).
			Do("remove control characters from its names and kernel arguments")
	}
	return string(raw), nil
}

func decodeDomain(text string) (*domainXML, error) {
	var d domainXML
	if err := xml.Unmarshal([]byte(text), &d); err != nil {
		return nil, fmt.Errorf("decode domain: %w", err)
	}
	return &d, nil
}
