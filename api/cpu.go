package api

import "slices"

// CPUModelsMax is how many CPU models a node lists.
const CPUModelsMax = 256

// CPULevels are the levels of x86-64, lowest first.
func CPULevels() []string { return []string{CPULevel1, CPULevel2, CPULevel3, CPULevel4} }

// CPUBaseline is the CPU model that guests get whose VM names none: the one
// that the settings name, else the highest level of x86-64 that every node
// with KVM can give, so that a guest can move between all of them. It is empty
// where no node has KVM: software emulation gives all it can emulate, which is
// the same everywhere. A node that joins with an older CPU lowers it for the
// guests that are started from then on.
func CPUBaseline(config *Config, nodes []*Node) string {
	if config != nil && config.CPUBaseline != "" {
		return config.CPUBaseline
	}
	best := ""
	for _, level := range CPULevels() {
		asked := false
		for _, n := range nodes {
			if n.Witness || n.Hypervisor.Acceleration != "kvm" || len(n.CPUModels) == 0 {
				continue
			}
			if !slices.Contains(n.CPUModels, level) {
				return best
			}
			asked = true
		}
		if asked {
			best = level
		}
	}
	return best
}

// GuestCPU is the model that a guest of the VM is given, with the cluster's
// baseline. It is empty for whatever its node has.
func (v *VM) GuestCPU(baseline string) string {
	switch v.CPUModel {
	case "":
		return baseline
	case CPUHost:
		return ""
	}
	return v.CPUModel
}
