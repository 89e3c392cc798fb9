package libvirt

import (
	"path/filepath"

	"github.com/debvisor/debvisor/plugins"
)

type serialXML struct {
	Type   string           `xml:"type,attr"`
	Log    *logXML          `xml:"log"`
	Target *serialTargetXML `xml:"target"`
}

type logXML struct {
	File   string `xml:"file,attr"`
	Append string `xml:"append,attr"`
}

type serialTargetXML struct {
	Type string `xml:"type,attr,omitempty"`
	Port int    `xml:"port,attr"`
}

// addSerial gives the guest its serial line, whose output is kept.
func (d *domainXML) addSerial(_ plugins.DomainSpec, m machine) {
	d.Devices.Serials = []serialXML{{
		Type:   "pty",
		Log:    &logXML{File: filepath.Join(m.dir, consoleFile), Append: "on"},
		Target: &serialTargetXML{Type: "isa-serial"},
	}}
}
