package libvirt

import (
	"slices"

	"github.com/debvisor/debvisor/api"
	"github.com/debvisor/debvisor/plugins"
)

type cpuXML struct {
	Mode     string          `xml:"mode,attr,omitempty"`
	Match    string          `xml:"match,attr,omitempty"`
	Check    string          `xml:"check,attr,omitempty"`
	Model    *cpuModelXML    `xml:"model"`
	Topology *topologyXML    `xml:"topology"`
	Features []cpuFeatureXML `xml:"feature"`
}

type cpuModelXML struct {
	Fallback string `xml:"fallback,attr,omitempty"`
	Value    string `xml:",chardata"`
}

type topologyXML struct {
	Sockets int `xml:"sockets,attr"`
	Dies    int `xml:"dies,attr,omitempty"`
	Cores   int `xml:"cores,attr"`
	Threads int `xml:"threads,attr"`
}

type cpuFeatureXML struct {
	Policy string `xml:"policy,attr"`
	Name   string `xml:"name,attr"`
}

// maximum is the CPU of software emulation: all that this QEMU can emulate.
const maximum = "maximum"

// levelBase is the model on which the levels of x86-64 are built: it belongs
// to no vendor, and is one that libvirt and QEMU have always known.
const levelBase = "kvm64"

// levels lists what each level of x86-64 adds (System V psABI for x86-64,
// micro-architecture levels), as libvirt names features. From level 3 on AES is
// in it: every CPU that has the level has AES, and TLS is slow without.
func levels() []struct {
	name     string
	features []string
} {
	return []struct {
		name     string
		features []string
	}{
		{api.CPULevel1, nil},
		{api.CPULevel2, []string{"cx16", "lahf_lm", "popcnt", "pni", "sse4.1", "sse4.2", "ssse3"}},
		{api.CPULevel3, []string{"abm", "aes", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "pclmuldq", "xsave"}},
		{api.CPULevel4, []string{"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}},
	}
}

// levelCPU is a level of x86-64 as libvirt is told, or nil for another model.
func levelCPU(name string) *cpuXML {
	c := &cpuXML{Mode: "custom", Match: "exact", Model: &cpuModelXML{Fallback: "forbid", Value: levelBase}}
	for _, l := range levels() {
		c.require(l.features)
		if l.name == name {
			return c
		}
	}
	return nil
}

func (c *cpuXML) require(features []string) {
	for _, f := range features {
		c.Features = append(c.Features, cpuFeatureXML{Policy: "require", Name: f})
	}
}

// checkCPU refuses names that no hypervisor gives to models and features.
func checkCPU(spec plugins.DomainSpec) error {
	names := append(slices.Clone(spec.CPU.Require), spec.CPU.Disable...)
	if spec.CPU.Model != "" {
		names = append(names, spec.CPU.Model)
	}
	for _, name := range names {
		if err := api.CheckCPUModel("cpu_model", name); err != nil {
			return err.On(api.KindVM, spec.Name)
		}
	}
	if t := spec.Topology; t != (api.CPUTopology{}) && t.Sockets*t.Cores*t.Threads != spec.MostCPUs() {
		return wrongSpec(spec, "cpu_topology", "is %+v", t).Allow("%d CPUs in all", spec.MostCPUs())
	}
	return nil
}

// buildCPU is the CPU of a guest. Features that are asked for and that the
// machine lacks make the start fail, never the guest a poorer one.
func buildCPU(spec plugins.DomainSpec, virtType string) *cpuXML {
	want := spec.CPU
	var c *cpuXML
	switch {
	case want.Model == maximum || want.Model == "" && virtType != "kvm":
		c = &cpuXML{Mode: maximum}
	case want.Model == "":
		c = &cpuXML{Mode: "host-model"}
	default:
		if c = levelCPU(want.Model); c == nil {
			c = &cpuXML{Mode: "custom", Match: "exact", Model: &cpuModelXML{Fallback: "forbid", Value: want.Model}}
		}
		c.Check = "partial" // more would refuse what the hypervisor itself adds
		c.require(want.Require)
		for _, f := range want.Disable {
			c.Features = append(c.Features, cpuFeatureXML{Policy: "disable", Name: f})
		}
	}
	if t := spec.Topology; t != (api.CPUTopology{}) {
		c.Topology = &topologyXML{Sockets: t.Sockets, Dies: 1, Cores: t.Cores, Threads: t.Threads}
	}
	return c
}
